"""The Triton kernel of the loss: one row of logits becomes its statistics and its gradient."""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl

from .triton_math import tanh


@triton.jit
def loss_rows(logits, targets, stats, inverse_count, width, stride, softcap, logit_scale, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr):
    """One row of logits per program: stats = (negative log-likelihood, entropy, is top-1, is counted); logits become their gradient."""
    row = tl.program_id(0).to(tl.int64)
    place = logits + row * stride
    target = tl.load(targets + row)
    counted = target >= 0
    lanes = tl.arange(0, BLOCK)
    if counted:
        top = tl.full((BLOCK,), -float("inf"), dtype=tl.float32)
        norm = tl.zeros((BLOCK,), dtype=tl.float32)
        weighted = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            z = tl.load(place + cols, mask=cols < width, other=-float("inf")).to(tl.float32) * logit_scale
            if SOFTCAP:
                z = tl.where(cols < width, softcap * tanh(z / softcap), -float("inf"))
            new_top = tl.maximum(top, z)
            shrink = tl.where(new_top == -float("inf"), 1.0, tl.exp(top - new_top))
            e = tl.where(cols < width, tl.exp(z - new_top), 0.0)
            norm = norm * shrink + e
            weighted = weighted * shrink + tl.where(e > 0, e * z, 0.0)
            top = new_top
        best = tl.max(top, 0)
        lane_shrink = tl.where(top == -float("inf"), 0.0, tl.exp(top - best))
        total = tl.sum(norm * lane_shrink, 0)
        mean_logit = tl.sum(weighted * lane_shrink, 0) / total
        lse = best + tl.log(total)
        z_target = tl.load(place + target).to(tl.float32) * logit_scale
        if SOFTCAP:
            z_target = softcap * tanh(z_target / softcap)
        tl.store(stats + row * 4, lse - z_target)
        tl.store(stats + row * 4 + 1, lse - mean_logit)
        tl.store(stats + row * 4 + 2, tl.where(z_target >= best, 1.0, 0.0))
        tl.store(stats + row * 4 + 3, 1.0)
        inv = tl.load(inverse_count) * logit_scale
        for start in range(0, width, BLOCK):
            cols = start + lanes
            z = tl.load(place + cols, mask=cols < width, other=0.0).to(tl.float32) * logit_scale
            slope = inv
            if SOFTCAP:
                t = tanh(z / softcap)
                z = softcap * t
                slope = inv * (1.0 - t * t)
            grad = (tl.exp(z - lse) - tl.where(cols == target, 1.0, 0.0)) * slope
            tl.store(place + cols, grad.to(logits.dtype.element_ty), mask=cols < width)
    else:
        zero = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            tl.store(place + cols, zero.to(logits.dtype.element_ty), mask=cols < width)
        lane4 = tl.arange(0, 4)
        tl.store(stats + row * 4 + lane4, tl.zeros((4,), dtype=tl.float32))
