"""How much memory a run needs, by component, from its settings alone: exact counts and a closed form, no torch, microseconds.

The peak of a run is the largest of three moments: the loss (all kept activations and a tile of logits), the backward pass of a layer
(checkpoints, one recomputed layer and its workspace) and an evaluation batch. On top come what the allocator cannot use and the CUDA
context, since only their sum is what the card shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qlora_ui.base.units import KIB, MIB
from qlora_ui.estimate.activations import layer_bytes, logit_tile, tile_rows
from qlora_ui.estimate.adapter import Adapter, adapter_of, optimizer_bytes
from qlora_ui.estimate.workload import DataShape, Workload, workload_of
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import optimizer_on

PARTS = (
    "weights_4bit",
    "weights_16bit",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "loss_head",
    "slack",
    "context",
)
PART_WORDS: Mapping[str, str] = {
    "weights_4bit": "Model, 4-bit",
    "weights_16bit": "Model, embeddings and norms",
    "adapter": "Adapter",
    "gradients": "Gradients",
    "optimizer": "Optimizer",
    "activations": "Activations",
    "loss_head": "Loss",
    "slack": "Allocator",
    "context": "CUDA itself",
}
CHECKPOINT_MARGIN_BYTES = 64 * MIB
"""Of the disk: no checkpoint is written that would leave less."""
PLAIN_TILE_TOKENS, PLAIN_TILE_WORDS = 4096, 32768
WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES = 8 * MIB + 128 * KIB, 32 * MIB
"""cuBLAS' own buffer, one for each thread and stream that multiplies: forward, backward and, where it is another, the captured step's."""
SPREAD, DOUBTFUL_SPREAD = 0.05, 0.1
"""Of everything but the context: the largest error of 31 jobs on an H100 was 4.1 % (`tests/bench/results/vram-H100.json`)."""
MEASURED_FAMILIES = ("llama", "qwen2")
FAST_CONTEXT_BYTES = 82 * MIB
"""Compiled kernels and graphs of the fast path, beside the context (measured on an H100)."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a process holds beside its tensors."""

    context_bytes: int
    workspace_bytes: int
    """Of the libraries, through the allocator."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The largest amount of memory that a run holds at once; parts are of that moment and add up to the total."""

    parts: dict[str, int]
    total_bytes: int
    low_bytes: int
    high_bytes: int
    """The range in which the measured figure is expected."""
    load_peak_bytes: int
    """While the base is quantized, context included."""
    allocated_bytes: int
    """What torch's allocator hands out at the peak: the total without slack and context."""
    trainable_params: int
    is_fast: bool
    moment: str
    """`loss`, `backward`, `end of backward`, `embedding`, `evaluation` or `loading`: when the peak comes."""
    notes: tuple[str, ...] = ()
    """What this amount of memory hangs on."""
    doubts: tuple[str, ...] = ()
    """What of these settings nobody has measured yet; with one of them the range is twice as wide and the precise check worth its time."""
    num_sharing: int = 1
    """Processes that need as much each of the one memory; all figures are of all of them."""

    @property
    def process_bytes(self) -> int:
        """What one process holds, which is what it can measure of itself."""
        return self.total_bytes // self.num_sharing

    def fits(self, device: DeviceProfile) -> bool:
        """Whether it fits what is free on the device."""
        return self.total_bytes <= device.free_bytes


def estimate_memory(facts: ModelFacts, config: RunConfig, device: DeviceProfile, data: DataShape | None = None) -> MemoryEstimate:
    """The memory of a run with these settings on that device; `data` narrows row lengths down to what the dataset has."""
    work = workload_of(facts, config, device, data)
    adapter = adapter_of(facts, config.lora)
    static = _static_parts(facts, config, adapter, work)
    moments = _moments(facts, config, adapter, work)
    moment, (activations, loss_head, gradients) = max(moments.items(), key=lambda item: sum(item[1]))
    parts = {**static, "gradients": gradients, "activations": activations, "loss_head": loss_head}
    allocated = sum(parts.values())
    # What earlier runs on this machine took beyond the estimate shows as the allocator's share.
    overhead = process_overhead(device, work)
    context = overhead.context_bytes
    tokens = work.eval_tokens if moment == "evaluation" else work.tokens
    idle = _slack(facts, activations, loss_head, tokens, work, device)
    if device.grows_segments and (work.is_fast or moment == "evaluation"):
        idle += _idle_scores(facts, work)
    slack = overhead.workspace_bytes + idle + beside_the_graph(facts, config, adapter, work)
    load_peak = load_reserved_bytes(facts, config, work) + context
    slack += round((allocated + slack) * (device.correction - 1))
    total = allocated + slack + context
    if load_peak > total:
        slack, moment, total = slack + load_peak - total, "loading", load_peak
    parts = {name: work.num_sharing * {**parts, "slack": slack, "context": context}[name] for name in PARTS}
    total *= work.num_sharing
    doubts = _doubts(facts, config, device, adapter, work)
    spread = (DOUBTFUL_SPREAD if doubts else SPREAD) * (total - work.num_sharing * context)
    return MemoryEstimate(
        parts=parts,
        total_bytes=total,
        low_bytes=round(total - spread),
        high_bytes=round(total + spread),
        load_peak_bytes=work.num_sharing * load_peak,
        allocated_bytes=work.num_sharing * allocated,
        trainable_params=adapter.num_params,
        is_fast=work.is_fast,
        moment=moment,
        notes=_notes(facts, device, work),
        doubts=doubts,
        num_sharing=work.num_sharing,
    )


