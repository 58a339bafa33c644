"""The shape of the work: how long a batch is, in which precision, on which path; from settings, device and what is known of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_ui.base.errors import Problem
from qlora_ui.estimate.adapter import Adapter, adapter_of, layer_problems
from qlora_ui.estimate.precision import ELEMENT_BYTES, adapter_bytes, compute_dtype
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import optimizer_words

FAST_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "gemma2", "gemma3_text")
FAST_MAX_RANK = 128


@dataclass(frozen=True, slots=True)
class DataShape:
    """What is known of the dataset; None where it was not looked at."""

    num_rows: int | None = None
    mean_tokens: float | None = None
    longest_tokens: int | None = None
    """Of the rows that are trained on, before they are cut."""
    longest_eval_tokens: int | None = None
    trained_share: float = 1.0
    """Share of tokens that carry a label."""
    lengths: tuple[int, ...] = ()
    """Tokens of every row, or of a sample of them: quantiles do."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What one micro-step computes."""

    num_rows: int
    row_tokens: int
    eval_rows: int
    eval_row_tokens: int
    trained_share: float
    dtype: str
    element_bytes: int
    """Of a hidden state and of a weight that is not quantized."""
    adapter_bytes: int
    """Of a trained number."""
    stream_bytes: int
    """Of a number of the residual stream: in fp16, where what is trained is fp32, a trained embedding or DoRA's magnitudes make it fp32."""
    is_cpu: bool
    is_packed: bool
    is_fast: bool
    attention: str
    """`fused`; `eager`: every layer keeps its scores as a matrix; `math`: torch's unfused one, in fp32, where no mask is given; `rows`: the
    packed one where no kernel serves, its scores written out a row at a time."""
    is_capped: bool
    """The model caps its scores, which no fused kernel does."""
    has_flash: bool
    """Whether the card has a flash kernel: Ampere and later."""
    window: int | None
    """Positions that a windowed layer's attention sees."""
    windowed_share: float
    """Of the layers."""
    kept_layers: int
    """Layers that are not recomputed."""
    num_devices: int
    num_sharing: int
    """Processes that hold all of this in one memory: those of a processor on this computer; a card has one."""

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch, padding included."""
        return self.num_rows * self.row_tokens

    @property
    def eval_tokens(self) -> int:
        """Positions of an evaluation batch."""
        return self.eval_rows * self.eval_row_tokens

    @property
    def has_mask(self) -> bool:
        """Whether attention gets a mask of its own: several padded rows on the plain path."""
        return self.num_rows > 1 and not self.is_packed and not self.is_fast

    @property
    def is_eager(self) -> bool:
        """Whether every layer keeps its scores."""
        return self.attention == "eager"

    def on_plain_path(self) -> Workload:
        """The same as transformers computes it: the checks of a run on the fast path too."""
        is_kept = self.is_packed or not self.is_capped
        return replace(self, is_fast=False, attention=self.attention if is_kept else "eager")

    def num_masks(self, rows: int, row_tokens: int) -> int:
        """Masks of a padded batch on the plain path: transformers makes one for each kind of layer that needs one."""
        return sum(self._masks(rows, row_tokens))

    def masked_share(self, rows: int, row_tokens: int) -> float:
        """Share of the layers that get a mask."""
        full, windowed = self._masks(rows, row_tokens)
        return (1 - self.windowed_share) * full + self.windowed_share * windowed

    def _masks(self, rows: int, row_tokens: int) -> tuple[bool, bool]:
        if self.is_packed:
            return False, False
        always = rows > 1 or self.is_eager
        beyond = self.window is not None and row_tokens >= self.window
        return self.windowed_share < 1 and always, self.windowed_share > 0 and (always or beyond)


def workload_of(facts: ModelFacts, config: RunConfig, device: DeviceProfile, data: DataShape | None = None) -> Workload:
    """The largest micro-step that these settings lead to."""
    data = data or DataShape()
    dtype = compute_dtype(config.quant, is_cpu=device.is_cpu, supports_bf16=device.supports_bf16)
    adapter = adapter_of(facts, config.lora)
    is_fast = fast_path_obstacle(facts, config, device, adapter) is None
    is_packed = config.train.packing == "on" or (
        config.train.packing == "auto" and not device.is_cpu and dtype == "bfloat16" and config.model.attention == "auto"
    )
    longest = config.data.max_length
    # A packed row is filled up to the longest length; a padded one is as long as its longest conversation.
    row = longest if is_packed else min(longest, data.longest_tokens or longest)
    eval_row = longest if is_packed else min(longest, data.longest_eval_tokens or data.longest_tokens or longest)
    has_eval = config.eval.share > 0
    is_windowed = bool(facts.num_windowed_layers and facts.sliding_window)
    return Workload(
        num_rows=config.train.batch_size,
        row_tokens=row,
        # Packed rows are checked in batches of the training's size.
        eval_rows=(config.train.batch_size if is_packed else config.eval.batch_size) if has_eval else 0,
        eval_row_tokens=eval_row,
        trained_share=data.trained_share,
        dtype=dtype,
        element_bytes=ELEMENT_BYTES[dtype],
        adapter_bytes=adapter_bytes(dtype),
        stream_bytes=adapter_bytes(dtype) if _promotes_stream(config, adapter) else ELEMENT_BYTES[dtype],
        is_cpu=device.is_cpu,
        is_packed=is_packed,
        is_fast=is_fast,
        attention=_attention(facts, config, device, dtype, is_packed=is_packed, is_fast=is_fast),
        is_capped=facts.attention_softcap is not None,
        has_flash=_has_flash(device),
        window=facts.sliding_window if is_windowed else None,
        windowed_share=facts.num_windowed_layers / facts.num_layers if is_windowed else 0.0,
        kept_layers=num_kept_layers(facts, config),
        num_devices=config.launch.num_processes * config.launch.num_machines,
        num_sharing=config.launch.num_processes if device.is_cpu else 1,
    )


def _promotes_stream(config: RunConfig, adapter: Adapter) -> bool:
    """Whether what is added to the residual stream has the trained numbers' dtype; plain LoRA's products are autocast to 16 bits."""
    return adapter.trains_embedding or (config.lora.dora and any(linear.name in ("o_proj", "down_proj") for linear in adapter.linears))


def _has_flash(device: DeviceProfile) -> bool:
    return device.capability is None or device.capability >= (8, 0)


def _attention(facts: ModelFacts, config: RunConfig, device: DeviceProfile, dtype: str, *, is_packed: bool, is_fast: bool) -> str:
    """Which code computes the attention."""
    has_kernel = not device.is_cpu and _has_flash(device) and dtype != "float32"
    if is_fast or is_packed:
        return "fused" if has_kernel and facts.attention_softcap is None else "rows"
    if config.model.attention == "eager" or facts.attention_softcap is not None:
        return "eager"
    # torch's memory-efficient kernel takes no grouped heads, and serves only where heads are repeated for a mask's sake.
    is_grouped = facts.num_kv_heads < facts.num_heads
    return "math" if is_grouped and not has_kernel and not device.is_cpu else "fused"


def num_kept_layers(facts: ModelFacts, config: RunConfig) -> int:
    """Layers whose activations stay: all without checkpointing, none with it, the chosen number in between."""
    if config.train.checkpointing == "none":
        return facts.num_layers
    return min(config.train.kept_layers, facts.num_layers) if config.train.checkpointing == "partly" else 0


def fast_path_obstacle(facts: ModelFacts, config: RunConfig, device: DeviceProfile, adapter: Adapter | None = None) -> str | None:
    """Why the fast path will not run, in words; None where it will. The same conditions as the engine's, from settings alone."""
    adapter = adapter or adapter_of(facts, config.lora)
    dtype = compute_dtype(config.quant, is_cpu=device.is_cpu, supports_bf16=device.supports_bf16)
    reasons = (
        (config.train.fast_path == "off", "it is switched off"),
        (device.is_cpu, "it needs an NVIDIA card"),
        (dtype != "bfloat16", "it computes in bf16"),
        (config.model.attention == "eager", "eager attention was chosen"),
        (facts.model_type not in FAST_FAMILIES, f"{facts.model_type} has not been tried with it"),
        (config.lora.dora, "DoRA is no plain LoRA"),
        (config.train.neftune > 0, "embedding noise changes with every forward pass"),
        (adapter.num_saved_params > 0, "layers are trained in full"),
        (config.lora.rank > FAST_MAX_RANK, f"it goes up to rank {FAST_MAX_RANK}"),
        (config.launch.sharding == "fsdp", "the base is split over cards"),
        (config.launch.num_processes > 1 or config.launch.num_machines > 1, "several cards share the work"),
    )
    return next((reason for holds, reason in reasons if holds), None)


