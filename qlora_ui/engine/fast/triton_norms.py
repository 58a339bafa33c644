"""Triton kernels of RMS norms, forward and backward: with the sums over a row in torch's own order, and in the order that is fastest.

All sums run in fp32; where transformers' modules round a number to the model's dtype on the way, it is rounded here too (`rounded`).
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_math import rounded


@triton.jit
def normed(value, r, like, OFFSET: tl.constexpr):
    """value / rms before it meets the weight: Gemma's norm (OFFSET 1) multiplies in fp32, everybody else's rounds first."""
    if OFFSET == 0.0:
        return rounded(value * r, like)
    else:
        return value * r


@triton.jit
def weighted(gradient, w, like, OFFSET: tl.constexpr):
    """A norm's output gradient times its weight, rounded where the forward pass rounded before that product."""
    if OFFSET == 0.0:
        return rounded(gradient * w, like)
    else:
        return gradient * w


@triton.jit
def row_sums(lanes, BM: tl.constexpr):
    """The sums (BM,) of 128 lanes each in the order of torch's own reduction of a row, so that they are its sums to the last bit.

    There each of a warp's 32 threads adds up every 128th number, four of them side by side; then the four; then the upper half of the
    threads joins the lower one, five times. Rows of 8,192 numbers or more torch shares out to several warps, which is not followed here.
    """
    even, odd = tl.split(tl.reshape(lanes, (BM, 32, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    threads = tl.sum(tl.reshape(first + second + third + fourth, (BM, 2, 16)), axis=1)
    threads = tl.sum(tl.reshape(threads, (BM, 2, 8)), axis=1)
    threads = tl.sum(tl.reshape(threads, (BM, 2, 4)), axis=1)
    threads = tl.sum(tl.reshape(threads, (BM, 2, 2)), axis=1)
    return tl.sum(threads, axis=1)


@triton.jit
def head_sums(first, second, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The sums (HEADS,) of a head's two halves of columns, (HEADS, HALF) each; torch's to the last bit where a head has 128 or 256."""
    if HALF == 128:
        return row_sums(first + second, HEADS)
    elif HALF == 64:
        return row_sums(tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (HEADS, 128)), HEADS)
    else:
        return tl.sum(first, 1) + tl.sum(second, 1)


@triton.jit
def norm_forward(
    x,
    delta,
    weight,
    total,
    y,
    rstd,
    n_rows,
    inverse_width,
    eps,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    BM: tl.constexpr,
):
    """y = RMSNorm(x [+ delta]) * (weight [+ 1]); where ADD, total = x + delta. To be compiled without fused multiply-adds."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_ok = rows[:, None] < n_rows
    place = rows[:, None].to(tl.int64) * WIDTH + tl.arange(0, 128)[None, :]
    lanes = tl.zeros((BM, 128), dtype=tl.float32)
    for base in range(0, WIDTH, PART):
        for step in tl.static_range(0, PART, 128):
            start = base + step
            ok = row_ok & (start + tl.arange(0, 128)[None, :] < WIDTH)
            value = tl.load(x + place + start, mask=ok, other=0.0).to(tl.float32)
            if ADD:
                value = rounded(value + tl.load(delta + place + start, mask=ok, other=0.0).to(tl.float32), total)
            lanes += value * value
    r = tl.rsqrt(row_sums(lanes, BM) * inverse_width + eps)
    tl.store(rstd + rows, r, mask=rows < n_rows)
    for base in range(0, WIDTH, PART):
        for step in tl.static_range(0, PART, 128):
            start = base + step
            cols = start + tl.arange(0, 128)[None, :]
            ok = row_ok & (cols < WIDTH)
            value = tl.load(x + place + start, mask=ok, other=0.0).to(tl.float32)
            if ADD:
                value = rounded(value + tl.load(delta + place + start, mask=ok, other=0.0).to(tl.float32), total)
                tl.store(total + place + start, value.to(total.dtype.element_ty), mask=ok)
            w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0).to(tl.float32) + OFFSET
            tl.store(y + place + start, (normed(value, r[:, None], y, OFFSET) * w).to(y.dtype.element_ty), mask=ok)


@triton.jit
def norm_of_a_row(x, delta, weight, total, y, rstd, width, eps, ADD: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """`norm_forward` with a whole program for each row, which reads it once: a sum over its columns, not a loop."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    ok = cols < width
    value = tl.load(x + row * width + cols, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        value = rounded(value + tl.load(delta + row * width + cols, mask=ok, other=0.0).to(tl.float32), total)
        tl.store(total + row * width + cols, value.to(total.dtype.element_ty), mask=ok)
    r = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(rstd + row, r)
    w = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32) + OFFSET
    tl.store(y + row * width + cols, (normed(value, r, y, OFFSET) * w).to(y.dtype.element_ty), mask=ok)


@triton.jit
def norm_backward(
    dy,
    x,
    weight,
    rstd,
    dtotal,
    dx,
    n_rows,
    inverse_width,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    BM: tl.constexpr,
):
    """dx = gradient through the norm [+ dtotal, the gradient that reached the residual stream beside it].

    The steps of autograd through transformers' norm, in their order, without fused multiply-adds.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_ok = rows[:, None] < n_rows
    place = rows[:, None].to(tl.int64) * WIDTH + tl.arange(0, 128)[None, :]
    lanes = tl.zeros((BM, 128), dtype=tl.float32)
    for base in range(0, WIDTH, PART):
        for step in tl.static_range(0, PART, 128):
            start = base + step
            cols = start + tl.arange(0, 128)[None, :]
            ok = row_ok & (cols < WIDTH)
            w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0).to(tl.float32) + OFFSET
            wdy = weighted(tl.load(dy + place + start, mask=ok, other=0.0).to(tl.float32), w, dy, OFFSET)
            lanes += wdy * tl.load(x + place + start, mask=ok, other=0.0).to(tl.float32)
    r = tl.load(rstd + rows, mask=rows < n_rows, other=0.0)
    slope = (((-0.5 * row_sums(lanes, BM)) * (r * r * r)) * inverse_width)[:, None]
    for base in range(0, WIDTH, PART):
        for step in tl.static_range(0, PART, 128):
            start = base + step
            cols = start + tl.arange(0, 128)[None, :]
            ok = row_ok & (cols < WIDTH)
            w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0).to(tl.float32) + OFFSET
            wdy = weighted(tl.load(dy + place + start, mask=ok, other=0.0).to(tl.float32), w, dy, OFFSET)
            out = wdy * r[:, None] + slope * (2.0 * tl.load(x + place + start, mask=ok, other=0.0).to(tl.float32))
            if ADD:
                out = rounded(out, dx) + tl.load(dtotal + place + start, mask=ok, other=0.0).to(tl.float32)
            tl.store(dx + place + start, out.to(dx.dtype.element_ty), mask=ok)


@triton.jit
def norm_of_a_row_backward(dy, x, weight, rstd, dtotal, dx, width, ADD: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """`norm_backward` with a whole program for each row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    ok = cols < width
    value = tl.load(x + row * width + cols, mask=ok, other=0.0).to(tl.float32)
    w = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32) + OFFSET
    wdy = weighted(tl.load(dy + row * width + cols, mask=ok, other=0.0).to(tl.float32), w, dy, OFFSET)
    r = tl.load(rstd + row)
    out = wdy * r - value * (tl.sum(wdy * value, 0) / width * r * r * r)
    if ADD:
        out = rounded(out, dx) + tl.load(dtotal + row * width + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + row * width + cols, out.to(dx.dtype.element_ty), mask=ok)
