"""Triton kernels of a decode step: a few rows with one new token each, read through 4-bit weights, LoRA and a cache of slots.

Shapes: M rows (1 or 2), K features in, J projections that share an input, R LoRA rank padded to a power of two, D head size,
L slots of the cache, S parts into which a row's slots are split. All sums run in fp32.
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_math import tanh


@triton.jit
def token_inner(
    x, out, factors, a0, a1, a2, width, RANK: tl.constexpr, R: tl.constexpr, J: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr
):
    """out[m, j, r] = x[m] . a_j[r], times the row's factor where FACTOR; a_j is (RANK, K), out (M, J, R) fp32."""
    row = tl.program_id(1)
    j = tl.program_id(0) // RANK
    r = tl.program_id(0) % RANK
    a = a0
    if j == 1:
        a = a1
    if j == 2:
        a = a2
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        cols = start + lane
        ok = cols < width
        left = tl.load(x + row * width + cols, mask=ok, other=0.0).to(tl.float32)
        acc += left * tl.load(a + r * width + cols, mask=ok, other=0.0).to(tl.float32)
    total = tl.sum(acc, 0)
    if FACTOR:
        total *= tl.load(factors + row).to(tl.float32)
    tl.store(out + (row * J + j) * R + r, total)


@triton.jit
def _finish(
    total,
    out,
    residual,
    inner,
    bias,
    b,
    scale,
    row,
    rows,
    ok,
    j,
    place,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Add bias, LoRA and residual to a row's products and store them."""
    if BIAS:
        total += tl.load(bias + rows, mask=ok, other=0.0).to(tl.float32)
    if LORA:
        rank = tl.arange(0, R)
        up = tl.load(b + rows[:, None] * RANK + rank[None, :], mask=ok[:, None] & (rank[None, :] < RANK), other=0.0).to(tl.float32)
        down = tl.load(inner + (row * J + j) * R + rank, mask=rank < RANK, other=0.0)
        total += scale * tl.sum(up * down[None, :], 1)
    if RESIDUAL:
        total += tl.load(residual + place, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _pairs(x, index, ok, PAIRED: tl.constexpr):
    """The features 2 * index and 2 * index + 1 in fp32; where PAIRED, 16-bit ones are read two at a time, as 32-bit words."""
    if PAIRED:
        kind: tl.constexpr = x.dtype.element_ty
        word = tl.load(x.to(tl.pointer_type(tl.int32)) + index, mask=ok, other=0)
        first = (word & 0xFFFF).to(tl.int16).to(kind, bitcast=True)
        return first.to(tl.float32), (word >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    else:
        return tl.load(x + 2 * index, mask=ok, other=0.0).to(tl.float32), tl.load(x + 2 * index + 1, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _values(byte, code, LOOKUP: tl.constexpr, CONSTRAINTS: tl.constexpr):
    """The values of the high and of the low 4 bits; LOOKUP is assembly for it (byte_lookup.py), empty to look them up in `code`."""
    if LOOKUP == "":
        codes = byte.to(tl.int32)
        return tl.load(code + (codes >> 4)), tl.load(code + (codes & 15))
    else:
        high, low = tl.inline_asm_elementwise(LOOKUP, CONSTRAINTS, [byte], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)
        return high.to(tl.float32), low.to(tl.float32)


@triton.jit
def token_product(
    x,
    out,
    residual,
    inner,
    w0,
    w1,
    w2,
    absmax0,
    absmax1,
    absmax2,
    outer0,
    outer1,
    outer2,
    offset0,
    offset1,
    offset2,
    bias0,
    bias1,
    bias2,
    b0,
    b1,
    b2,
    scale0,
    scale1,
    scale2,
    code,
    outer_code,
    num0,
    num1,
    num2,
    blocks0,
    blocks1,
    width,
    out_width,
    M: tl.constexpr,
    J: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    OUTER: tl.constexpr,
    PAIRED: tl.constexpr,
    LOOKUP: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    BN: tl.constexpr,
    BB: tl.constexpr,
):
    """out[:, col_j:col_j + num_j] = x @ w_j.T (+ bias_j) (+ scale_j * inner_j @ b_j.T) (+ residual); w_j is 4-bit (num_j, K).

    A program has BN features of one projection and reads BB blocks of each at a time: the blocks that share an absmax.
    """
    block = tl.program_id(0)
    j, col = 0, 0
    w, absmax, outer, offset, bias, b, scale, num = w0, absmax0, outer0, offset0, bias0, b0, scale0, num0
    if J > 1:  # noqa: SIM102  (decided when compiling)
        if block >= blocks0:
            block -= blocks0
            j, col = 1, num0
            w, absmax, outer, offset, bias, b, scale, num = w1, absmax1, outer1, offset1, bias1, b1, scale1, num1
            if J > 2:  # noqa: SIM102
                if block >= blocks1:
                    block -= blocks1
                    j, col = 2, num0 + num1
                    w, absmax, outer, offset, bias, b, scale, num = w2, absmax2, outer2, offset2, bias2, b2, scale2, num2
    half: tl.constexpr = BLOCKSIZE // 2
    rows = block * BN + tl.arange(0, BN)
    ok = rows < num
    place = tl.arange(0, BB)[None, :, None]
    lane = tl.arange(0, half)[None, None, :]
    row_ok = ok[:, None, None]
    source = w + rows[:, None, None] * (width // 2)
    first_block = rows[:, None, None] * (width // BLOCKSIZE)
    total0 = tl.zeros((BN, BB, half), dtype=tl.float32)
    if M > 1:
        total1 = tl.zeros((BN, BB, half), dtype=tl.float32)
    for start in range(0, width // BLOCKSIZE, BB):
        blocks = start + place
        in_row = blocks < width // BLOCKSIZE
        byte = tl.load(source + blocks * half + lane, mask=row_ok & in_row, other=0)
        spot = first_block + blocks
        if NESTED:
            quantized = tl.load(absmax + spot, mask=row_ok & in_row, other=0).to(tl.int32)
            size = tl.load(outer_code + quantized) * tl.load(outer + spot // OUTER, mask=row_ok & in_row, other=0.0) + tl.load(offset)
        else:
            size = tl.load(absmax + spot, mask=row_ok & in_row, other=0.0)
        high, low = _values(byte, code, LOOKUP, CONSTRAINTS)
        even, odd = _pairs(x, blocks * half + lane, in_row, PAIRED)
        total0 += (high * even + low * odd) * size
        if M > 1:
            even, odd = _pairs(x, width // 2 + blocks * half + lane, in_row, PAIRED)
            total1 += (high * even + low * odd) * size
    y0 = tl.sum(tl.sum(total0, 2), 1)
    _finish(y0, out, residual, inner, bias, b, scale, 0, rows, ok, j, col + rows, RANK, R, J, LORA, BIAS, RESIDUAL)
    if M > 1:
        y1 = tl.sum(tl.sum(total1, 2), 1)
        _finish(y1, out, residual, inner, bias, b, scale, 1, rows, ok, j, out_width + col + rows, RANK, R, J, LORA, BIAS, RESIDUAL)


@triton.jit
def token_store(
    heads,
    mixed,
    keys,
    values,
    cache_rows,
    positions,
    heads_stride,
    mixed_stride,
    k_column,
    v_column,
    row_stride,
    head_stride,
    slot_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each row's k and v heads into its slot of the cache; k is read from `heads`, v from `mixed`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    ok = lane < D
    target = tl.load(cache_rows + row) * row_stride + head * head_stride + tl.load(positions + row) * slot_stride + lane
    k = tl.load(heads + row * heads_stride + k_column + head * D + lane, mask=ok)
    v = tl.load(mixed + row * mixed_stride + v_column + head * D + lane, mask=ok)
    tl.store(keys + target, k.to(keys.dtype.element_ty), mask=ok)
    tl.store(values + target, v.to(values.dtype.element_ty), mask=ok)


@triton.jit
def token_attend(
    heads,
    keys,
    values,
    cache_rows,
    positions,
    parts,
    highest,
    sums,
    scale,
    softcap,
    window,
    heads_stride,
    row_stride,
    head_stride,
    slot_stride,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    S: tl.constexpr,
    SLOTS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """One part of a row's slots, for the q heads that share a k head: parts (M, heads, S, D), their highest score and sum (M, heads, S)."""
    row = (tl.program_id(0) // KV).to(tl.int64)
    head = tl.program_id(0) % KV
    part = tl.program_id(1)
    position = tl.load(positions + row).to(tl.int32)
    first = 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0)
    num = tl.cdiv(tl.cdiv(position + 1 - first, S), SLOTS) * SLOTS
    begin = first + part * num
    end = tl.minimum(begin + num, position + 1)
    member = tl.arange(0, 16)
    lane = tl.arange(0, BLOCK)
    of_group = member < GROUP
    q_ok = of_group[:, None] & (lane[None, :] < D)
    q = tl.load(heads + row * heads_stride + (head * GROUP + member[:, None]) * D + lane[None, :], mask=q_ok, other=0.0)
    base = tl.load(cache_rows + row) * row_stride + head * head_stride
    top = tl.full((16,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((16,), dtype=tl.float32)
    acc = tl.zeros((16, BLOCK), dtype=tl.float32)
    for start in range(begin, end, SLOTS):
        slots = start + tl.arange(0, SLOTS)
        seen = slots < end
        k = tl.load(keys + base + slots[None, :] * slot_stride + lane[:, None], mask=seen[None, :] & (lane[:, None] < D), other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(values + base + slots[:, None] * slot_stride + lane[None, :], mask=seen[:, None] & (lane[None, :] < D), other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    spot = (row * (KV * GROUP) + head * GROUP + member) * S + part
    tl.store(highest + spot, top, mask=of_group)
    tl.store(sums + spot, total, mask=of_group)
    tl.store(parts + spot[:, None] * D + lane[None, :], acc, mask=q_ok)


@triton.jit
def token_gather(parts, highest, sums, out, D: tl.constexpr, BLOCK: tl.constexpr, S: tl.constexpr):
    """Put the parts of a head together; out is (M, heads * D)."""
    head = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, S)
    lane = tl.arange(0, BLOCK)
    top = tl.load(highest + head * S + part)
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(share * tl.load(sums + head * S + part), 0)
    ok = lane[None, :] < D
    acc = tl.load(parts + (head * S + part[:, None]) * D + lane[None, :], mask=ok, other=0.0)
    mixed = tl.sum(acc * share[:, None], 0) / total
    tl.store(out + head * D + lane, mixed.to(out.dtype.element_ty), mask=lane < D)