def model_problems(facts: ModelFacts, config: RunConfig) -> list[Problem]:
    """What the settings ask of this model that it cannot do."""
    problems = layer_problems(facts, config.lora)
    if config.model.attention == "sdpa" and facts.attention_softcap is not None:
        why = "It caps its attention scores, which SDPA would leave out"
        problems.append(Problem("model.attention", "SDPA cannot compute this model", why, "Choose automatic", "attention"))
    return problems


def otherwise(facts: ModelFacts, config: RunConfig, device: DeviceProfile) -> tuple[str, ...]:
    """What will be otherwise than the settings say, in sentences."""
    obstacle = fast_path_obstacle(facts, config, device)
    # That a CPU has no fast path is no news to anybody, nor that it is off where it was switched off.
    is_expected = device.is_cpu or config.train.fast_path == "off"
    fast_path = f"The fast path will be off: {obstacle}." if obstacle is not None and not is_expected else ""
    return tuple(filter(None, (fast_path, optimizer_words(config, on_gpu=not device.is_cpu))))


def beyond_context(facts: ModelFacts, config: RunConfig, data: DataShape | None) -> str:
    """A sentence where conversations may be longer than the model was made for, and some are or may be; else empty."""
    limit, longest = config.data.max_length, data.longest_tokens if data is not None else None
    context = facts.context_tokens
    if min(limit, longest or limit) <= context:
        return ""
    return f"The model was made for at most {context:,} tokens; conversations may have {limit:,}. It learns little from what lies beyond."
