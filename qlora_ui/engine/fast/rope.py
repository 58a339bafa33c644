"""Rotary embedding of the q and k heads of one (N, all heads) buffer, with the per-head norms of Qwen3 and Gemma 3 in the same pass."""

from dataclasses import dataclass

import torch

from .layer_ops import norm_gradient, weighted_gradient, weighted_norm
from .ops import HAS_TRITON, next_power_of_2, uses_triton

if HAS_TRITON:
    from . import triton_layers


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm of each q and k head before the rotation; `offset` is 1 for Gemma, whose weights are stored minus one."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float
    offset: float


@dataclass(frozen=True)
class Heads:
    """How the columns of a projected row split: q heads, then k heads, then as many v heads, each `dim` wide."""

    num_q: int
    num_k: int
    dim: int

    @property
    def num_rotated(self) -> int:
        """Columns that q and k take."""
        return (self.num_q + self.num_k) * self.dim


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool) -> torch.Tensor:
    rotary = cos.shape[-1]
    half = rotary // 2
    a, b, rest = x[..., :half], x[..., half:rotary], x[..., rotary:]
    c1, c2, s1, s2 = (t[:, None, :] for t in (cos[:, :half], cos[:, half:], sin[:, :half], sin[:, half:]))
    if backward:
        return torch.cat((a * c1 + b * s2, b * c2 - a * s1, rest), -1)
    return torch.cat((a * c1 - b * s1, b * c2 + a * s2, rest), -1)


def _per_head_weight(heads: Heads, norm: HeadNorm) -> torch.Tensor:
    return torch.cat((norm.q_weight.expand(heads.num_q, -1), norm.k_weight.expand(heads.num_k, -1)))


def rotate(qkv: torch.Tensor, heads: Heads, cos: torch.Tensor, sin: torch.Tensor, norm: HeadNorm | None) -> torch.Tensor:
    """Return the rotated q and k as a buffer of qkv's row length or of q and k alone; without a norm qkv itself is overwritten.

    cos and sin are (N, rotary dims). With a norm qkv is left as it is (the backward pass reads it) and v stays there.
    """
    rows = qkv.shape[0]
    out = qkv if norm is None else qkv.new_empty(rows, heads.num_rotated)
    if not uses_triton(qkv):
        x = qkv[:, : heads.num_rotated].reshape(rows, -1, heads.dim)
        if norm is not None:
            wide = x.float()
            rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
            x = weighted_norm(wide, rstd, _per_head_weight(heads, norm), norm.offset, x.dtype)
        out[:, : heads.num_rotated] = _rotate(x, cos.to(x.dtype), sin.to(x.dtype), False).reshape(rows, -1)
        return out
    rotary = cos.shape[-1]
    triton_layers.rope_forward[(rows,)](
        qkv,
        out,
        cos,
        sin,
        norm.q_weight if norm else qkv,
        norm.k_weight if norm else qkv,
        heads.num_q,
        heads.num_k,
        qkv.stride(0),
        out.stride(0),
        norm.eps if norm else 0.0,
        cos.stride(0),
        HEAD=heads.dim,
        ROTARY=rotary,
        NORM=norm is not None,
        OFFSET=norm.offset if norm else 0.0,
        HEADS=next_power_of_2(heads.num_q + heads.num_k),
        HALF=next_power_of_2(max(rotary // 2, 1)),
        HEAD_BLOCK=next_power_of_2(heads.dim),
        num_warps=4,
        enable_fp_fusion=False,  # fused, a product would meet its sum unrounded
    )
    return out


def rotate_backward_(  # noqa: PLR0917
    grad: torch.Tensor, qkv: torch.Tensor, heads: Heads, cos: torch.Tensor, sin: torch.Tensor, norm: HeadNorm | None
) -> torch.Tensor:
    """Turn grad (N, all heads), the gradient of the rotated q and k, into that of the raw projections, in place; v's columns stay."""
    rows = grad.shape[0]
    if not uses_triton(grad):
        g = _rotate(grad[:, : heads.num_rotated].reshape(rows, -1, heads.dim), cos.to(grad.dtype), sin.to(grad.dtype), True)
        if norm is not None:
            x = qkv[:, : heads.num_rotated].reshape(rows, -1, heads.dim).float()
            rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
            g = norm_gradient(weighted_gradient(g, _per_head_weight(heads, norm), norm.offset), x, rstd)
        grad[:, : heads.num_rotated] = g.reshape(rows, -1).to(grad.dtype)
        return grad
    rotary = cos.shape[-1]
    triton_layers.rope_backward[(rows,)](
        grad,
        qkv,
        cos,
        sin,
        norm.q_weight if norm else qkv,
        norm.k_weight if norm else qkv,
        heads.num_q,
        heads.num_k,
        grad.stride(0),
        norm.eps if norm else 0.0,
        cos.stride(0),
        HEAD=heads.dim,
        ROTARY=rotary,
        NORM=norm is not None,
        OFFSET=norm.offset if norm else 0.0,
        HEADS=next_power_of_2(heads.num_q + heads.num_k),
        HALF=next_power_of_2(max(rotary // 2, 1)),
        num_warps=4,
        enable_fp_fusion=False,  # fused, a product would meet its sum unrounded
    )
    return grad