def saved_bytes(memory: MemoryEstimate, config: RunConfig) -> int:
    """What a run wants of the disk at most: the checkpoints that are kept with the best one, the next while it is written, the adapter,
    and what a checkpoint leaves free.
    """
    # One process writes, however many of them hold the same.
    adapter, optimizer = (memory.parts[name] // memory.num_sharing for name in ("adapter", "optimizer"))
    return (config.output.keep_last + 2) * (adapter + optimizer) + adapter + CHECKPOINT_MARGIN_BYTES


def _static_parts(facts: ModelFacts, config: RunConfig, adapter: Adapter, work: Workload) -> dict[str, int]:
    in_4bit, in_16bit = _base_bytes(facts, config, work)
    trained = adapter.num_params
    return {
        "weights_4bit": in_4bit,
        "weights_16bit": in_16bit,
        "adapter": trained * work.adapter_bytes,
        "optimizer": optimizer_bytes(optimizer_on(config, is_cpu=work.is_cpu), trained, work.adapter_bytes),
    }


def _base_bytes(facts: ModelFacts, config: RunConfig, work: Workload) -> tuple[int, int]:
    """What one card holds of the base: the 4-bit layers, and the rest in 16 bits.

    Of a base that is split a card has its share, and gathers the layer that it works on: one, not two, is fitted to the only measurement
    (a small model on two H200s, `two-cards-H200.json`). Embeddings and output layer, which FSDP keeps in its outermost unit, are taken as
    whole until the end of the backward pass; that is how FSDP is described and was not measured, that model's being too small to tell.
    """
    quantized = quantized_bytes(facts, double_quant=config.quant.double_quant)
    other = (facts.num_embedding_params + facts.num_bias_params + facts.num_norm_params) * work.element_bytes
    if config.launch.sharding != "fsdp":
        return quantized, other
    return quantized // work.num_devices + quantized // facts.num_layers, other // work.num_devices + other


def quantized_bytes(facts: ModelFacts, *, double_quant: bool) -> int:
    """The 4-bit layers with their scales: half a byte a weight, and for each 64 an fp32, or 8 bits and an fp32 for each 256 of those."""
    total = 0
    for linear in facts.linears:
        blocks = -(-linear.num_weights // 64)
        scales = _rounded(blocks) + _rounded(4 * -(-blocks // 256)) + 1024 + 512 if double_quant else _rounded(4 * blocks)
        total += _rounded(-(-linear.num_weights // 2)) + scales + 512  # the table of 16 levels
    return facts.num_layers * total


def _rounded(num_bytes: int) -> int:
    """As the allocator hands it out: in steps of 512 bytes."""
    return -(-num_bytes // 512) * 512


def _moments(facts: ModelFacts, config: RunConfig, adapter: Adapter, work: Workload) -> dict[str, tuple[int, int, int]]:
    """(activations, loss head, gradients) at each candidate for the peak."""
    layer = layer_bytes(facts, adapter, config.lora, work, rows=work.num_rows, row_tokens=work.row_tokens)
    gradients = adapter.num_params * work.adapter_bytes
    matrix = facts.vocab_size * facts.hidden_size * work.adapter_bytes
    of_head, of_embedding = matrix * adapter.trains_head, matrix * adapter.trains_embedding
    # From the second micro-batch on, and in a captured step always, the gradients of the first are there.
    kept_gradients = gradients if config.train.accumulation > 1 or work.is_fast else 0
    kept, recomputed = work.kept_layers, facts.num_layers - work.kept_layers
    stored = kept * layer.saved + recomputed * layer.checkpoint
    mask = _mask_bytes(work, work.num_rows, work.row_tokens)
    moments = {"loss": (stored + mask, _loss_bytes(facts, adapter, work, work.tokens, exact=not config.lora.dropout), kept_gradients)}
    if recomputed:
        # Kept layers are the last ones: they are gone when the first recomputation begins.
        at_start = recomputed * layer.checkpoint + layer.again + layer.working
        moments["backward"] = (at_start + mask, 0, kept_gradients or of_head)
    # The last layer to be differentiated has the least stored but every gradient beside it, except the embedding's, which comes after it.
    at_end = layer.working + mask + (layer.checkpoint + layer.again if recomputed else layer.saved)
    moments["end of backward"] = (at_end, 0, gradients if kept_gradients else gradients - of_embedding)
    if of_embedding:
        moments["embedding"] = (work.tokens * facts.hidden_size * work.stream_bytes, 0, gradients + (of_embedding if kept_gradients else 0))
    if work.eval_tokens and not work.is_fast:
        moments["evaluation"] = _evaluation(facts, config, adapter, work)
    return moments


def _mask_bytes(work: Workload, rows: int, row_tokens: int) -> int:
    """A truth value for each pair of positions; eager attention adds a number."""
    masks = 0 if work.is_fast else work.num_masks(rows, row_tokens)
    return masks * rows * row_tokens * row_tokens * (work.element_bytes if work.is_eager else 1)


def _evaluation(facts: ModelFacts, config: RunConfig, adapter: Adapter, work: Workload) -> tuple[int, int, int]:
    """(activations, loss head, gradients) of a check, for which the fast path steps aside; no gradients are kept for it."""
    plain = work.on_plain_path()
    layer = layer_bytes(facts, adapter, config.lora, plain, rows=work.eval_rows, row_tokens=work.eval_row_tokens)
    stream = work.eval_tokens * facts.hidden_size * work.stream_bytes
    in_layer = layer.forward_working + stream + _mask_bytes(plain, work.eval_rows, work.eval_row_tokens)
    at_loss = _plain_loss_bytes(facts, adapter, work, work.eval_tokens)
    return max((in_layer, 0, 0), (stream, at_loss, 0), key=sum)


def _loss_bytes(facts: ModelFacts, adapter: Adapter, work: Workload, tokens: int, *, exact: bool) -> int:
    if not work.is_fast:
        return _plain_loss_bytes(facts, adapter, work, tokens)
    rows, columns = logit_tile(tokens, facts.vocab_size, 2, exact=exact)
    # A tile of logits with its hidden states and their gradient in fp32; all tokens' gradient, the final norm's input and output.
    return rows * (2 * columns + 6 * facts.hidden_size) + tokens * 3 * 2 * facts.hidden_size


def _plain_loss_bytes(facts: ModelFacts, adapter: Adapter, work: Workload, tokens: int) -> int:
    """TRL's fused head: a tile of at most 4,096 tokens x 32,768 words, hidden states of the graded tokens, their gradient in fp32."""
    graded = tokens if work.is_cpu else round(tokens * work.trained_share)
    hidden, e, stream = facts.hidden_size, work.element_bytes, work.stream_bytes
    tile = min(graded, PLAIN_TILE_TOKENS) * min(PLAIN_TILE_WORDS, facts.vocab_size) * e
    if work.is_cpu:
        tile *= 4  # without Triton the tile's softmax is torch operations, in fp32
    # In fp32 while it is added up, then in the weight's own dtype.
    weight_gradient = (4 + (work.adapter_bytes if work.adapter_bytes < 4 else 0)) * facts.vocab_size * hidden if adapter.trains_head else 0
    if adapter.trains_head and work.adapter_bytes > e:
        weight_gradient += min(PLAIN_TILE_WORDS, facts.vocab_size) * hidden * e  # a tile's part of the weight in 16 bits
    # What is graded, its gradient in fp32; the final norm's input in fp32 and its output.
    return tile + graded * hidden * (4 + stream) + tokens * hidden * (4 + stream) + weight_gradient


def process_overhead(device: DeviceProfile, work: Workload) -> Overhead:
    """Context and workspaces of a run on that device."""
    if work.is_cpu:
        return Overhead(0, 0)
    is_hopper = device.capability is not None and (9, 0) <= device.capability < (11, 0)
    each = HOPPER_WORKSPACE_BYTES if is_hopper else WORKSPACE_BYTES
    kernels = FAST_CONTEXT_BYTES if work.is_fast else 0
    return Overhead(device.context_bytes + kernels, each * (3 if work.is_fast else 2) + 2 * MIB)


def load_reserved_bytes(facts: ModelFacts, config: RunConfig, work: Workload) -> int:
    """What the allocator has reserved when the base is loaded: all of it and the largest layer in 16 bits.

    A base that is split is loaded into main memory, from which each card takes its share.
    """
    held = sum(_base_bytes(facts, config, work))
    return held if config.launch.sharding == "fsdp" else held + _largest_tensor(facts, work)


def _slack(  # noqa: PLR0917
    facts: ModelFacts, activations: int, loss_head: int, tokens: int, work: Workload, device: DeviceProfile
) -> int:
    """What the allocator reserves beyond what it hands out, fitted to runs on an H100 (`tests/bench/vram_grid.py`).

    With segments that grow (26 runs) little more than one tensor of the MLP's width lies idle, in a graph's pool nearly two; where the MLP
    runs in tiles (7 runs on an H200) that is of a tile, and two of the model's width lie idle beside it. Without
    (44 runs), freed blocks of one size do not serve for another; and padded batches, which differ in length from step to step, each
    leave a tile of logits of their own size.
    """
    if work.is_cpu:
        # The system's allocator gives little back; the tile's softmax has temporaries in fp32 (four runs of the demo, within 8 %).
        return 219 * MIB + round(0.29 * activations + 1.9 * loss_head)
    rows = tile_rows(tokens, facts.hidden_size) if work.is_fast and facts.norms_per_layer == 2 and not work.kept_layers else tokens
    wide = rows * facts.intermediate_size * work.element_bytes
    if device.grows_segments:
        beside = 2 * tokens * facts.hidden_size * work.element_bytes if rows < tokens else 0
        return 20 * MIB + round((1.7 if work.is_fast else 0.9) * wide) + beside
    if work.is_fast:
        return 95 * MIB + round(4.8 * wide + 0.04 * (activations + loss_head))
    return 26 * MIB + round(1.74 * wide) + (padding_slack(facts, work) if work.has_mask else 0)


def padding_slack(facts: ModelFacts, work: Workload) -> int:
    """What batches of changing length leave unused."""
    tile = min(work.tokens, PLAIN_TILE_TOKENS) * min(PLAIN_TILE_WORDS, facts.vocab_size) * work.element_bytes
    return 30 * MIB + round(1.3 * tile)


def beside_the_graph(facts: ModelFacts, config: RunConfig, adapter: Adapter, work: Workload) -> int:
    """An evaluation while a captured step keeps its memory for itself; 0 on the plain path, whose memory is used again."""
    return sum(_evaluation(facts, config, adapter, work)) if work.is_fast and work.eval_tokens else 0


def _idle_scores(facts: ModelFacts, work: Workload) -> int:
    """What an evaluation with capped scores leaves unused: the place of the scores in 16 bits, into which their fp32 copies do not fit.

    Of ten simulated checks of Gemma 2 (`tests/bench/vram_families.py`) the closed form was up to 10 % below without it and is within 4.2 %
    with it; eager attention that caps nothing leaves no such place.
    """
    if not work.eval_tokens or work.is_cpu or not work.is_capped or not work.on_plain_path().is_eager:
        return 0
    return work.element_bytes * work.eval_tokens * work.eval_row_tokens * facts.num_heads


def _largest_tensor(facts: ModelFacts, work: Workload) -> int:
    """While a layer is quantized its 16-bit weights are on the card."""
    return max(linear.num_weights for linear in facts.linears) * work.element_bytes


def _doubts(facts: ModelFacts, config: RunConfig, device: DeviceProfile, adapter: Adapter, work: Workload) -> tuple[str, ...]:
    candidates = (
        (facts.model_type not in MEASURED_FAMILIES, f"no model of the family {facts.model_type}"),
        (config.lora.dora, "no run with DoRA"),
        (adapter.num_saved_params > 0, "no run with layers trained in full"),
        (work.attention != "fused", "no run whose attention keeps its scores"),
        (work.window is not None and work.row_tokens >= work.window, "no run with rows longer than the model's window"),
        (not device.is_cpu and work.dtype != "bfloat16", f"no run in {work.dtype}"),
        (work.num_devices > 1, "no run on several cards"),
    )
    return tuple(words for holds, words in candidates if holds)


def _notes(facts: ModelFacts, device: DeviceProfile, work: Workload) -> tuple[str, ...]:
    measured = "; the first run measures it" if device.is_present else ""
    candidates = (
        (work.num_sharing > 1, f"Each of the {work.num_sharing} processes needs a model of its own in this memory."),
        (work.attention == "math", "On this card attention needs memory with the square of the length."),
        (work.is_eager, "Attention keeps its scores: memory grows with the square of the length."),
        (device.context_source == "assumed", f"The share of CUDA itself is assumed{measured}."),
        (facts.num_windowed_layers > 0, "A sliding window saves time, not memory."),
    )
    return tuple(words for holds, words in candidates if holds)
