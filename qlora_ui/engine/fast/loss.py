"""Next-token loss on hidden states, in tiles of rows: the N x V logits never exist, and the gradient is ready when the loss is.

The head is frozen, so one tile needs two products (logits, gradient of the hidden states) and no recomputation: the logits' buffer becomes
their gradient. Peak: one tile, at most `TILE_BYTES`.
"""

from dataclasses import dataclass

import torch

from .ops import HAS_TRITON, uses_triton

if HAS_TRITON:
    from . import triton_loss

TILE_BYTES = 160 * 2**20


@dataclass(frozen=True)
class Head:
    """The language model head: weight (V, H), frozen, without bias; logits are scaled, then soft-capped where the model does so."""

    weight: torch.Tensor
    logit_scale: float = 1.0
    softcap: float | None = None


def tile_rows(head: Head, num_rows: int) -> int:
    """Return how many rows one tile of logits has."""
    rows = TILE_BYTES // (head.weight.shape[0] * head.weight.element_size())
    return int(max(64, min(rows // 64 * 64, num_rows)))


def tiled_loss(hidden: torch.Tensor, head: Head, targets: torch.Tensor, inverse_count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (gradient of the loss in the hidden states (N, H), statistics (N, 4) in fp32).

    targets (N,) int64 hold the token that each position predicts, -100 where none counts. The loss is the sum of statistics[:, 0] times
    `inverse_count`, a tensor. Columns: negative log-likelihood, entropy (nats), 1 where the target has the largest logit, 1 where counted.
    """
    gradient = torch.empty_like(hidden)
    stats = torch.empty(hidden.shape[0], 4, dtype=torch.float32, device=hidden.device)
    rows = tile_rows(head, hidden.shape[0])
    # one buffer for every tile: where capture forbids reuse across allocations it stays one tile
    buffer = hidden.new_empty(min(rows, hidden.shape[0]), head.weight.shape[0])
    for start in range(0, hidden.shape[0], rows):
        stop = min(start + rows, hidden.shape[0])
        logits = buffer[: stop - start]
        torch.mm(hidden[start:stop], head.weight.t(), out=logits)
        _row_losses(logits, head, targets[start:stop], stats[start:stop], inverse_count)
        torch.mm(logits, head.weight, out=gradient[start:stop])
    return gradient, stats


def _row_losses(logits: torch.Tensor, head: Head, targets: torch.Tensor, stats: torch.Tensor, inverse_count: torch.Tensor) -> None:
    """Fill `stats` and turn `logits` into their gradient, in place."""
    if uses_triton(logits):
        triton_loss.loss_rows[(logits.shape[0],)](
            logits,
            targets,
            stats,
            inverse_count,
            logits.shape[1],
            logits.stride(0),
            head.softcap or 1.0,
            head.logit_scale,
            SOFTCAP=head.softcap is not None,
            BLOCK=4096,
            num_warps=8,
        )
        return
    z = logits.float() * head.logit_scale
    slope = torch.full_like(inverse_count, head.logit_scale) * inverse_count
    if head.softcap is not None:
        t = torch.tanh(z / head.softcap)
        z = t * head.softcap
    counted = (targets >= 0)[:, None]
    index = targets.clamp(min=0)[:, None]
    lse = torch.logsumexp(z, -1, keepdim=True)
    p = torch.exp(z - lse)
    target_z = z.gather(1, index)
    top = z.max(-1, keepdim=True).values
    rows = torch.cat((lse - target_z, lse - (p * z).sum(-1, keepdim=True), (target_z >= top).float(), torch.ones_like(lse)), 1)
    stats.copy_(torch.where(counted, rows, torch.zeros_like(rows)))
    p.scatter_add_(1, index, torch.full_like(lse, -1.0))
    grad = p * slope
    if head.softcap is not None:
        grad = grad * (1 - t * t)
    logits.copy_(torch.where(counted, grad, torch.zeros_like(grad)))
