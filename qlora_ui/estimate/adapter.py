"""What is trained: which layers carry an adapter, how many numbers that is, and what gradients and optimizer keep for each."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.models.facts import Linear, ModelFacts
from qlora_ui.settings.sections import LoraSection


@dataclass(frozen=True, slots=True)
class Adapter:
    """The trained part of a model."""

    linears: tuple[Linear, ...]
    """Targeted layers of one decoder layer."""
    num_lora_params: int
    num_saved_params: int
    """Of modules_to_save, trained in full."""
    trains_embedding: bool
    trains_head: bool
    unknown: tuple[str, ...]
    """Targets that the model does not have."""

    @property
    def num_params(self) -> int:
        """All trained numbers."""
        return self.num_lora_params + self.num_saved_params


def adapter_of(facts: ModelFacts, lora: LoraSection) -> Adapter:
    """What LoRA trains of a model: r·(in + out) for each targeted layer, plus its outputs for DoRA's magnitudes."""
    wanted = set(lora.targets)
    everything = "all-linear" in wanted
    linears = tuple(linear for linear in facts.linears if everything or linear.name in wanted)
    unknown = tuple(sorted(wanted - {linear.name for linear in facts.linears} - {"all-linear"}))
    per_layer = sum(lora.rank * (linear.num_in + linear.num_out) + (linear.num_out if lora.dora else 0) for linear in linears)
    matrix = facts.vocab_size * facts.hidden_size
    embedding, head = "embed_tokens" in lora.modules_to_save, "lm_head" in lora.modules_to_save
    norms = facts.num_norm_params if any("norm" in name for name in lora.modules_to_save) else 0
    return Adapter(
        linears=linears,
        num_lora_params=facts.num_layers * per_layer,
        num_saved_params=matrix * (embedding + head) + norms,
        trains_embedding=embedding,
        trains_head=head,
        unknown=unknown,
    )


def optimizer_bytes(optimizer: str, num_params: int, bytes_each: int) -> int:
    """States of the optimizer.

    torch's AdamW keeps two numbers in the parameter's own dtype; bitsandbytes two of 8 bits with an absmax (fp32) for each 256, or two
    of 32 bits. Paged states are managed memory: the driver may move them out, until then they are on the card.
    """
    if optimizer == "adamw":
        return 2 * bytes_each * num_params
    if optimizer == "paged_adamw_32bit":
        return 8 * num_params
    return 2 * num_params + 2 * 4 * num_params // 256
