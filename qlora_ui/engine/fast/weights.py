"""Frozen projections that share an input, read as one matrix: 4-bit weights are dequantized side by side into one buffer."""

from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from .ops import HAS_TRITON, uses_triton

if HAS_TRITON:
    import triton

    from . import triton_kernels as kernels


def dequantize_into(out: torch.Tensor, weight: torch.Tensor, state: Any) -> None:
    """Write a bitsandbytes 4-bit weight into `out` (its shape, contiguous): one kernel, double quantization included."""
    if not uses_triton(out):
        out.copy_(bnb.functional.dequantize_4bit(weight.data if weight.dim() == 2 and weight.shape[1] == 1 else weight.data.reshape(-1, 1), state))
        return
    num_bytes = weight.numel()
    nested = state.nested
    inner = state.state2 if nested else None
    kernels.nf4_dequantize[(triton.cdiv(num_bytes, 1024),)](
        weight, state.absmax, state.code, inner.absmax if inner else state.absmax, inner.code if inner else state.code,
        state.offset if nested else state.absmax, out, num_bytes, NESTED=nested, BLOCKSIZE=state.blocksize,
        BLOCKSIZE2=inner.blocksize if inner else 256, BLOCK=1024, num_warps=4)


class FrozenMatrix:
    """One or more frozen linear layers with a common input, as one (sum of out, in) matrix.

    `bias` is their biases in a row, zeros where one has none, or None. Nothing but that is stored: `dense` dequantizes anew each time.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.num_in = int(self.layers[0].in_features)
        self.sizes = [int(layer.out_features) for layer in self.layers]
        self.num_out = sum(self.sizes)
        biases = [layer.bias for layer in self.layers]
        self.bias: torch.Tensor | None = None
        if any(bias is not None for bias in biases):
            some = next(bias for bias in biases if bias is not None)
            parts = [some.new_zeros(size) if bias is None else bias.detach() for bias, size in zip(biases, self.sizes, strict=True)]
            self.bias = parts[0] if len(parts) == 1 else torch.cat(parts)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrix (num_out, num_in) in `dtype`; a temporary, meant to live for one product."""
        if len(self.layers) == 1 and not is_quantized(self.layers[0]) and self.layers[0].weight.dtype == dtype:
            weight: torch.Tensor = self.layers[0].weight.data
            return weight
        out = torch.empty(self.num_out, self.num_in, dtype=dtype, device=self.layers[0].weight.device)
        start = 0
        for layer, size in zip(self.layers, self.sizes, strict=True):
            part = out[start : start + size]
            if is_quantized(layer):
                dequantize_into(part, layer.weight, layer.weight.quant_state)
            else:
                part.copy_(layer.weight.data)
            start += size
        return out

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (N, in) times the matrix transposed, plus the bias."""
        bias = self.bias if self.bias is None or self.bias.dtype == x.dtype else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dense(x.dtype), bias)

    def apply_transposed(self, grad: torch.Tensor) -> torch.Tensor:
        """Return grad (N, out) times the matrix: the gradient of `apply`'s input."""
        return grad @ self.dense(grad.dtype)


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer holds 4-bit weights with their quantization state."""
    return isinstance(layer, bnb.nn.Linear4bit) and getattr(layer.weight, "quant_state", None) is not None
