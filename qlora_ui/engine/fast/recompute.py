"""A layer whose activations are made again in backward, and the little of its first pass that is kept because making it again is dear."""

from collections.abc import Callable
from typing import Any

import torch

from .weights import FrozenMatrix

# A layer whose dequantized matrices take no more keeps them from its recomputation to its backward pass: 2 % of a step at 1.5B (63 MiB),
# while at 8B, where products take longer, no difference was seen for what fits (H100).
HELD_BYTES = 72 * 2**20


class Tape:
    """One layer's inner products x @ a.T of the first pass, for its recomputation: a rank's columns each, where their inputs are wide.

    Projections ask in the same order in both passes. 0.5 MiB a layer at 1.5B and 2,048 tokens.
    """

    def __init__(self, *, holds: bool) -> None:
        self.replays = False
        self._inner: list[torch.Tensor | None] = []
        self._holds = holds

    def record(self, inner: torch.Tensor | None) -> None:
        """Keep the next inner product (None for a projection without adapters)."""
        self._inner.append(inner)

    def replay(self) -> torch.Tensor | None:
        """Give the next inner product back and forget it."""
        return self._inner.pop(0)

    def hold(self, frozen: FrozenMatrix, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the dense matrix where it may stay until its layer's backward pass, which follows at once; else None."""
        return frozen.dense(dtype) if self.replays and self._holds else None


class _Recompute(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, run: Callable[[torch.Tensor, Tape], torch.Tensor], tape: Tape, *anchors: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.run, ctx.tape = run, tape
        out = run(x, ctx.tape)
        ctx.tape.replays = True
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        leaf = x.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad():
            again = ctx.run(leaf, ctx.tape)
        torch.autograd.backward(again, grads[0])
        return leaf.grad, *[None] * (len(ctx.needs_input_grad) - 1)


def recomputed(x: torch.Tensor, run: Callable[[torch.Tensor, Tape], torch.Tensor], dense_bytes: int | None = None) -> torch.Tensor:
    """Return run(x, tape), keeping only x and the tape; backward calls run again and differentiates that. No random state is needed.

    `dense_bytes` is what the layer's dequantized matrices take together, None where they are not to be held.
    """
    # the first layer's input needs no gradient, its adapters do
    anchors = [] if x.requires_grad else [torch.zeros((), device=x.device, requires_grad=True)]
    tape = Tape(holds=dense_bytes is not None and dense_bytes <= HELD_BYTES)
    out: torch.Tensor = _Recompute.apply(x, run, tape, *anchors)
    return out
