"""What one decoder layer keeps for its backward pass, and what it needs while it works.

Symbols as in the module's formulas: H hidden, F MLP width, Q = heads x head size, K = key-value heads x head size, r LoRA rank,
e bytes of a hidden state, N tokens. The lists follow what autograd saves, tensor by tensor (transformers 5.24, peft 0.21, torch 2.13), and
are compared with a simulation of the real code by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.estimate.adapter import Adapter
from qlora_ui.estimate.workload import Workload
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.sections import LoraSection


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one decoder layer for a whole micro-batch."""

    saved: int
    """Kept from forward to backward where the layer is not recomputed."""
    checkpoint: int
    """Kept where it is recomputed: its input."""
    working: int
    """On top of what is saved, at the worst moment of its backward pass."""
    forward_working: int
    """Without gradients (evaluation): the worst moment of its forward pass."""


def layer_bytes(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload, *, rows: int, row_tokens: int) -> LayerBytes:
    """Memory of a decoder layer on the path that the workload takes."""
    saved = _saved_fast if work.is_fast else _saved_plain
    tokens, e = rows * row_tokens, work.element_bytes
    largest = max(linear.num_weights for linear in facts.linears) * e
    quadratic_saved, quadratic_working = _quadratic(facts, work, rows, row_tokens)
    hidden, mlp = facts.hidden_size, facts.intermediate_size
    if work.is_fast:
        # First the down projection's weight with the MLP's product, then gate's and up's side by side with the gradient of their input.
        merged = 2 * hidden * mlp * e
        working = max(tokens * e * mlp + hidden * mlp * e, merged + tokens * e * hidden) + 2 * tokens * e * hidden
    else:
        working = 2 * tokens * e * mlp + largest
        if lora.dora:
            working += _dora_working(adapter, e)
    return LayerBytes(
        saved=int(tokens * saved(facts, adapter, lora, work)) + quadratic_saved,
        checkpoint=tokens * e * hidden,
        working=working + quadratic_working,
        forward_working=tokens * e * (3 * mlp + 3 * hidden) + largest + quadratic_working,
    )


def _saved_plain(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload) -> float:
    """Bytes a token: transformers' layer with PEFT's LoRA on bitsandbytes' 4-bit layers."""
    e, hidden, mlp = work.element_bytes, facts.hidden_size, facts.intermediate_size
    q, kv = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    total = float(facts.norms_per_layer * (4 * hidden + 4))  # fp32 input of each norm, and its 1/rms
    total += _attention_plain(facts, work, q, kv)
    total += 3 * mlp * e  # gate, act(gate), up
    inputs = {"qkv": hidden, "o": q, "mlp": hidden, "down": mlp}
    counts = dict.fromkeys(inputs, 0)
    for linear in adapter.linears:
        counts[_input_of(linear.name)] += 1
    for name, width in inputs.items():
        if not counts[name]:
            continue
        if lora.dropout > 0:
            total += counts[name] * width * (e + 1)  # each target drops for itself: its output and its mask
        elif name != "o":  # attention keeps its output anyway
            total += width * e
    total += len(adapter.linears) * lora.rank * e
    if lora.dora:
        total += sum(2 * e * linear.num_out for linear in adapter.linears)
    return total


def _attention_plain(facts: ModelFacts, work: Workload, q: int, kv: int) -> float:
    e = work.element_bytes
    total = 0.0
    if facts.has_qk_norm:
        total += 4 * (q + kv)
    is_repeated = (work.has_mask or work.is_eager or work.is_math) and kv < q
    keys = 2 * q * e if is_repeated else 2 * kv * e
    if not is_repeated and any(linear.name == "qkv_proj" for linear in facts.linears):
        keys += (q + kv) * e  # the values are a view that holds the whole qkv buffer
    return total + 2 * q * e + keys + 4 * facts.num_heads


def _saved_fast(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload) -> float:
    """Bytes a token of the fused layer: the residual stream twice, two norm outputs, qkv, attention output, gate|up, inner products.

    Dropout costs nothing: its mask is computed again.
    """
    e, hidden, mlp = work.element_bytes, facts.hidden_size, facts.intermediate_size
    q, kv = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    total = 2.0 * facts.norms_per_layer * hidden * e + facts.norms_per_layer * 4
    total += (q + 2 * kv) * e + q * e + 4 * facts.num_heads
    if facts.has_qk_norm:
        total += (q + kv) * e
    padded_rank = max(16, 1 << (lora.rank - 1).bit_length())
    return total + 2 * mlp * e + len(adapter.linears) * padded_rank * e


def _input_of(name: str) -> str:
    if name in ("o_proj",):
        return "o"
    if name in ("gate_proj", "up_proj", "gate_up_proj"):
        return "mlp"
    return "down" if name == "down_proj" else "qkv"


def _quadratic(facts: ModelFacts, work: Workload, rows: int, row_tokens: int) -> tuple[int, int]:
    """(kept by a layer, needed while it works) with the square of the length: masks and, unfused, scores."""
    square = rows * row_tokens * row_tokens
    e = work.element_bytes
    if work.is_eager:
        scores = square * facts.num_heads
        return (4 + e) * scores, 2 * 4 * scores  # softmax in fp32 and its copy in e
    if work.is_math:
        return 4 * square * facts.num_heads, 2 * 4 * square * facts.num_heads
    if rows > 1 and not work.is_packed and not work.is_fast:
        return e * square, 0  # the mask as a bias, made anew by every layer
    return 0, 0


def _dora_working(adapter: Adapter, e: int) -> int:
    """DoRA measures the whole weight of a layer: base and update in full, and an identity matrix to make the update."""
    return (
        max((2 * linear.num_weights + linear.num_in**2) * e + 4 * linear.num_weights for linear in adapter.linears)
        if adapter.linears
        else 0
    )
