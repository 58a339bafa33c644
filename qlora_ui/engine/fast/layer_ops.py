"""The layers' operations beside the projections: gated MLP and RMS norms; a Triton kernel or plain torch, as in `ops.py`.

Shapes: N tokens, H model width, F MLP width, J adapted projections that share an input, R LoRA rank padded to a multiple of 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .dropout import Dropout, half_width
from .ops import HAS_TRITON, Adapter, add_input_gradient_, add_up_, cdiv, next_power_of_2, padded_rank, uses_triton

if HAS_TRITON:
    from . import triton_layers, triton_norms


GATED_BACKWARD = (16, 4)
"""Rows and warps of a program."""
NORM_ROWS = 4
"""Rows of a program of the exact norms, a warp each."""
NORM_COLUMNS = 2048
"""Columns at most that the exact norms' kernels take without a loop: 4,096 took 12 seconds to compile, 8,192 more than a minute."""


@dataclass(frozen=True)
class _GateUp:
    """What a kernel is told of the adapters of gate and up: of both, of one of them, or of a single one over both (Phi's gate_up_proj)."""

    b_gate: torch.Tensor
    b_up: torch.Tensor
    scale_gate: float
    scale_up: float
    place_up: int
    has_gate: bool
    has_up: bool
    rank: int
    padded: int


def _gate_up(gu: torch.Tensor, adapters: Sequence[Adapter]) -> _GateUp:
    width = gu.shape[1] // 2
    gate = next((ad for ad in adapters if ad.column == 0), None)
    up = next((ad for ad in adapters if ad.column == width), None)
    b_gate, b_up = gate.b if gate else gu, up.b if up else gu
    if gate is not None and gate.num_out == 2 * width:
        b_gate, b_up, up = gate.b[:width], gate.b[width:], gate
    rank, padded = (adapters[0].a.shape[0], padded_rank(adapters)) if adapters else (16, 16)
    scales = gate.scale if gate else 1.0, up.scale if up else 1.0
    return _GateUp(b_gate, b_up, *scales, max(len(adapters) - 1, 0), gate is not None, up is not None, rank, padded)


