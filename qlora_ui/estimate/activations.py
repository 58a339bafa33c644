"""What one decoder layer keeps for its backward pass, and what it needs while it works.

Symbols as in the module's formulas: H hidden, F MLP width, Q = heads x head size, K = key-value heads x head size, r LoRA rank,
e bytes of a hidden state, N tokens. The lists follow what autograd saves, tensor by tensor (transformers 5.24, peft 0.21, torch 2.13), and
are compared with a simulation of the real code by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.base.units import MIB
from qlora_ui.estimate.adapter import Adapter
from qlora_ui.estimate.workload import Workload
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.sections import LoraSection

FAST_HELD_BYTES = 72 * MIB
"""As `engine/fast/recompute.py` has it."""
TILE_NUMBERS, MIN_TILE_ROWS = 2**22, 512
"""Numbers in the input of a tile of the fast path's MLP: 1,024 tokens of a model that is 4,096 wide, whose products still fill a card."""

LOSS_TOKENS = 2048
"""Tokens of a tile of the fast path's loss; TRL's are 4,096, which would need twice the memory."""
LOSS_WORDS = 32768
"""Words that TRL's fused head multiplies at a time."""
LOGIT_BYTES = 160 * MIB
"""Logits that take no more are kept for their gradient; larger ones are multiplied again, as TRL does, or come in fewer rows."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one decoder layer for a whole micro-batch."""

    saved: int
    """Kept from forward to backward where the layer is not recomputed."""
    again: int
    """Kept from its recomputation to its backward pass, which follows at once."""
    checkpoint: int
    """Kept where it is recomputed: its input; on the fast path the adapter's inner products too."""
    working: int
    """On top of what is saved, at the worst moment of its backward pass."""
    forward_working: int
    """Without gradients (evaluation): the worst moment of its forward pass."""


def layer_bytes(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload, *, rows: int, row_tokens: int) -> LayerBytes:
    """Memory of a decoder layer on the path that the workload takes."""
    tokens, e, stream = rows * row_tokens, work.element_bytes, work.stream_bytes
    largest = max(linear.num_weights for linear in facts.linears) * e
    quadratic_saved, quadratic_working = _quadratic(facts, work, rows, row_tokens)
    hidden, mlp = facts.hidden_size, facts.intermediate_size
    # Gemma 2 and 3, whose norms follow too, are recomputed from nothing but a layer's input (engine/fast/apply.py).
    keeps_tape = facts.norms_per_layer == 2
    if work.is_fast:
        saved = again = int(tokens * _saved_fast(facts, adapter, lora, work))
        working = _working_fast(facts, work, tokens, quadratic_working, keeps_tape=keeps_tape)
        if keeps_tape and tile_rows(tokens, hidden) < tokens:
            again -= 2 * tokens * mlp * e
            if work.kept_layers < facts.num_layers:
                working = _working_in_tiles(facts, work, tokens) + quadratic_working
    else:
        attention, rest = _saved_plain(facts, adapter, lora, work, work.masked_share(rows, row_tokens))
        saved = again = int(tokens * (attention + rest)) + quadratic_saved + _dora_saved(adapter, lora, e)
        in_mlp = _mlp_working(adapter, tokens * stream * mlp, largest) + (_dora_working(adapter, e, stream) if lora.dora else 0)
        # Where a norm follows the MLP, its backward pass comes first, with six tensors in fp32.
        in_norm = 6 * 4 * tokens * hidden if facts.norms_per_layer > 2 else 0
        # Backward comes to attention last, when what the MLP had kept is gone.
        working = max(in_mlp, in_norm, quadratic_working + 3 * tokens * stream * hidden - int(tokens * rest))
    # Gate, its activation, up and their product; or the product with the weight that it is multiplied by.
    forward_mlp = tokens * stream * (4 * mlp + 3 * hidden)
    forward_down = tokens * stream * (mlp + 3 * hidden) + largest
    return LayerBytes(
        saved=saved,
        again=again,
        checkpoint=tokens * (stream * hidden + (e * _inner_width(adapter, lora) if work.is_fast and keeps_tape else 0)),
        working=working,
        forward_working=max(forward_mlp, forward_down, _forward_scores(facts, work, rows, row_tokens) + tokens * stream * 4 * hidden),
    )


