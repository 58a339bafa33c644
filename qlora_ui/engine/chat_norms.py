"""RMS norms of a model that only answers, one kernel each: a decode step launches six small ones for every norm otherwise."""

from __future__ import annotations

import functools
from typing import Any

import torch

from qlora_ui.engine.fast import layer_ops
from qlora_ui.engine.fast.layers import FusedNorm, NotFusable
from qlora_ui.engine.fast.ops import uses_triton


def fuse_norms(model: Any) -> int:
    """Replace the forward of every RMS norm on a card where Triton works; returns how many. For inference only."""
    count = 0
    for module in model.modules():
        if "RMSNorm" not in type(module).__name__:
            continue
        module.requires_grad_(False)
        try:
            fused = FusedNorm.read(module)
        except NotFusable:
            continue
        if not uses_triton(fused.weight):
            continue
        module.forward = functools.partial(_normed, fused)
        if not count:
            # Compiled here, so that no first answer waits for it.
            module(torch.zeros(1, fused.weight.shape[0], dtype=fused.weight.dtype, device=fused.weight.device))
        count += 1
    return count


def restore_norms(model: Any) -> None:
    """Give the norms their own forward back."""
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            vars(module).pop("forward", None)


def _normed(norm: FusedNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    return layer_ops.norm(flat, norm.weight, norm.eps, norm.offset, exact=False)[1].view(hidden_states.shape)
