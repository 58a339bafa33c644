"""The shape of the work: how long a batch is, in which precision, on which path; from settings, device and what is known of the data."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.estimate.adapter import Adapter, adapter_of
from qlora_ui.estimate.precision import ELEMENT_BYTES, adapter_bytes, compute_dtype
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig

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
    is_cpu: bool
    is_packed: bool
    is_fast: bool
    is_eager: bool
    """Attention scores exist as a matrix (eager attention, soft-capped scores)."""
    is_capped: bool
    """The model caps its scores, which no fused kernel does."""
    window: int | None
    """Positions that a windowed layer's attention sees, where rows are longer."""
    is_math: bool
    """torch falls back to its unfused attention, in fp32."""
    kept_layers: int
    """Layers that are not recomputed."""
    num_devices: int

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
    def num_masks(self) -> int:
        """Masks of a batch on the plain path: one of the padding, and one of the window where rows are longer than that."""
        if self.is_packed or self.is_fast:
            return 0
        return int(self.has_mask) + int(self.window is not None)


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
    old_card = device.capability is not None and device.capability < (8, 0)
    is_grouped = facts.num_kv_heads < facts.num_heads
    plain = not is_fast and not device.is_cpu
    is_eager = config.model.attention == "eager" or (facts.attention_softcap is not None)
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
        is_cpu=device.is_cpu,
        is_packed=is_packed,
        is_fast=is_fast,
        is_eager=is_eager,
        is_capped=facts.attention_softcap is not None,
        window=facts.sliding_window if facts.num_windowed_layers and facts.sliding_window and row > facts.sliding_window else None,
        # torch's flash kernel wants 16 bits and Ampere; its memory-efficient one takes no grouped heads.
        is_math=plain and not is_eager and is_grouped and (old_card or dtype == "float32"),
        kept_layers=num_kept_layers(facts, config),
        num_devices=config.launch.num_processes * config.launch.num_machines,
    )


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
        (adapter.num_saved_params > 0, "layers are trained in full"),
        (config.lora.rank > FAST_MAX_RANK, f"it goes up to rank {FAST_MAX_RANK}"),
        (config.launch.sharding == "fsdp", "the base is split over cards"),
        (config.launch.num_processes > 1 or config.launch.num_machines > 1, "several cards share the work"),
    )
    return next((reason for holds, reason in reasons if holds), None)
