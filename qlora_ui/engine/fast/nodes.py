"""Autograd nodes of the fused layers: LoRA projections, the gated MLP, norms, rotary attention.

A node dequantizes its frozen weight once forward and once backward, and adds the adapters' gradients straight into `parameter.grad` where
that exists (so that a captured micro-step accumulates in place); where it does not, gradients are returned as usual. Backward passes
overwrite what they saved: one backward per forward, no double differentiation. Shapes as in `ops.py`.
"""

import bisect
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from . import layer_ops, ops
from .attention import VarlenPlan, varlen_backward, varlen_forward
from .dropout import Dropout
from .ops import Adapter
from .recompute import Tape
from .rope import HeadNorm, Heads, rotate, rotate_backward_
from .weights import FrozenMatrix


@dataclass(frozen=True)
class Projection:
    """A frozen matrix with the adapters of its parts; `dropout` is None where LoRA's dropout is 0."""

    frozen: FrozenMatrix
    adapters: tuple[Adapter, ...]
    dropout: Dropout | None

    @property
    def is_exact(self) -> bool:
        """Whether it computes what PEFT's layers do to the last bit, for a few percent of the pace: dropout's masks are its own anyway."""
        return self.dropout is None

    def parameters(self) -> list[torch.Tensor]:
        """The trainable matrices in the order in which nodes take them: every a, then every b."""
        return [ad.a for ad in self.adapters] + [ad.b for ad in self.adapters]

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, tape: Tape | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return (output, inner products, dense matrix or None) without autograd; `residual` is added to the output.

        Backward wants the inner products; the dense matrix is given where it may be held until then.
        """
        y, dense = self.frozen_product(x, tape)
        inner = self.inner(x, tape)
        if inner is None:
            return (y if residual is None else y.add_(residual)), None, dense
        if residual is not None and len(self.adapters) > 1:
            raise ValueError("A residual needs a projection of its own.")
        return ops.add_up_(y, inner, self.adapters, residual), inner, dense

    def inner(self, x: torch.Tensor, tape: Tape | None) -> torch.Tensor | None:
        """Return the inner products (N, J, R), from the tape where it replays; None without adapters."""
        if tape is not None and tape.replays:
            return tape.replay()
        inner = ops.project_down(x, self.adapters, self.dropout) if self.adapters else None
        if tape is not None:
            tape.record(inner)
        return inner

    def frozen_product(self, x: torch.Tensor, tape: Tape | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (x through the frozen matrix, that matrix where the tape holds it for backward)."""
        dense = None if tape is None else tape.hold(self.frozen, x.dtype)
        return self.frozen.apply(x, dense), dense

    def inner_gradient(self, grad: torch.Tensor, inner: torch.Tensor | None, sink: "GradientSink") -> torch.Tensor | None:
        """Take b's gradients and return that of the inner products."""
        return None if inner is None else ops.project_back(grad, inner, self.adapters, sink.for_b(self))

    def input_gradient(self, grad: torch.Tensor, inner_grad: torch.Tensor | None, dense: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient of the input: through the frozen matrix and through the adapters."""
        products = self.frozen.input_products(grad, dense, apart=self.is_exact)
        return self.add_input_gradients(products, inner_grad, self.dropout)

    def add_input_gradients(
        self, products: list[torch.Tensor | None], inner_grad: torch.Tensor | None, dropout: Dropout | None
    ) -> torch.Tensor:
        """Return the sum of the layers' products and their adapters' parts, in place of the first product."""
        ends = list(itertools.accumulate(self.frozen.sizes))
        owner = {bisect.bisect_right(ends, ad.column): place for place, ad in enumerate(self.adapters)}
        return ops.add_input_gradients_(products, [owner.get(layer, -1) for layer in range(len(ends))], inner_grad, self.adapters, dropout)


class GradientSink:
    """Where a node's parameter gradients go: into `.grad` in place where it exists, else into fresh tensors that the node returns.

    `wide` is for nodes that add several times: they add up in fp32, and the sum is rounded before it is added.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self._wide = wide
        self._fresh: dict[int, torch.Tensor] = {}

    def _target(self, parameter: torch.Tensor) -> torch.Tensor:
        if self._wide:
            return self._fresh.setdefault(id(parameter), torch.zeros_like(parameter, dtype=torch.float32))
        if parameter.grad is not None:
            return parameter.grad
        return self._fresh.setdefault(id(parameter), torch.zeros_like(parameter))

    def for_a(self, projection: Projection) -> list[torch.Tensor]:
        """Targets of the a matrices' gradients."""
        return [self._target(ad.a) for ad in projection.adapters]

    def for_b(self, projection: Projection) -> list[torch.Tensor]:
        """Targets of the b matrices' gradients."""
        return [self._target(ad.b) for ad in projection.adapters]

    def results(self, inputs: int, *projections: Projection) -> list[torch.Tensor | None]:
        """What autograd is to be handed for the node's last `inputs` inputs: None where gradients have been added in place already."""
        parameters = [p for projection in projections for p in projection.parameters()]
        if inputs == len(parameters) and self._fresh:
            return [None if (fresh := self._fresh.get(id(p))) is None else fresh.to(p.dtype) for p in parameters]
        if self._wide:
            for parameter in parameters:
                if parameter.grad is not None and id(parameter) in self._fresh:
                    parameter.grad.add_(self._fresh[id(parameter)].to(parameter.grad.dtype))
        return [None] * inputs


def leaves(x: torch.Tensor, *projections: Projection) -> list[torch.Tensor]:
    """Return the inputs that make a node differentiable beside x.

    Parameters that accumulate in place stay out of autograd's graph: their accumulation nodes may belong to another stream (a plain
    backward pass that somebody still holds), and a capture must not touch that one. A fresh leaf stands in where x needs no gradient.
    """
    parameters = [p for projection in projections for p in projection.parameters()]
    if any(p.grad is None for p in parameters):
        return parameters
    return [] if x.requires_grad else [torch.zeros((), device=x.device, requires_grad=True)]


class _Project(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, projection: Projection, tape: Tape | None, *parameters: torch.Tensor) -> torch.Tensor:
        y, inner, ctx.dense = projection.forward(x, None, tape)
        ctx.save_for_backward(x, inner)
        ctx.projection = projection
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, inner = ctx.saved_tensors
        projection: Projection = ctx.projection
        sink = GradientSink()
        inner_grad = projection.inner_gradient(grad, inner, sink)
        if inner_grad is not None:
            ops.accumulate_a(inner_grad, x, projection.adapters, sink.for_a(projection), projection.dropout)
        dx = projection.input_gradient(grad, inner_grad, ctx.dense) if ctx.needs_input_grad[0] else None
        ctx.dense = None
        return (dx, None, None, *sink.results(len(ctx.needs_input_grad) - 3, projection))


def project(x: torch.Tensor, projection: Projection, tape: Tape | None = None) -> torch.Tensor:
    """Return x (N, in) through frozen weights and adapters, (N, out), as one autograd node; `tape` for a recomputed layer."""
    out: torch.Tensor = _Project.apply(x, projection, tape, *leaves(x, projection))
    return out


def unread(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return what stands for a recomputation's output (N, width), which backward never reads: one number in memory."""
    return x.new_empty(1, 1).expand(x.shape[0], width)


class _GatedMlp(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        gate_up: Projection,
        down: Projection,
        residual: torch.Tensor | None,
        options: tuple[bool, Tape | None],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        gelu, tape = options
        gu, ctx.dense = gate_up.frozen_product(x, tape)
        inner = gate_up.inner(x, tape)
        if tape is not None and tape.replays:
            # backward makes the activation again from gate | up
            y, inner_down = unread(x, down.frozen.num_out), tape.replay()
        else:
            h = layer_ops.gated(gu, inner, gate_up.adapters, gelu=gelu, exact=gate_up.is_exact)
            y, inner_down, _ = down.forward(h, residual, tape)
        ctx.save_for_backward(x, gu, inner, inner_down)
        ctx.projections = gate_up, down, gelu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, gu, inner, inner_down = ctx.saved_tensors
        gate_up, down, gelu = ctx.projections
        sink = GradientSink()
        down_grad = down.inner_gradient(grad, inner_down, sink)
        h = down.frozen.apply_transposed(grad)
        down_adapter = down.adapters[0] if down.adapters else None
        layer_ops.gated_backward_(gu, inner, gate_up.adapters, h, down_grad, down_adapter, down.dropout, gelu=gelu, exact=gate_up.is_exact)
        if down_grad is not None:
            ops.accumulate_a(down_grad, h, down.adapters, sink.for_a(down), down.dropout)
        del h
        inner_grad = gate_up.inner_gradient(gu, inner, sink)
        if inner_grad is not None:
            ops.accumulate_a(inner_grad, x, gate_up.adapters, sink.for_a(gate_up), gate_up.dropout)
        dx = gate_up.input_gradient(gu, inner_grad, ctx.dense) if ctx.needs_input_grad[0] else None
        ctx.dense = None
        return (
            dx,
            None,
            None,
            grad if ctx.needs_input_grad[3] else None,
            None,
            *sink.results(len(ctx.needs_input_grad) - 5, gate_up, down),
        )


def gated_mlp(
    x: torch.Tensor, gate_up: Projection, down: Projection, residual: torch.Tensor | None, *, gelu: bool, tape: Tape | None
) -> torch.Tensor:
    """Return down(act(gate(x)) * up(x)) (+ residual) as one node that keeps x, the frozen product gate|up and LoRA's inner products.

    Where `tape` replays, the result is undefined: a recomputation's backward never reads it.
    """
    out: torch.Tensor = _GatedMlp.apply(x, gate_up, down, residual, (gelu, tape), *leaves(x, gate_up, down))
    return out


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, exact: bool
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        _, y, rstd = layer_ops.norm(flat, weight, eps, offset, exact=exact)
        ctx.save_for_backward(flat, weight, rstd)
        ctx.offset, ctx.exact = offset, exact
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        dy = grads[0].reshape(x.shape).contiguous()
        dx = layer_ops.norm_backward(dy, x, weight, rstd, ctx.offset, None, exact=ctx.exact)
        return dx.view(grads[0].shape), None, None, None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, *, exact: bool) -> torch.Tensor:
    """Return RMSNorm(x) * (weight + offset) over the last dimension; the weight is frozen."""
    out: torch.Tensor = _Norm.apply(x, weight, eps, offset, exact)
    return out


class _ForkNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float, exact: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, y, rstd = layer_ops.norm(x, weight, eps, offset, delta, exact=exact)
        ctx.save_for_backward(total, weight, rstd)
        ctx.offset, ctx.exact = offset, exact
        ctx.has_delta = delta is not None
        return (total.view_as(total) if delta is None else total), y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, weight, rstd = ctx.saved_tensors
        dtotal = None if grads[0] is None else grads[0].contiguous()
        dx = layer_ops.norm_backward(grads[1].contiguous(), total, weight, rstd, ctx.offset, dtotal, exact=ctx.exact)
        return dx, (dx if ctx.has_delta else None), None, None, None, None


def fork_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float, *, exact: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x + delta, its norm): the residual stream and the branch; backward joins both gradients in one kernel. x is (N, H)."""
    total, y = _ForkNorm.apply(x, delta, weight, eps, offset, exact)
    return total, y


class _Attend(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, qkv: torch.Tensor, heads: Heads, rotary: tuple[torch.Tensor, torch.Tensor] | None, norm: HeadNorm | None, plan: VarlenPlan
    ) -> torch.Tensor:
        rotated = rotate(qkv, heads, rotary[0], rotary[1], norm) if rotary is not None else qkv
        q, k, v = split_heads(rotated, qkv, heads)
        out, lse = varlen_forward(q, k, v, plan)
        ctx.save_for_backward(qkv, rotated, out, lse)
        ctx.context = heads, rotary, norm, plan
        return out.view(qkv.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, rotated, out, lse = ctx.saved_tensors
        heads, rotary, norm, plan = ctx.context
        q, k, v = split_heads(rotated, qkv, heads)
        dq, dk, dv = varlen_backward(grads[0].reshape(out.shape).contiguous(), q, k, v, out, lse, plan)
        grad = torch.cat((dq.flatten(1), dk.flatten(1), dv.flatten(1)), 1)
        if rotary is not None:
            rotate_backward_(grad, qkv, heads, rotary[0], rotary[1], norm)
        return grad, None, None, None, None


def split_heads(rotated: torch.Tensor, qkv: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, v as views (N, heads, dim): q and k of the rotated buffer, v of the projected one."""
    rows, num_q = qkv.shape[0], heads.num_q * heads.dim
    q = rotated[:, :num_q].view(rows, heads.num_q, heads.dim)
    k = rotated[:, num_q : heads.num_rotated].view(rows, heads.num_k, heads.dim)
    v = qkv[:, heads.num_rotated :].view(rows, heads.num_k, heads.dim)
    return q, k, v


def attend(
    qkv: torch.Tensor, heads: Heads, rotary: tuple[torch.Tensor, torch.Tensor] | None, norm: HeadNorm | None, plan: VarlenPlan
) -> torch.Tensor:
    """Return causal attention inside each document, (N, q heads * dim), from raw projections (N, all heads).

    `rotary` is (cos, sin), each (N, rotary dims), or None for layers without positions. Overwrites `qkv` unless there is a head norm.
    """
    out: torch.Tensor = _Attend.apply(qkv, heads, rotary, norm, plan)
    return out