def _activation(g: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(g, approximate="tanh") if gelu else F.silu(g)


def _with_lora(gu: torch.Tensor, inner: torch.Tensor | None, adapters: Sequence[Adapter]) -> torch.Tensor:
    return gu if inner is None else add_up_(gu.clone(), inner, adapters)


def gated(gu: torch.Tensor, inner: torch.Tensor | None, adapters: Sequence[Adapter], *, gelu: bool, exact: bool = False) -> torch.Tensor:
    """Return act(gate) * up (N, F) of gu (N, 2F), the frozen product alone; LoRA's parts are added on the way and gu stays as it is.

    `exact`: the activation is torch's to the last bit, which takes longer.
    """
    width = gu.shape[1] // 2
    if not uses_triton(gu):
        whole = _with_lora(gu, inner, adapters)
        return _activation(whole[:, :width], gelu).mul_(whole[:, width:])
    out = gu.new_empty(gu.shape[0], width)
    told = _gate_up(gu, adapters)
    # half the kernel's columns for large ranks, so that their tiles fit
    rows, columns = 16, 128 if told.rank <= 64 else 64
    triton_layers.gated_forward[(cdiv(gu.shape[0], rows), cdiv(width, columns))](
        gu,
        inner if inner is not None else gu,
        out,
        told.b_gate,
        told.b_up,
        told.scale_gate,
        told.scale_up,
        gu.shape[0],
        width,
        told.place_up,
        len(adapters) * told.padded,
        RANK=told.rank,
        R=told.padded,
        HAS_GATE=told.has_gate,
        HAS_UP=told.has_up,
        GELU=gelu,
        EXACT=exact,
        BM=rows,
        BN=columns,
        num_warps=4,
    )
    return out


def gated_backward_(  # noqa: PLR0917
    gu: torch.Tensor,
    inner: torch.Tensor | None,
    adapters: Sequence[Adapter],
    dh: torch.Tensor,
    down_grad: torch.Tensor | None,
    down: Adapter | None,
    dropout: Dropout | None,
    *,
    gelu: bool,
    exact: bool = False,
) -> None:
    """In place: gu (N, 2F) becomes its gradient, dh (N, F) the recomputed act(gate) * up; the down projection's LoRA joins dh first.

    `gu`, `inner`, `adapters` and the options are what `gated` was given.
    """
    width = dh.shape[1]
    if not uses_triton(gu):
        if down is not None and down_grad is not None:
            add_input_gradient_(dh, down_grad, down, dropout)
        _gated_backward_plain_(gu, _with_lora(gu, inner, adapters), dh, gelu=gelu)
        return
    told = _gate_up(gu, adapters)
    down_rank, down_padded = (down.a.shape[0], padded_rank([down])) if down else (16, 16)
    rows, warps = GATED_BACKWARD
    triton_layers.gated_backward[(cdiv(gu.shape[0], rows), cdiv(width, 128))](
        gu,
        dh,
        inner if inner is not None else gu,
        told.b_gate,
        told.b_up,
        told.scale_gate,
        told.scale_up,
        told.place_up,
        len(adapters) * told.padded,
        down_grad if down_grad is not None else dh,
        dropout.seed if dropout else dh,
        down.a if down else dh,
        down.salt if down else 0,
        gu.shape[0],
        width,
        half_width(width),
        dropout.first_row if dropout else 0,
        dropout.threshold if dropout else 0,
        dropout.inverse_keep if dropout else 1.0,
        RANK=told.rank,
        R=told.padded,
        HAS_GATE=told.has_gate,
        HAS_UP=told.has_up,
        DOWN_RANK=down_rank,
        DOWN_R=down_padded,
        HAS_DOWN=down is not None,
        DROP=dropout is not None and down is not None,
        GELU=gelu,
        EXACT=exact,
        BM=rows,
        num_warps=warps,
    )


def _gated_backward_plain_(gu: torch.Tensor, whole: torch.Tensor, dh: torch.Tensor, *, gelu: bool) -> None:
    """What the kernel does, by autograd: `whole` (N, 2F) is `gu` with the adapters' part."""
    width = dh.shape[1]
    up = whole[:, width:].clone()  # without adapters `whole` is `gu`, which is overwritten
    with torch.enable_grad():
        g = whole[:, :width].clone().requires_grad_()
        activated = _activation(g, gelu)
        (slope,) = torch.autograd.grad(activated, g, dh * up)
    activated = activated.detach()
    gu[:, :width] = slope
    gu[:, width:] = dh * activated
    dh.copy_(activated * up)


def weighted_norm(x: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, offset: float, dtype: torch.dtype) -> torch.Tensor:
    """Return x / rms times (weight + offset) in `dtype`, x in fp32; rounded before the product except in Gemma's norm (offset 1)."""
    normed = x * rstd
    return (normed * (weight.float() + offset)).to(dtype) if offset else normed.to(dtype) * weight.to(dtype)


def weighted_gradient(dy: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    """Return the gradient that reaches the normalised x, in fp32; rounded where `weighted_norm` rounds."""
    return dy.float() * (weight.float() + offset) if offset else (dy * weight.to(dy.dtype)).float()


def norm_gradient(wdy: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Return the gradient of x / rms in x from its output's, `wdy`, all in fp32: autograd's steps through transformers' norm."""
    slope = -0.5 * (wdy * x).sum(-1, keepdim=True) * rstd.pow(3) / x.shape[-1]
    return wdy * rstd + slope * (2 * x)


def _exact_launch(width: int, offset: float) -> dict[str, Any]:
    # a multiply and an add fused into one rounding would give other numbers than torch's operations, one after the other
    part = cdiv(cdiv(width, cdiv(width, NORM_COLUMNS)), 128) * 128
    return {"OFFSET": offset, "WIDTH": width, "PART": part, "BM": NORM_ROWS, "num_warps": NORM_ROWS, "enable_fp_fusion": False}


def _row_launch(width: int, offset: float) -> dict[str, Any]:
    block = next_power_of_2(width)
    return {"OFFSET": offset, "BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


def norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, delta: torch.Tensor | None = None, *, exact: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (x + delta, its RMS norm times (weight + offset), 1/rms as fp32 (N,)); x is (N, H).

    `exact`: a row is summed up in torch's order, to the last bit, which takes longer.
    """
    if not uses_triton(x):
        total = x if delta is None else x + delta
        wide = total.float()
        rstd = torch.rsqrt(wide.pow(2).mean(-1) + eps)
        return total, weighted_norm(wide, rstd[:, None], weight, offset, x.dtype), rstd
    y = torch.empty_like(x)
    rows, width = x.shape
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    total = x if delta is None else torch.empty_like(x)
    tensors = (x, x if delta is None else delta, weight, total, y, rstd)
    if exact:
        launch = _exact_launch(width, offset)
        triton_norms.norm_forward[(cdiv(rows, NORM_ROWS),)](*tensors, rows, 1 / width, eps, ADD=delta is not None, **launch)
    else:
        triton_norms.norm_of_a_row[(rows,)](*tensors, width, eps, ADD=delta is not None, **_row_launch(width, offset))
    return total, y, rstd


def norm_backward(  # noqa: PLR0917
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, offset: float, dtotal: torch.Tensor | None, *, exact: bool
) -> torch.Tensor:
    """Return the gradient of the norm's input, plus `dtotal`, the gradient of the residual stream beside it."""
    if not uses_triton(x):
        dx = norm_gradient(weighted_gradient(dy, weight, offset), x.float(), rstd[:, None]).to(x.dtype)
        return dx if dtotal is None else dx + dtotal
    dx = torch.empty_like(x)
    rows, width = x.shape
    tensors = (dy, x, weight, rstd, dx if dtotal is None else dtotal, dx)
    if exact:
        launch = _exact_launch(width, offset)
        triton_norms.norm_backward[(cdiv(rows, NORM_ROWS),)](*tensors, rows, 1 / width, ADD=dtotal is not None, **launch)
    else:
        triton_norms.norm_of_a_row_backward[(rows,)](*tensors, width, ADD=dtotal is not None, **_row_launch(width, offset))
    return dx
