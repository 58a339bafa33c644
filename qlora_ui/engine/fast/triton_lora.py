"""Triton kernels for LoRA's small products, dropout included.

Shapes: N tokens, R rank padded to a multiple of 16, J projections that share one input. All sums run in fp32; what PEFT's layers round on
the way is rounded here too (`rounded`).
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_hash import dropped_key0, dropped_key1, keep, pair_hash
from .triton_math import rounded


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "first_row", "threshold"])
def lora_down(
    x,
    out,
    seed,
    a0,
    a1,
    a2,
    gain,
    salt0,
    salt1,
    salt2,
    n_rows,
    width,
    x_stride,
    half_width,
    first_row,
    threshold,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    DROP: tl.constexpr,
    BM: tl.constexpr,
):
    """out[n, j, :] = gain * dropout_j(x[n]) @ a_j.T; a_j is (RANK, width), out (N, J, R).

    `first_row` is the row of x in the tensor whose rows the dropout's mask counts.
    """
    j = tl.program_id(1)
    a, salt = a0, salt0
    if j == 1:
        a, salt = a1, salt1
    if j == 2:
        a, salt = a2, salt2
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    rank = tl.arange(0, R)
    lane = tl.arange(0, 64)
    row_ok = rows[:, None] < n_rows
    rank_ok = rank[None, :] < RANK
    x_row = x + rows[:, None].to(tl.int64) * x_stride
    a_row = a + rank[None, :] * width
    acc = tl.zeros((BM, R), dtype=tl.float32)
    if DROP:
        key0 = dropped_key0(seed, salt)
        key1 = dropped_key1(seed, salt)
    for start in range(0, width, 128):
        first = start + lane
        second = first + 64
        xa = tl.load(x_row + first[None, :], mask=row_ok & (first[None, :] < width), other=0.0)
        xb = tl.load(x_row + second[None, :], mask=row_ok & (second[None, :] < width), other=0.0)
        if DROP:
            h = pair_hash(first_row + rows[:, None], (start // 2 + lane)[None, :], half_width, key0, key1)
            xa = tl.where((h & 0xFFFF) >= threshold.to(tl.uint32), xa, 0.0).to(xa.dtype)
            xb = tl.where((h >> 16) >= threshold.to(tl.uint32), xb, 0.0).to(xb.dtype)
        wa = tl.load(a_row + first[:, None], mask=(first[:, None] < width) & rank_ok, other=0.0)
        wb = tl.load(a_row + second[:, None], mask=(second[:, None] < width) & rank_ok, other=0.0)
        acc = tl.dot(xa, wa, acc, input_precision="ieee")
        acc = tl.dot(xb, wb, acc, input_precision="ieee")
    target = out + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :]
    tl.store(target, (acc * gain).to(out.dtype.element_ty), mask=row_ok)


@triton.jit
def _add_to(target, acc, ok):
    """target += acc, rounded to the target's dtype first: autograd adds a micro-batch's finished gradient to those before it."""
    old = tl.load(target, mask=ok, other=0.0).to(tl.float32)
    tl.store(target, (old + rounded(acc, target)).to(target.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "first_row", "threshold"])
def lora_outer(
    left,
    x,
    seed,
    g0,
    g1,
    g2,
    gain,
    salt0,
    salt1,
    salt2,
    n_rows,
    width,
    x_stride,
    half_width,
    first_row,
    threshold,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    DROP: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """g_j += gain * left[:, j, :].T @ dropout_j(x); g_j is (RANK, width); `first_row` as in `lora_down`."""
    j = tl.program_id(1)
    g, salt = g0, salt0
    if j == 1:
        g, salt = g1, salt1
    if j == 2:
        g, salt = g2, salt2
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    rank = tl.arange(0, R)
    col_ok = cols[None, :] < width
    acc = tl.zeros((R, BC), dtype=tl.float32)
    if DROP:
        key0 = dropped_key0(seed, salt)
        key1 = dropped_key1(seed, salt)
    for start in range(0, n_rows, BN):
        rows = start + tl.arange(0, BN)
        row_ok = rows[:, None] < n_rows
        tile = tl.load(x + rows[:, None].to(tl.int64) * x_stride + cols[None, :], mask=row_ok & col_ok, other=0.0)
        if DROP:
            kept = keep(first_row + rows[:, None], cols[None, :], half_width, key0, key1, threshold)
            tile = tl.where(kept, tile, 0.0).to(tile.dtype)
        lt = tl.load(left + rows[None, :].to(tl.int64) * (J * R) + j * R + rank[:, None], mask=rows[None, :] < n_rows, other=0.0)
        acc = tl.dot(lt, tile, acc, input_precision="ieee")
    _add_to(g + rank[:, None] * width + cols[None, :], acc * gain, (rank[:, None] < RANK) & col_ok)


@triton.jit
def lora_back(
    grad,
    inner,
    out,
    b0,
    b1,
    b2,
    g0,
    g1,
    g2,
    col0,
    col1,
    col2,
    num0,
    num1,
    num2,
    scale0,
    scale1,
    scale2,
    n_rows,
    grad_stride,
    row_blocks,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """Two independent products of a projection's output gradient, in one launch because each alone leaves most of a card idle.

    The first `row_blocks` programs: out[n, j, :] = scale_j * grad[n, col_j:col_j + num_j] @ b_j; the others:
    g_j += scale_j * grad[:, col_j:col_j + num_j].T @ inner[:, j, :]. b_j and g_j are (num_j, RANK), out and inner (N, J, R).
    """
    j = tl.program_id(1)
    b, g, col, num, scale = b0, g0, col0, num0, scale0
    if j == 1:
        b, g, col, num, scale = b1, g1, col1, num1, scale1
    if j == 2:
        b, g, col, num, scale = b2, g2, col2, num2, scale2
    rank = tl.arange(0, R)
    block = tl.program_id(0)
    if block < row_blocks:
        rows = block * BM + tl.arange(0, BM)
        row_ok = rows[:, None] < n_rows
        source = grad + rows[:, None].to(tl.int64) * grad_stride + col
        total = tl.zeros((BM, R), dtype=tl.float32)
        for start in range(0, num, 128):
            cols = start + tl.arange(0, 128)
            tile = tl.load(source + cols[None, :], mask=row_ok & (cols[None, :] < num), other=0.0)
            right = tl.load(b + cols[:, None] * RANK + rank[None, :], mask=(cols[:, None] < num) & (rank[None, :] < RANK), other=0.0)
            total = tl.dot(tile, right, total, input_precision="ieee")
        target = out + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :]
        tl.store(target, (total * scale).to(out.dtype.element_ty), mask=row_ok)
    else:
        cols = (block - row_blocks) * BC + tl.arange(0, BC)
        if (block - row_blocks) * BC < num:
            col_ok = cols[None, :] < num
            acc = tl.zeros((R, BC), dtype=tl.float32)
            for start in range(0, n_rows, BN):
                rows = start + tl.arange(0, BN)
                place = grad + rows[:, None].to(tl.int64) * grad_stride + col + cols[None, :]
                tile = tl.load(place, mask=(rows[:, None] < n_rows) & col_ok, other=0.0)
                lt = tl.load(inner + rows[None, :].to(tl.int64) * (J * R) + j * R + rank[:, None], mask=rows[None, :] < n_rows, other=0.0)
                acc = tl.dot(lt, tile, acc, input_precision="ieee")
            _add_to(g + cols[None, :] * RANK + rank[:, None], acc * scale, (rank[:, None] < RANK) & col_ok)


@triton.jit
def lora_up(
    y,
    xa,
    residual,
    b0,
    b1,
    b2,
    col0,
    col1,
    col2,
    num0,
    num1,
    num2,
    scale0,
    scale1,
    scale2,
    n_rows,
    y_stride,
    blocks0,
    blocks1,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y[:, col_j:col_j + num_j] += scale_j * xa[:, j] @ b_j.T (+ residual), in place; b_j is (num_j, RANK)."""
    block = tl.program_id(1)
    b, col, num, scale, j = b0, col0, num0, scale0, 0
    if J > 1:  # noqa: SIM102  (decided when compiling)
        if block >= blocks0:
            b, col, num, scale, j = b1, col1, num1, scale1, 1
            block -= blocks0
            if J > 2:  # noqa: SIM102
                if block >= blocks1:
                    b, col, num, scale, j = b2, col2, num2, scale2, 2
                    block -= blocks1
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = block * BN + tl.arange(0, BN)
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    ok = row_ok & (cols[None, :] < num)
    left = tl.load(xa + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :], mask=row_ok, other=0.0)
    right = tl.load(b + cols[None, :] * RANK + rank[:, None], mask=(cols[None, :] < num) & (rank[:, None] < RANK), other=0.0)
    place = rows[:, None].to(tl.int64) * y_stride + col + cols[None, :]
    lora = rounded(scale * rounded(tl.dot(left, right, input_precision="ieee"), y), y)
    total = tl.load(y + place, mask=ok, other=0.0).to(tl.float32) + lora
    if RESIDUAL:
        total = rounded(total, y) + tl.load(residual + place, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=ok)


