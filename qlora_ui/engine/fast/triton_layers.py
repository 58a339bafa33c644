"""Triton kernels of a decoder layer: gated MLP, rotary embedding with the norms of its heads, and reading embedding rows.

Shapes: N tokens, F MLP width, R LoRA rank padded to a multiple of 16. All sums run in fp32; where transformers' modules round a number to
the model's dtype on the way, it is rounded here too (`rounded`): in bfloat16 a step's loss and gradients stay those of the plain stack.
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_hash import dropped_key0, dropped_key1, pair_hash
from .triton_math import exact_exp, exact_ratio, exact_tanh, rounded, tanh
from .triton_norms import head_sums, normed, weighted


@triton.jit
def _activate(g, GELU: tl.constexpr, EXACT: tl.constexpr):
    """SiLU, or GELU's approximation; where EXACT with torch's functions and order of operations, to the last bit."""
    if GELU:
        inner = 0.7978845608028654 * (g + 0.044715 * (g * g * g))
        return 0.5 * g * (1.0 + (exact_tanh(inner) if EXACT else tanh(inner)))
    elif EXACT:
        return exact_ratio(g, 1.0 + exact_exp(-g))
    else:
        return g * tl.sigmoid(g)


@triton.jit
def _activate_backward(gradient, g, GELU: tl.constexpr, EXACT: tl.constexpr):
    """The gradient before the activation from the one after it, likewise."""
    if GELU:
        inner = 0.7978845608028654 * (g + 0.044715 * (g * g * g))
        t = exact_tanh(inner) if EXACT else tanh(inner)
        left = 0.5 * g * (1.0 - t * t) * (0.7978845608028654 * (1.0 + 3.0 * 0.044715 * (g * g)))
        return gradient * (0.5 * (1.0 + t) + left)
    else:
        s = exact_ratio(1.0, 1.0 + exact_exp(-g)) if EXACT else tl.sigmoid(g)
        return gradient * s * (1.0 + g * (1.0 - s))


@triton.jit
def _corrected(place, ok, left, b, cols, width, rank, scale, RANK: tl.constexpr, HAS: tl.constexpr):
    """A tile of a frozen product plus its LoRA part, rounded as if it were stored: forward and backward see the same numbers."""
    raw = tl.load(place, mask=ok, other=0.0)
    if HAS:
        b_ok = (rank[:, None] < RANK) & (cols[None, :] < width)
        right = tl.load(b + cols[None, :] * RANK + rank[:, None], mask=b_ok, other=0.0)
        lora = rounded(scale * rounded(tl.dot(left, right, input_precision="ieee"), place), place)
        raw = (raw.to(tl.float32) + lora).to(raw.dtype)
    return raw.to(tl.float32)


@triton.jit
def gated_forward(
    gu,
    xa,
    out,
    b_gate,
    b_up,
    scale_gate,
    scale_up,
    n_rows,
    width,
    j_up,
    xa_stride,
    RANK: tl.constexpr,
    R: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_UP: tl.constexpr,
    GELU: tl.constexpr,
    EXACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out = act(gate + its LoRA) * (up + its LoRA); gu is (N, 2F) and stays as it is."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    ok = row_ok & (cols[None, :] < width)
    place = gu + rows[:, None].to(tl.int64) * (2 * width) + cols[None, :]
    xa_row = xa + rows[:, None].to(tl.int64) * xa_stride + rank[None, :]
    gate_left = tl.load(xa_row, mask=row_ok, other=0.0)
    up_left = tl.load(xa_row + j_up * R, mask=row_ok, other=0.0)
    g = _corrected(place, ok, gate_left, b_gate, cols, width, rank, scale_gate, RANK, HAS_GATE)
    u = _corrected(place + width, ok, up_left, b_up, cols, width, rank, scale_up, RANK, HAS_UP)
    value = rounded(_activate(g, GELU, EXACT), out) * u
    tl.store(out + rows[:, None].to(tl.int64) * width + cols[None, :], value.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["salt", "first_row", "threshold"])
def gated_backward(
    gu,
    dh,
    xa,
    b_gate,
    b_up,
    scale_gate,
    scale_up,
    j_up,
    xa_stride,
    gb,
    seed,
    a_down,
    salt,
    n_rows,
    width,
    half_width,
    first_row,
    threshold,
    inverse_keep,
    RANK: tl.constexpr,
    R: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_UP: tl.constexpr,
    DOWN_RANK: tl.constexpr,
    DOWN_R: tl.constexpr,
    HAS_DOWN: tl.constexpr,
    DROP: tl.constexpr,
    GELU: tl.constexpr,
    EXACT: tl.constexpr,
    BM: tl.constexpr,
):
    """In place: gu (N, 2F) becomes its gradient, dh (N, F) becomes the recomputed act(gate) * up; every LoRA part is added on the way.

    `first_row` is the row of dh in the tensor whose rows the dropout's mask counts.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lane = tl.arange(0, 64)
    rank = tl.arange(0, R)
    down_rank = tl.arange(0, DOWN_R)
    row_ok = rows[:, None] < n_rows
    xa_row = xa + rows[:, None].to(tl.int64) * xa_stride + rank[None, :]
    gate_left = tl.load(xa_row, mask=row_ok, other=0.0)
    up_left = tl.load(xa_row + j_up * R, mask=row_ok, other=0.0)
    if HAS_DOWN:
        left = tl.load(gb + rows[:, None].to(tl.int64) * DOWN_R + down_rank[None, :], mask=row_ok, other=0.0)
        if DROP:
            h = pair_hash(
                first_row + rows[:, None],
                (tl.program_id(1) * 64 + lane)[None, :],
                half_width,
                dropped_key0(seed, salt),
                dropped_key1(seed, salt),
            )
    for half in tl.static_range(2):
        cols = tl.program_id(1) * 128 + half * 64 + lane
        ok = row_ok & (cols[None, :] < width)
        gu_place = gu + rows[:, None].to(tl.int64) * (2 * width) + cols[None, :]
        dh_place = dh + rows[:, None].to(tl.int64) * width + cols[None, :]
        d = tl.load(dh_place, mask=ok, other=0.0).to(tl.float32)
        if HAS_DOWN:
            a_ok = (down_rank[:, None] < DOWN_RANK) & (cols[None, :] < width)
            right = tl.load(a_down + down_rank[:, None] * width + cols[None, :], mask=a_ok, other=0.0)
            part = tl.dot(left, right, input_precision="ieee")
            if DROP:
                bits = (h >> (16 * half)) & 0xFFFF
                part = tl.where(bits >= threshold.to(tl.uint32), part * inverse_keep, 0.0)
            d = rounded(d + rounded(part, dh), dh)
        g = _corrected(gu_place, ok, gate_left, b_gate, cols, width, rank, scale_gate, RANK, HAS_GATE)
        u = _corrected(gu_place + width, ok, up_left, b_up, cols, width, rank, scale_up, RANK, HAS_UP)
        activated = rounded(_activate(g, GELU, EXACT), dh)
        tl.store(dh_place, (activated * u).to(dh.dtype.element_ty), mask=ok)
        tl.store(gu_place, _activate_backward(rounded(d * u, gu), g, GELU, EXACT).to(gu.dtype.element_ty), mask=ok)
        tl.store(gu_place + width, (d * activated).to(gu.dtype.element_ty), mask=ok)