def logit_tile(num_rows: int, vocab_size: int, element_bytes: int, *, exact: bool) -> tuple[int, int]:
    """Rows and columns of a tile of logits in the fast path's loss.

    `exact`: as many rows as there are, up to 2,048, so that the gradient's product is TRL's, and a part of the vocabulary at a time where
    all of it would be too large; else no more rows than fit with all of the vocabulary, so that nothing is multiplied twice.
    """
    every = -(-vocab_size // 64) * 64
    if exact:
        rows = min(num_rows, LOSS_TOKENS)
        return rows, every if rows * every * element_bytes <= LOGIT_BYTES else min(every, LOSS_WORDS)
    return min(num_rows, max(LOGIT_BYTES // (every * element_bytes) // 64 * 64, 64)), every


def tile_rows(num_rows: int, num_hidden: int) -> int:
    """Rows of a tile of a recomputed layer's MLP on the fast path; all where tiles would save nothing.

    For F the MLP's width, N tokens whole are 3 F N numbers; tiles of T rows are 3 F T and the matrices dequantized for all of them, 3 F H.
    """
    most = max(TILE_NUMBERS // num_hidden, MIN_TILE_ROWS)
    if num_rows <= num_hidden + most:
        return num_rows
    even = -(-num_rows // max(round(num_rows / most), 1))
    return min(-(-even // 64) * 64, num_rows)


def _working_fast(facts: ModelFacts, work: Workload, tokens: int, quadratic: int, *, keeps_tape: bool) -> int:
    """First the down projection's weight with the MLP's product, then gate's and up's side by side with the gradient of their input."""
    e, hidden = work.element_bytes, facts.hidden_size
    is_recomputed = keeps_tape and work.kept_layers < facts.num_layers
    at_down, at_gate = _dense_weights(facts, e, is_recomputed=is_recomputed)
    # The layer's output and its gradient; nobody reads the output of a recomputation.
    outputs = (1 if is_recomputed else 2) * tokens * e * hidden
    return max(tokens * e * facts.intermediate_size + at_down, tokens * e * hidden + at_gate) + outputs + quadratic


def _working_in_tiles(facts: ModelFacts, work: Workload, tokens: int) -> int:
    """A tile of the MLP with its three matrices; or attention, when what the MLP's norm had kept is gone and two gradients are as large.

    Attention has the gradients of its output, of q in fp32 and of keys and values for every head; then all of them twice, to join them.
    """
    e, hidden, mlp = work.element_bytes, facts.hidden_size, facts.intermediate_size
    q, kv = facts.query_width, facts.key_width
    in_mlp = 3 * mlp * e * (hidden + tile_rows(tokens, hidden)) + tokens * e * hidden
    repeated = 2 * q * e if kv < q else 0
    return max(in_mlp, tokens * max(2 * q * e + 4 * q + repeated + 2 * kv * e, q * e + 2 * (q + 2 * kv) * e))


def _saved_plain(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload, masked: float) -> tuple[float, float]:
    """Bytes a token, of attention with the norm before it and of the rest: transformers' layer with PEFT's LoRA on bitsandbytes' layers."""
    e, stream, hidden, mlp = work.element_bytes, work.stream_bytes, facts.hidden_size, facts.intermediate_size
    q, kv = facts.query_width, facts.key_width
    norms = facts.norms_per_layer * (4 * hidden + 4) / 2  # fp32 input of each norm, and its 1/rms
    inputs = {"qkv": hidden, "o": q, "mlp": hidden, "down": mlp}
    kept = dict.fromkeys(inputs, 0.0)
    counts = dict.fromkeys(inputs, 0)
    for linear in adapter.linears:
        source = _input_of(linear.name)
        counts[source] += 1
        # DoRA scales the base's product and the update: both are kept.
        base = e if lora.dropout > 0 else stream
        kept[source] += lora.rank * e + ((base + e) * linear.num_out if lora.dora else 0)
    for name, width in inputs.items():
        if lora.dropout > 0:
            kept[name] += counts[name] * width * (e + 1)  # each target drops for itself: its output and its mask
        elif counts[name] and name != "o":  # attention keeps its output anyway
            kept[name] += width * e * (counts[name] if stream > e else 1)  # each target takes it to 16 bits for itself
    attention = norms + _attention_plain(facts, work, q, kv, masked) + kept["qkv"] + kept["o"]
    return attention, norms + 3 * mlp * stream + kept["mlp"] + kept["down"]  # gate, act(gate), up


def _attention_plain(facts: ModelFacts, work: Workload, q: int, kv: int, masked: float) -> float:
    e = work.element_bytes
    total = 0.0
    if facts.has_qk_norm:
        total += 4 * (q + kv)
    # transformers repeats grouped heads where there is a mask, eager and unfused attention always.
    repeated = (1.0 if work.attention in ("eager", "math") else masked) if kv < q else 0.0
    keys = 2 * q * e * repeated + 2 * kv * e * (1 - repeated)
    if any(linear.name == "qkv_proj" for linear in facts.linears):
        keys += (q + kv) * e * (1 - repeated)  # the values are a view that holds the whole qkv buffer
    return total + 2 * q * e + keys + 4 * facts.num_heads


def _saved_fast(facts: ModelFacts, adapter: Adapter, lora: LoraSection, work: Workload) -> float:
    """Bytes a token of the fused layer: the residual stream twice, two norm outputs, qkv, attention output, gate|up, inner products.

    Dropout costs nothing: its mask is computed again.
    """
    e, hidden, mlp = work.element_bytes, facts.hidden_size, facts.intermediate_size
    q, kv = facts.query_width, facts.key_width
    total = 2.0 * facts.norms_per_layer * hidden * e + facts.norms_per_layer * 4
    total += (q + 2 * kv) * e + q * e + 4 * facts.num_heads
    if facts.has_qk_norm:
        total += (q + kv) * e
    return total + 2 * mlp * e + _inner_width(adapter, lora) * e


def _inner_width(adapter: Adapter, lora: LoraSection) -> int:
    """Columns of a layer's inner products on the fast path: a rank for each target, padded for its kernels."""
    return len(adapter.linears) * max(16, 1 << (lora.rank - 1).bit_length())


def _dense_weights(facts: ModelFacts, e: int, *, is_recomputed: bool) -> tuple[int, int]:
    """Dense weights that are there while the fast path differentiates (the down projection, gate and up).

    A layer that was recomputed holds on to what it has dequantized, as far as that fits FAST_HELD_BYTES.
    """
    merged = dict.fromkeys(("qkv", "o", "mlp", "down"), 0)
    for linear in facts.linears:
        merged[_input_of(linear.name)] += linear.num_weights * e
    held: dict[str, int] = {}
    for name, size in merged.items() if is_recomputed else ():
        if sum(held.values()) + size <= FAST_HELD_BYTES:
            held[name] = size
    at_down = sum({**held, "down": merged["down"]}.values())
    held.pop("down", None)
    return at_down, sum({**held, "mlp": merged["mlp"]}.values())


def _input_of(name: str) -> str:
    if name == "o_proj":
        return "o"
    if name in ("gate_proj", "up_proj", "gate_up_proj"):
        return "mlp"
    return "down" if name == "down_proj" else "qkv"


def _quadratic(facts: ModelFacts, work: Workload, rows: int, row_tokens: int) -> tuple[int, int]:
    """(kept by a layer, needed while it works) with the square of the length: masks and, unfused, scores."""
    square = rows * row_tokens * row_tokens
    e = work.element_bytes
    scores = square * facts.num_heads
    if work.attention == "rows":
        # Of one row: what capping and softmax have saved, and softmax's two gradients in fp32.
        return 0, (3 * 4 + e) * scores // rows
    if work.attention == "eager":
        # Softmax in fp32 and its copy in e; capping keeps its own result too.
        return (4 + e + (e if work.is_capped else 0)) * scores, 2 * 4 * scores
    if work.attention == "math" and not work.masked_share(rows, row_tokens):
        return 4 * scores, 2 * 4 * scores
    # The mask as a bias, made anew by every layer that has one.
    return round(e * square * work.masked_share(rows, row_tokens)), 0


def _forward_scores(facts: ModelFacts, work: Workload, rows: int, row_tokens: int) -> int:
    """What attention needs where nothing is kept."""
    if work.attention != "eager":
        return _quadratic(facts, work, rows, row_tokens)[1]
    e, tokens = work.element_bytes, rows * row_tokens
    # The scores as they are, in fp32 and after softmax at once, beside keys and values for every head.
    repeated = 2 * e * tokens * facts.query_width if facts.num_kv_heads < facts.num_heads else 0
    return (e + 2 * 4) * tokens * row_tokens * facts.num_heads + repeated


def _mlp_working(adapter: Adapter, product: int, largest: int) -> int:
    """The gradient of the MLP's product, through the weight and through the adapter; or with those of both of its factors.

    A trained down projection keeps the product, whose place the second factor's gradient then takes.
    """
    if any(linear.name == "down_proj" for linear in adapter.linears):
        return 2 * product + largest
    return max(product + largest, 3 * product)


def _dora_saved(adapter: Adapter, lora: LoraSection, e: int) -> int:
    """With dropout DoRA multiplies the dropped input by the dense weight, which is kept for the gradient of that input."""
    return sum(linear.num_weights for linear in adapter.linears) * e if lora.dora and lora.dropout > 0 else 0


def _dora_working(adapter: Adapter, e: int, stream: int) -> int:
    """DoRA measures the whole weight of a layer: base, update, its multiple and the sum in full, and an identity matrix for the update.

    Where trained numbers are fp32 the identity is, too, until it is taken to 16 bits for the product.
    """
    widened = stream > e
    each = 4 * stream + (e if widened else 0)
    return max(
        (
            max(each * linear.num_weights + e * linear.num_in**2, (stream + e if widened else 0) * linear.num_in**2)
            for linear in adapter.linears
        ),
        default=0,
    )
