"""Frozen projections that share an input, read as one matrix: 4-bit weights are dequantized side by side into one buffer."""

from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from .ops import HAS_TRITON, cdiv, uses_triton

if HAS_TRITON:
    from . import triton_dequantize


# A dequantized matrix larger than this is made and used in parts, so that large models need no large temporary.
PART_BYTES = 96 * 2**20


def dequantize_into(out: torch.Tensor, weight: torch.Tensor, state: Any, columns: tuple[int, int] | None = None) -> None:
    """Write a bitsandbytes 4-bit weight, or some columns (even bounds), into contiguous `out`: one kernel, double quantization included."""
    num_columns = int(state.shape[1])
    first, last = columns or (0, num_columns)
    if not uses_triton(out):
        whole = bnb.functional.dequantize_4bit(weight.data.reshape(-1, 1), state)
        out.copy_(whole[:, first:last])
        return
    num_bytes = out.numel() // 2
    nested = state.nested
    inner = state.state2 if nested else None
    triton_dequantize.nf4_dequantize[(cdiv(num_bytes, 1024),)](
        packed_bytes(weight),
        state.absmax,
        state.code,
        inner.absmax if inner else state.absmax,
        inner.code if inner else state.code,
        state.offset if nested else state.absmax,
        out,
        num_bytes,
        (last - first) // 2,
        num_columns // 2,
        first // 2,
        NESTED=nested,
        BLOCKSIZE=state.blocksize,
        BLOCKSIZE2=inner.blocksize if inner else 256,
        PART=columns is not None,
        BLOCK=1024,
        num_warps=4,
        enable_fp_fusion=False,  # fused, double quantization's sum would be rounded once instead of twice: other weights than bitsandbytes'
    )


def packed_bytes(weight: torch.Tensor) -> torch.Tensor:
    """Return the two 4-bit numbers of each byte as uint8, whatever type they are stored as (bf16 for FSDP)."""
    return weight.data.view(torch.uint8)


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
        if len(self.layers) == 1:
            return self._one(0, dtype)
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

    def _fits(self, dtype: torch.dtype) -> bool:
        return bool(self.num_out * self.num_in * dtype.itemsize <= PART_BYTES)

    def _one(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        layer = self.layers[index]
        if not is_quantized(layer):
            weight: torch.Tensor = layer.weight.data
            return weight.to(dtype)
        out = torch.empty(self.sizes[index], self.num_in, dtype=dtype, device=layer.weight.device)
        dequantize_into(out, layer.weight, layer.weight.quant_state)
        return out

    def apply(self, x: torch.Tensor, dense: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (N, in) times the matrix transposed, plus the bias; `dense` is the matrix where the caller holds it."""
        bias = self.bias if self.bias is None or self.bias.dtype == x.dtype else self.bias.to(x.dtype)
        if dense is not None:
            return nn.functional.linear(x, dense, bias)
        if self._fits(x.dtype) or len(self.layers) == 1:
            return nn.functional.linear(x, self.dense(x.dtype), bias)
        out = x.new_empty(x.shape[0], self.num_out)
        start = 0
        for index, size in enumerate(self.sizes):
            torch.mm(x, self._one(index, x.dtype).t(), out=out[:, start : start + size])
            start += size
        return out if bias is None else out.add_(bias)

    def apply_transposed(self, grad: torch.Tensor, dense: torch.Tensor | None = None) -> torch.Tensor:
        """Return grad (N, out) times the matrix: the gradient of `apply`'s input; `dense` is the matrix where the caller holds it."""
        if dense is not None:
            return grad @ dense
        if self._fits(grad.dtype):
            return grad @ self.dense(grad.dtype)
        if len(self.layers) > 1:
            dx, start = grad[:, : self.sizes[0]] @ self._one(0, grad.dtype), self.sizes[0]
            for index in range(1, len(self.layers)):
                dx.addmm_(grad[:, start : start + self.sizes[index]], self._one(index, grad.dtype))
                start += self.sizes[index]
            return dx
        return self._by_columns(grad)

    def input_products(self, grad: torch.Tensor, dense: torch.Tensor | None = None, *, apart: bool) -> list[torch.Tensor | None]:
        """Return what each layer adds to the gradient of `apply`'s input, (N, in) each, `apart`, as autograd rounds them; else all in one.

        `dense` is the matrix where the caller holds it.
        """
        if not apart or len(self.layers) == 1:
            return [self.apply_transposed(grad, dense), *[None] * (len(self.layers) - 1)]
        if dense is None and self._fits(grad.dtype):
            dense = self.dense(grad.dtype)
        products: list[torch.Tensor | None] = []
        start = 0
        for index, size in enumerate(self.sizes):
            own = grad[:, start : start + size]
            products.append(own @ (self._one(index, grad.dtype) if dense is None else dense[start : start + size]))
            start += size
        return products

    def _by_columns(self, grad: torch.Tensor) -> torch.Tensor:
        """Like `apply_transposed`, with the matrix's columns dequantized in two halves."""
        layer, middle = self.layers[0], self.num_in // 2 // 64 * 64
        if not is_quantized(layer) or middle == 0:
            return grad @ self.dense(grad.dtype)
        dx = grad.new_empty(grad.shape[0], self.num_in)
        for first, last in ((0, middle), (middle, self.num_in)):
            part = torch.empty(self.num_out, last - first, dtype=grad.dtype, device=grad.device)
            dequantize_into(part, layer.weight, layer.weight.quant_state, (first, last))
            torch.mm(grad, part, out=dx[:, first:last])
            del part
        return dx


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer holds 4-bit weights with their quantization state."""
    return isinstance(layer, bnb.nn.Linear4bit) and getattr(layer.weight, "quant_state", None) is not None
