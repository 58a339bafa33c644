"""Memory behaviour of CUDA operations on tensors without data: the same buffers, none of the arithmetic. For `simulate` only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """bitsandbytes' MatMul4Bit: saves nothing of the input, dequantizes in both directions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: SimulatedLinear4bit) -> torch.Tensor:
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0]
        return torch.matmul(gradient, ctx.layer.dequantize(gradient.dtype)), None


class SimulatedLinear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """A 4-bit layer whose packed weights and scales have the right sizes and no values."""

    def __init__(self, linear: nn.Linear, double_quant: bool, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count = self.in_features * self.out_features
        blocks = -(-count // 64)
        self.weight = nn.Parameter(torch.empty((count + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = double_quant, "nf4"
        self.weight.quant_state = self
        self.nested = double_quant
        self.absmax = nn.Buffer(torch.empty(blocks, dtype=torch.uint8 if double_quant else torch.float32))
        self.code = nn.Buffer(torch.empty(16, dtype=torch.float32))
        if double_quant:
            self.outer = nn.Buffer(torch.empty(-(-blocks // 256), dtype=torch.float32))
            self.outer_code = nn.Buffer(torch.empty(256, dtype=torch.float32))
            self.offset = nn.Buffer(torch.empty((), dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype), requires_grad=False) if linear.bias is not None else None
        self.compute_dtype, self.quant_state = dtype, None
        self.shape = torch.Size((self.out_features, self.in_features))
        self.dtype = dtype

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight; with double quantization its scales come first, in fp32."""
        if self.nested:
            scales = torch.empty_like(self.absmax, dtype=torch.float32)
            scales = scales + self.offset
        return torch.empty(self.out_features, self.in_features, dtype=dtype)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the dense weight."""
        return functional.linear(x, self.dequantize(x.dtype), self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As bitsandbytes': in the compute dtype, back in the input's."""
        given = x.dtype
        x = x.to(self.compute_dtype)
        y: torch.Tensor = _Product.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.multiply(x)
        return y.to(given)


class _FusedAttention(torch.autograd.Function):  # type: ignore[misc]
    """Flash (no mask) and memory-efficient attention (with one): q, k, v, output and a log-sum-exp a row are saved."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        batch, heads, length, dim = q.shape
        out = torch.empty(batch, length, heads, dim, dtype=q.dtype).transpose(1, 2)
        lse = torch.empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, lse, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, _, _, bias = ctx.saved_tensors
        batch, heads, length, dim = q.shape
        rounded = -(-length // 128) * 128
        dq = torch.empty_like(q)
        if bias is None:
            sums = torch.empty(batch, heads, rounded, dtype=torch.float32)
            wide = torch.empty(batch, rounded, heads, dim, dtype=torch.float32)
            if k.shape[1] != heads:
                dk_wide, dv_wide = torch.empty_like(q), torch.empty_like(q)
                dk, dv = torch.empty_like(k), torch.empty_like(v)
                del dk_wide, dv_wide
                return dq, dk, dv, None
            del sums, wide
        else:
            delta = torch.empty(batch, heads, length, dtype=torch.float32)
            del delta
        return dq, torch.empty_like(k), torch.empty_like(v), None


def _sdpa(kind: str) -> Any:
    def attend(  # noqa: PLR0917
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None,
               enable_gqa: bool = False) -> Any:  # fmt: skip
        if kind == "math" and enable_gqa:
            # CUDA's autocast ends at the call: inside, scores are fp32.
            with torch.autocast("cpu", enabled=False):
                return torch.ops.aten._scaled_dot_product_attention_math(
                    query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
                )[0]
        # On a card autocast takes attention's inputs to 16 bits; what stands for it here has to do so itself.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        bias = None
        if attn_mask is not None:
            length = attn_mask.shape[-1]
            bias = torch.empty(attn_mask.shape, dtype=query.dtype)
            if length % 16:
                bias = torch.empty(*attn_mask.shape[:-1], -(-length // 16) * 16, dtype=query.dtype)
        return _FusedAttention.apply(query, key, value, bias)

    return attend


@contextlib.contextmanager
def card_attention(kind: str) -> Iterator[None]:
    """Attention as on a card: `fused` or `math`; `cpu` leaves torch's own."""
    if kind == "cpu":
        yield
        return
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _sdpa(kind)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


_MISSING = object()


class _NoKernels:
    """Stands for a module of Triton kernels: `kernels.name[grid](…)` does nothing."""

    def __getattr__(self, name: str) -> Any:
        return _NoKernel()


_KERNEL_MODULES = ("triton_dequantize", "triton_layers", "triton_lora", "triton_loss", "triton_norms")


class _NoKernel:
    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **named: None


@contextlib.contextmanager
def card_kernels(*, is_cpu: bool, has_flash: bool = True) -> Iterator[None]:
    """Replace what looks at values or runs on a card only; everything is put back. Cards before Ampere have no flash attention."""
    import transformers.masking_utils as masking
    import trl.kernels.chunked_logprob as head
    from peft.tuners.lora import dora
    from peft.utils import integrations

    from qlora_ui.engine.fast import attention, layer_ops, nodes, ops, rope, weights
    from qlora_ui.engine.fast import loss as fast_loss

    def no_tile(*arguments: Any, **named: Any) -> None:
        return None

    def dense(module: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        base = module.base_layer if hasattr(module, "base_layer") else module
        return base.dequantize(torch.bfloat16) if isinstance(base, SimulatedLinear4bit) else base.weight

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        # CUDA's kernel keeps a mask of one byte an element; the CPU's would keep one of the input's dtype.
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    replaced: list[tuple[Any, str, Any]] = [
        # Looks at the positions' values; on tensors without data it would always build a mask.
        (masking, "find_packed_sequence_indices", lambda *arguments, **named: None),
        (dora, "dequantize_module_weight", dense),
        (integrations, "dequantize_module_weight", dense),
    ]
    asked = torch.is_autocast_enabled

    def autocast_enabled(device_type: str | None = None) -> bool:
        # PEFT asks for the card's autocast, and converts by itself where that is off.
        return bool(asked(device_type) if device_type is not None else asked("cpu"))

    if not is_cpu:
        fast = (ops, layer_ops, rope, weights, fast_loss)
        replaced += [
            (functional, "dropout", dropout),
            (torch, "is_autocast_enabled", autocast_enabled),
            (head, "_forward_tile", no_tile),
            (head, "_backward_tile", no_tile),
            (head, "_addmm_fp32", lambda acc, a, b: None),
            (fast_loss, "_add_product", lambda sums, a, b: None),
            *((module, "uses_triton", lambda x: True) for module in fast),
            *((module, name, _NoKernels()) for module in fast for name in _KERNEL_MODULES),
            (weights, "dequantize_into", no_tile),
            *((module, "varlen_forward", _varlen_forward) for module in (nodes, attention) if has_flash),
            *((module, "varlen_backward", _varlen_backward) for module in (nodes, attention) if has_flash),
        ]
    # Where Triton is not installed its kernels' names do not exist, and must not afterwards.
    originals = [(owner, name, getattr(owner, name, _MISSING)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in originals:
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _varlen_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from qlora_ui.engine.fast import attention

    if not attention.has_kernel(q, plan):
        return attention._reference(q, k, v, plan), q.new_empty(0)
    return torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _varlen_backward(  # noqa: PLR0917
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, plan: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from qlora_ui.engine.fast import attention

    if not attention.has_kernel(q, plan):
        return attention._reference_backward(grad, q, k, v, plan)
    rows = q.shape[0] + 128 * (plan.cumulative.shape[0] - 1)
    wide = torch.empty(rows, q.shape[1], q.shape[2], dtype=torch.float32)
    sums = torch.empty(q.shape[1], rows, dtype=torch.float32)
    dq = torch.empty(q.shape, dtype=q.dtype)
    dk_wide = torch.empty(q.shape, dtype=q.dtype) if k.shape[1] != q.shape[1] else None
    dv_wide = torch.empty(q.shape, dtype=q.dtype) if k.shape[1] != q.shape[1] else None
    dk, dv = torch.empty(k.shape, dtype=k.dtype), torch.empty(v.shape, dtype=v.dtype)
    del wide, sums, dk_wide, dv_wide
    return dq, dk, dv