@triton.jit
def _rotate_pair(first, second, c1, c2, s1, s2, like, BACKWARD: tl.constexpr):
    if BACKWARD:  # the transpose of the forward rotation
        a = rounded(first * c1, like) + rounded(second * s2, like)
        b = rounded(second * c2, like) - rounded(first * s1, like)
    else:
        a = rounded(first * c1, like) - rounded(second * s1, like)
        b = rounded(second * c2, like) + rounded(first * s2, like)
    return a, b


@triton.jit
def rope_forward(
    qkv,
    out,
    cos,
    sin,
    q_weight,
    k_weight,
    q_heads,
    k_heads,
    qkv_stride,
    out_stride,
    eps,
    rope_stride,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
):
    """Rotate the q and k heads of each row; where NORM, RMS-normalise each head first. `out` may be `qkv` itself where not NORM."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    real = heads < q_heads + k_heads
    lane = tl.arange(0, HALF)[None, :]
    source = qkv + row * qkv_stride + heads * HEAD
    target = out + row * out_stride + heads * HEAD
    half: tl.constexpr = ROTARY // 2
    ok = real & (lane < half)
    is_q = heads < q_heads
    if NORM:
        every = tl.arange(0, HEAD_BLOCK)[None, :]
        whole = tl.load(source + every, mask=real & (every < HEAD), other=0.0).to(tl.float32)
        if ROTARY == HEAD:
            x1 = tl.load(source + lane, mask=ok, other=0.0).to(tl.float32)
            x2 = tl.load(source + half + lane, mask=ok, other=0.0).to(tl.float32)
            square = head_sums(x1 * x1, x2 * x2, HEADS, HALF)
        else:
            square = tl.sum(whole * whole, 1)
        r = tl.rsqrt(square * (1.0 / HEAD) + eps)[:, None]
        if ROTARY < HEAD:
            w = tl.where(
                is_q,
                tl.load(q_weight + every, mask=every < HEAD, other=0.0).to(tl.float32),
                tl.load(k_weight + every, mask=every < HEAD, other=0.0).to(tl.float32),
            )
            tl.store(
                target + every,
                (normed(whole, r, out, OFFSET) * (w + OFFSET)).to(out.dtype.element_ty),
                mask=real & (every >= ROTARY) & (every < HEAD),
            )
    first = tl.load(source + lane, mask=ok, other=0.0).to(tl.float32)
    second = tl.load(source + half + lane, mask=ok, other=0.0).to(tl.float32)
    lane_ok = lane < half
    if NORM:
        w1 = (
            tl.where(
                is_q,
                tl.load(q_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        w2 = (
            tl.where(
                is_q,
                tl.load(q_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        first = rounded(normed(first, r, out, OFFSET) * w1, out)
        second = rounded(normed(second, r, out, OFFSET) * w2, out)
    c1 = tl.load(cos + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    c2 = tl.load(cos + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s1 = tl.load(sin + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s2 = tl.load(sin + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    a, b = _rotate_pair(first, second, c1, c2, s1, s2, out, False)
    tl.store(target + lane, a.to(out.dtype.element_ty), mask=ok)
    tl.store(target + half + lane, b.to(out.dtype.element_ty), mask=ok)


@triton.jit
def rope_backward(
    grad,
    qkv,
    cos,
    sin,
    q_weight,
    k_weight,
    q_heads,
    k_heads,
    stride,
    eps,
    rope_stride,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """In place on grad (N, all heads): rotate back, then through the per-head norm of qkv. NORM needs ROTARY == HEAD."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    half: tl.constexpr = ROTARY // 2
    lane_ok = lane < half
    ok = (heads < q_heads + k_heads) & lane_ok
    place = grad + row * stride + heads * HEAD + lane
    c1 = tl.load(cos + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    c2 = tl.load(cos + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s1 = tl.load(sin + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s2 = tl.load(sin + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    first = tl.load(place, mask=ok, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=ok, other=0.0).to(tl.float32)
    a, b = _rotate_pair(first, second, c1, c2, s1, s2, grad, True)
    if NORM:
        source = qkv + row * stride + heads * HEAD + lane
        is_q = heads < q_heads
        x1 = tl.load(source, mask=ok, other=0.0).to(tl.float32)
        x2 = tl.load(source + half, mask=ok, other=0.0).to(tl.float32)
        r = tl.rsqrt(head_sums(x1 * x1, x2 * x2, HEADS, HALF) * (1.0 / HEAD) + eps)[:, None]
        w1 = (
            tl.where(
                is_q,
                tl.load(q_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        w2 = (
            tl.where(
                is_q,
                tl.load(q_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        a = weighted(rounded(a, grad), w1, grad, OFFSET)
        b = weighted(rounded(b, grad), w2, grad, OFFSET)
        slope = ((-0.5 * head_sums(a * x1, b * x2, HEADS, HALF))[:, None] * (r * r * r)) * (1.0 / HEAD)
        a = a * r + slope * (2.0 * x1)
        b = b * r + slope * (2.0 * x2)
    tl.store(place, a.to(grad.dtype.element_ty), mask=ok)
    tl.store(place + half, b.to(grad.dtype.element_ty), mask=ok)


@triton.jit
def gather_rows(index, table, out, width, BLOCK: tl.constexpr):
    """out[i] = table[index[i]]; the table may lie in pinned host memory."""
    row = tl.program_id(0).to(tl.int64)
    source = table + tl.load(index + row) * width
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        tl.store(out + row * width + cols, tl.load(source + cols, mask=cols < width), mask=cols < width)
