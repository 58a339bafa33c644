"""The “What does 4-bit do?” panel: bytes a weight and memory on this model, for each way to keep the base."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.base.units import format_percent
from qlora_ui.estimate.memory import quantized_bytes
from qlora_ui.models.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class QuantizationRow:
    """One way to keep the base."""

    name: str
    bits_per_weight: float
    """Scales included, of the layers that are quantized."""
    layers_bytes: int
    """Linear layers."""
    rest_bytes: int
    """Embeddings, output layer, norms and biases, which stay in 16 bits."""
    about: str

    @property
    def total_bytes(self) -> int:
        return self.layers_bytes + self.rest_bytes


@dataclass(frozen=True, slots=True)
class Explanation:
    """The panel's numbers."""

    rows: tuple[QuantizationRow, ...]
    sentences: tuple[str, ...]


def explain(facts: ModelFacts) -> Explanation:
    """What each format costs on this model, with block size 64 (scales) and 256 (scales of scales), as bitsandbytes has them."""
    weights = facts.num_quantized_params
    rest = 2 * (facts.num_params - weights)
    plain, double = quantized_bytes(facts, double_quant=False), quantized_bytes(facts, double_quant=True)
    rows = (
        QuantizationRow("bf16, as published", 16.0, 2 * weights, rest, "No loss. What LoRA without Q keeps in memory."),
        QuantizationRow("8-bit", 8.0, weights, rest, "For comparison; the app trains on 4 bits."),
        QuantizationRow("NF4", 8 * plain / weights, plain, rest, "16 levels placed where trained weights lie, a scale for each 64."),
        QuantizationRow("NF4, scales compressed too", 8 * double / weights, double, rest, "The scales are kept in 8 bits: same quality."),
        QuantizationRow("FP4", 8 * plain / weights, plain, rest, "16 levels of a tiny floating-point number: as small as NF4, less exact."),
        QuantizationRow("FP4, scales compressed too", 8 * double / weights, double, rest, "As small as the NF4 one, less exact."),
    )
    share = weights / facts.num_params
    kept = "embeddings and norms" if facts.is_tied else "embeddings, the output layer and norms"
    sentences = (
        f"{format_percent(share)} of the weights become 4-bit; {kept} stay in 16 bits.",
        "The 4-bit weights are never changed: they are turned back into 16 bits for each product, and the adapter learns beside them.",
    )
    return Explanation(rows, sentences)
