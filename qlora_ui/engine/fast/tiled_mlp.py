"""The gated MLP of a recomputed layer in tiles of rows: a long micro-batch never has its widest tensors whole in memory.

Shapes: N tokens, T of a tile, H model width, F MLP width. The whole MLP has 3 F numbers of every token at once (gate, up, their product);
in tiles it has 3 F numbers of T tokens and the three matrices dequantized, 3 F H, which all tiles share.
"""

from collections.abc import Iterator
from typing import Any

import torch

from . import layer_ops, ops
from .nodes import GradientSink, Projection, leaves, unread
from .recompute import Tape


def _tiles(num_rows: int, rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


class _TiledMlp(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        gate_up: Projection,
        down: Projection,
        residual: torch.Tensor | None,
        options: tuple[bool, Tape, int],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        gelu, tape, rows = options
        inner = gate_up.inner(x, tape)
        if tape.replays:
            # backward makes everything again from x
            y, inner_down = unread(x, down.frozen.num_out), tape.replay()
        else:
            y = x.new_empty(x.shape[0], down.frozen.num_out)
            inner_down = _forward_tiles(x, inner, gate_up, down, residual, y, gelu=gelu, rows=rows)
            tape.record(inner_down)
        ctx.save_for_backward(x, inner, inner_down)
        ctx.told = gate_up, down, gelu, rows
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, inner, inner_down = ctx.saved_tensors
        gate_up, down, gelu, rows = ctx.told
        sink = GradientSink(wide=True)
        dense_up, dense_down = gate_up.frozen.dense(x.dtype), down.frozen.dense(x.dtype)
        for at in _tiles(x.shape[0], rows):
            gu, part, down_part = gate_up.frozen.apply(x[at], dense_up), _rows(inner, at), _rows(inner_down, at)
            dropout = down.dropout.from_row(at.start) if down.dropout else None
            down_grad = down.inner_gradient(grad[at], down_part, sink)
            h = grad[at] @ dense_down
            adapter = down.adapters[0] if down.adapters else None
            layer_ops.gated_backward_(gu, part, gate_up.adapters, h, down_grad, adapter, dropout, gelu=gelu, exact=gate_up.is_exact)
            if down_grad is not None:
                ops.accumulate_a(down_grad, h, down.adapters, sink.for_a(down), dropout)
            del h
            dropout = gate_up.dropout.from_row(at.start) if gate_up.dropout else None
            inner_grad = gate_up.inner_gradient(gu, part, sink)
            if inner_grad is not None:
                ops.accumulate_a(inner_grad, x[at], gate_up.adapters, sink.for_a(gate_up), dropout)
            # from here on these rows of x are their gradient
            products = gate_up.frozen.input_products(gu, dense_up, apart=gate_up.is_exact)
            x[at] = gate_up.add_input_gradients(products, inner_grad, dropout)
            del gu
        return (
            x if ctx.needs_input_grad[0] else None,
            None,
            None,
            grad if ctx.needs_input_grad[3] else None,
            None,
            *sink.results(len(ctx.needs_input_grad) - 5, gate_up, down),
        )


def _rows(tensor: torch.Tensor | None, at: slice) -> torch.Tensor | None:
    return None if tensor is None else tensor[at]


def _forward_tiles(  # noqa: PLR0917
    x: torch.Tensor,
    inner: torch.Tensor | None,
    gate_up: Projection,
    down: Projection,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    gelu: bool,
    rows: int,
) -> torch.Tensor | None:
    """Fill y (N, H) tile by tile; return the down projection's inner products of all rows, None without adapters."""
    dense_up, dense_down = gate_up.frozen.dense(x.dtype), down.frozen.dense(x.dtype)
    kept = []
    # Twice backward's tile: less is in memory by now, and LoRA's kernels have work for a whole card.
    for at in _tiles(x.shape[0], 2 * rows):
        gu = gate_up.frozen.apply(x[at], dense_up)
        h = layer_ops.gated(gu, _rows(inner, at), gate_up.adapters, gelu=gelu, exact=gate_up.is_exact)
        del gu
        part, own = down.frozen.apply(h, dense_down), _rows(residual, at)
        if down.adapters:
            kept.append(ops.project_down(h, down.adapters, down.dropout.from_row(at.start) if down.dropout else None))
            ops.add_up_(part, kept[-1], down.adapters, own)
        elif own is not None:
            part.add_(own)
        y[at] = part
    return torch.cat(kept) if kept else None


def tiled_mlp(
    x: torch.Tensor, gate_up: Projection, down: Projection, residual: torch.Tensor | None, *, gelu: bool, tape: Tape, rows: int
) -> torch.Tensor:
    """Return what `gated_mlp` returns, `rows` rows at a time; keeps x and LoRA's inner products, and nothing of the MLP's width.

    For recomputed layers, whose backward follows their recomputation at once.
    """
    out: torch.Tensor = _TiledMlp.apply(x, gate_up, down, residual, (gelu, tape, rows), *leaves(x, gate_up, down))
    return out