@triton.jit
def _add_layer(
    sum_a,
    sum_b,
    product,
    gb,
    seed,
    a,
    salt,
    n_rows,
    width,
    half_width,
    first_row,
    threshold,
    inverse_keep,
    PLACE: tl.constexpr,
    PRODUCT: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    DROP: tl.constexpr,
    BM: tl.constexpr,
):
    """Two tiles of 64 columns plus the part of a layer's adapter (PLACE from 0 on) and its product (where PRODUCT), rounded after each."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lane = tl.arange(0, 64)
    first = tl.program_id(1) * 128 + lane
    second = first + 64
    row_ok = rows[:, None] < n_rows
    row_start = rows[:, None].to(tl.int64)
    if PLACE >= 0:
        rank = tl.arange(0, R)
        left = tl.load(gb + row_start * (J * R) + PLACE * R + rank[None, :], mask=row_ok, other=0.0)
        rank_ok = rank[:, None] < RANK
        right_a = tl.load(a + rank[:, None] * width + first[None, :], mask=rank_ok & (first[None, :] < width), other=0.0)
        right_b = tl.load(a + rank[:, None] * width + second[None, :], mask=rank_ok & (second[None, :] < width), other=0.0)
        part_a = tl.dot(left, right_a, input_precision="ieee")
        part_b = tl.dot(left, right_b, input_precision="ieee")
        if DROP:
            half_cols = (tl.program_id(1) * 64 + lane)[None, :]
            key0, key1 = dropped_key0(seed, salt), dropped_key1(seed, salt)
            h = pair_hash(first_row + rows[:, None], half_cols, half_width, key0, key1)
            part_a = tl.where((h & 0xFFFF) >= threshold.to(tl.uint32), part_a * inverse_keep, 0.0)
            part_b = tl.where((h >> 16) >= threshold.to(tl.uint32), part_b * inverse_keep, 0.0)
        sum_a = rounded(sum_a + rounded(part_a, product), product)
        sum_b = rounded(sum_b + rounded(part_b, product), product)
    if PRODUCT:
        place = product + row_start * width
        own_a = tl.load(place + first[None, :], mask=row_ok & (first[None, :] < width), other=0.0)
        own_b = tl.load(place + second[None, :], mask=row_ok & (second[None, :] < width), other=0.0)
        sum_a = rounded(sum_a + own_a.to(tl.float32), product)
        sum_b = rounded(sum_b + own_b.to(tl.float32), product)
    return sum_a, sum_b


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "first_row", "threshold"])
def lora_dx(
    p0,
    p1,
    p2,
    gb,
    seed,
    a0,
    a1,
    a2,
    salt0,
    salt1,
    salt2,
    n_rows,
    width,
    half_width,
    first_row,
    threshold,
    inverse_keep,
    PLACE0: tl.constexpr,
    PLACE1: tl.constexpr,
    PLACE2: tl.constexpr,
    APART: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    LAYERS: tl.constexpr,
    DROP: tl.constexpr,
    BM: tl.constexpr,
):
    """p_0 = the sum over the layers, the last one first, of mask_l * (gb[:, place_l] @ a_l) and then p_l; a_l is (RANK, width).

    A place below 0 is a layer without an adapter; where not APART, p_0 is the product of all; `first_row` as in `lora_down`.
    """
    sum_a = tl.zeros((BM, 64), dtype=tl.float32)
    sum_b = tl.zeros((BM, 64), dtype=tl.float32)
    if LAYERS > 2:
        sum_a, sum_b = _add_layer(
            sum_a, sum_b, p2, gb, seed, a2, salt2, n_rows, width, half_width, first_row, threshold, inverse_keep,
            PLACE2, APART, RANK, R, J, DROP, BM,
        )  # fmt: skip
    if LAYERS > 1:
        sum_a, sum_b = _add_layer(
            sum_a, sum_b, p1, gb, seed, a1, salt1, n_rows, width, half_width, first_row, threshold, inverse_keep,
            PLACE1, APART, RANK, R, J, DROP, BM,
        )  # fmt: skip
    sum_a, sum_b = _add_layer(
        sum_a, sum_b, p0, gb, seed, a0, salt0, n_rows, width, half_width, first_row, threshold, inverse_keep,
        PLACE0, True, RANK, R, J, DROP, BM,
    )  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    cols = tl.program_id(1) * 128 + tl.arange(0, 64)[None, :]
    place = p0 + rows.to(tl.int64) * width + cols
    tl.store(place, sum_a.to(p0.dtype.element_ty), mask=(rows < n_rows) & (cols < width))
    tl.store(place + 64, sum_b.to(p0.dtype.element_ty), mask=(rows < n_rows) & (cols + 64 < width))
