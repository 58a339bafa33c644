"""The Triton kernels of the loss: a row of logits becomes its statistics, then its gradient.

The sums are taken in the order of TRL's kernels, block after block of 1,024 columns by four warps: the same numbers to the last bit.
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_math import exact_log, tanh


# `n_rows` changes from batch to batch: specialized, a run would stop to compile when it first divides by 16 and when it first is 1
@triton.jit(do_not_specialize=["n_rows"])
def fold_logits(logits, targets, state, n_rows, first, width, stride, softcap, logit_scale, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr):
    """One row per program: the logits of `width` words from `first` on join `state` (5, n_rows), see `loss.Tile`."""
    row = tl.program_id(0).to(tl.int64)
    place = logits + row * stride
    own = tl.load(targets + row) - first
    best = tl.load(state + row)
    total = tl.load(state + n_rows + row)
    weighted = tl.load(state + 2 * n_rows + row)
    before = tl.load(state + 4 * n_rows + row)
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        ok = cols < width
        z = tl.load(place + cols, mask=ok, other=0.0).to(tl.float32) * logit_scale
        if SOFTCAP:
            z = softcap * tanh(z / softcap)
        z = tl.where(ok, z, -float("inf"))
        before = tl.maximum(before, tl.max(tl.where(cols < own, z, -float("inf")), axis=0))
        new_best = tl.maximum(best, tl.max(z, axis=0))
        shrink = tl.exp(best - new_best)
        e = tl.where(ok, tl.exp(z - new_best), 0.0)
        total = total * shrink + tl.sum(e, axis=0)
        weighted = weighted * shrink + tl.sum(e * tl.where(ok, z, 0.0), axis=0)
        best = new_best
    tl.store(state + row, best)
    tl.store(state + n_rows + row, total)
    tl.store(state + 2 * n_rows + row, weighted)
    tl.store(state + 4 * n_rows + row, before)
    if (own >= 0) & (own < width):
        z = tl.load(place + own).to(tl.float32) * logit_scale
        if SOFTCAP:
            z = softcap * tanh(z / softcap)
        tl.store(state + 3 * n_rows + row, z)


@triton.jit(do_not_specialize=["n_rows"])
def to_gradient(
    logits,
    targets,
    state,
    stats,
    inverse_count,
    n_rows,
    first,
    width,
    stride,
    softcap,
    logit_scale,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row per program: logits become their gradient; `stats` (n_rows, 3) = negative log-likelihood, entropy, is top-1."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.load(state + row)
    total = tl.load(state + n_rows + row)
    lse = best + exact_log(total)
    if (first == 0) & (tl.program_id(1) == 0):
        of_target = tl.load(state + 3 * n_rows + row)
        before = tl.load(state + 4 * n_rows + row)
        tl.store(stats + row * 3, lse - of_target)
        tl.store(stats + row * 3 + 1, lse - tl.load(state + 2 * n_rows + row) / total)
        tl.store(stats + row * 3 + 2, tl.where((of_target >= best) & (of_target > before), 1.0, 0.0))
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = cols < width
    place = logits + row * stride + cols
    z = tl.load(place, mask=ok, other=0.0).to(tl.float32) * logit_scale
    slope = tl.load(inverse_count)
    if SOFTCAP:
        t = tanh(z / softcap)
        z = softcap * t
    is_target = tl.where(cols + first == tl.load(targets + row), 1.0, 0.0)
    grad = (tl.exp(z - lse) - is_target) * slope
    if SOFTCAP:
        grad = grad * (1.0 - t * t)
    tl.store(place, (grad * logit_scale).to(logits.dtype.element_ty), mask=ok)
