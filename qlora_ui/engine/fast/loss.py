"""Next-token loss on hidden states, in tiles: the N x V logits need not exist, and the gradient is ready when the loss is.

The steps are those of TRL's fused head, which is the plain path's: only tokens that count are multiplied, and their gradient is added up in
fp32. Where they are to be `exact`, the words are taken in TRL's parts too, and every bit of the gradient is the plain step's; with more
than 2,048 tokens, where TRL takes 4,096 at once, as far as cuBLAS multiplies both alike. The head is frozen.
"""

from dataclasses import dataclass

import torch

from qlora_ui.estimate.activations import LOSS_WORDS, logit_tile

from .ops import HAS_TRITON, cdiv, uses_triton

if HAS_TRITON:
    from . import triton_loss

BLOCK = 1024
"""Columns that are added up at once, in TRL's order."""


@dataclass(frozen=True)
class Head:
    """The language model head: weight (V, H), frozen, without bias; logits are scaled, then soft-capped where the model does so."""

    weight: torch.Tensor
    logit_scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Workspace:
    """What a tile is computed in: `sums` (rows, H) fp32, `chosen` (rows, H), `logits` (rows, columns), of `words` words at a time."""

    sums: torch.Tensor
    chosen: torch.Tensor
    logits: torch.Tensor
    words: int


def workspace_memory(hidden: torch.Tensor, head: Head, *, exact: bool) -> torch.Tensor:
    """Return the memory, uint8, that `workspace` needs for these hidden states (N, H)."""
    width, size = hidden.shape[1], hidden.element_size()
    rows, columns = logit_tile(hidden.shape[0], head.weight.shape[0], size, exact=exact)
    return torch.empty(rows * (width * (4 + size) + columns * size), dtype=torch.uint8, device=hidden.device)


def workspace(memory: torch.Tensor, hidden: torch.Tensor, head: Head, *, exact: bool) -> Workspace:
    """Return a workspace in `memory`, for these hidden states."""
    width, size = hidden.shape[1], hidden.element_size()
    rows, columns = logit_tile(hidden.shape[0], head.weight.shape[0], size, exact=exact)
    at_chosen = rows * width * 4
    at_logits = at_chosen + rows * width * size
    return Workspace(
        memory[:at_chosen].view(torch.float32).view(rows, width),
        memory[at_chosen:at_logits].view(hidden.dtype).view(rows, width),
        memory[at_logits:].view(hidden.dtype).view(rows, columns),
        LOSS_WORDS if exact else columns,
    )


@dataclass(frozen=True)
class Tile:
    """The counted tokens of a tile, n of them: hidden states (n, H), targets (n,), and what is known of each one's logits so far, fp32.

    `state` (5, n): largest logit, sum of exp(logit - largest), that sum weighted with the logits, the target's logit, and the largest logit
    of the words before the target.
    """

    hidden: torch.Tensor
    targets: torch.Tensor
    state: torch.Tensor


def tiled_loss(  # noqa: PLR0917
    hidden: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    counted: torch.Tensor,
    inverse_count: torch.Tensor,
    space: Workspace,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """Fill `gradient` (N, H), the loss's in the hidden states, and return sums over counted tokens, (3,) fp32.

    `counted` (M,) int64, ascending, are the positions that predict something that counts: position i predicts `labels[i + 1]`. The loss
    is the first sum, of negative log-likelihoods, times `inverse_count`, a tensor; the others are the entropy in nats, and how many targets
    had the largest logit.
    """
    gradient.zero_()
    totals = torch.zeros(3, dtype=torch.float32, device=hidden.device)
    for start in range(0, counted.shape[0], space.sums.shape[0]):
        places = counted[start : start + space.sums.shape[0]]
        count = places.shape[0]
        chosen = torch.index_select(hidden, 0, places, out=space.chosen[:count])
        state = torch.zeros(5, count, dtype=torch.float32, device=hidden.device)
        state[0].fill_(-torch.inf)
        state[4].fill_(-torch.inf)
        tile = Tile(chosen, labels.index_select(0, places + 1), state)
        stats = torch.empty(count, 3, dtype=torch.float32, device=hidden.device)
        sums = _tile_gradient(tile, head, inverse_count, space, stats)
        gradient.index_copy_(0, places, chosen.copy_(sums))  # rounded in place of the hidden states, which nothing reads any more
        totals += stats.sum(0)
    return totals


def _tile_gradient(tile: Tile, head: Head, inverse_count: torch.Tensor, space: Workspace, stats: torch.Tensor) -> torch.Tensor:
    """Return the tile's gradient (n, H) in fp32 and fill `stats` (n, 3)."""
    count, vocab = tile.hidden.shape[0], head.weight.shape[0]
    logits, sums = space.logits[:count], space.sums[:count].zero_()
    starts = range(0, vocab, space.words)
    keeps = logits.shape[1] >= vocab

    def part(first: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = head.weight[first : first + space.words]
        column = first if keeps else 0
        return weight, logits[:, column : column + weight.shape[0]]

    for first in starts:
        weight, out = part(first)
        torch.mm(tile.hidden, weight.t(), out=out)
        _fold(tile, head, out, first)
    for first in starts:
        weight, out = part(first)
        if not keeps:
            torch.mm(tile.hidden, weight.t(), out=out)
        _to_gradient(tile, head, out, first, inverse_count, stats)
        _add_product(sums, out, weight)
    return sums


def _add_product(sums: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """sums += a @ b, which is not rounded to the factors' dtype before."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        torch.addmm(sums, a, b, out_dtype=torch.float32, out=sums)
    else:
        sums.addmm_(a.float(), b.float())


def _capped(logits: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (logits as the loss sees them, tanh of the cap where there is one) in fp32."""
    z = logits.float() * head.logit_scale
    if head.softcap is None:
        return z, None
    t = torch.tanh(z / head.softcap)
    return head.softcap * t, t


def _fold(tile: Tile, head: Head, logits: torch.Tensor, first: int) -> None:
    """Take the logits of the words from `first` on into the tile's state."""
    if uses_triton(logits):
        triton_loss.fold_logits[(logits.shape[0],)](
            logits,
            tile.targets,
            tile.state,
            logits.shape[0],
            first,
            logits.shape[1],
            logits.stride(0),
            head.softcap or 1.0,
            head.logit_scale,
            SOFTCAP=head.softcap is not None,
            BLOCK=BLOCK,
            num_warps=4,
        )
        return
    best, total, weighted, of_target, before = tile.state.unbind(0)
    z, _ = _capped(logits, head)
    own = (tile.targets - first)[:, None]
    earlier = torch.arange(z.shape[1], device=z.device) < own
    before.copy_(torch.maximum(before, z.masked_fill(~earlier, -torch.inf).amax(-1)))
    new_best = torch.maximum(best, z.amax(-1))
    shrink, e = torch.exp(best - new_best), torch.exp(z - new_best[:, None])
    total.mul_(shrink).add_(e.sum(-1))
    weighted.mul_(shrink).add_((e * z).sum(-1))
    best.copy_(new_best)
    is_here = (own >= 0) & (own < z.shape[1])
    of_target.copy_(torch.where(is_here, z.gather(1, own.clamp(0, z.shape[1] - 1)), of_target[:, None])[:, 0])


def _to_gradient(  # noqa: PLR0917
    tile: Tile, head: Head, logits: torch.Tensor, first: int, inverse_count: torch.Tensor, stats: torch.Tensor
) -> None:
    """Turn the logits of the words from `first` on into their gradient, in place; with the first words `stats` (n, 3) are filled."""
    if uses_triton(logits):
        triton_loss.to_gradient[(logits.shape[0], cdiv(logits.shape[1], BLOCK))](
            logits,
            tile.targets,
            tile.state,
            stats,
            inverse_count,
            logits.shape[0],
            first,
            logits.shape[1],
            logits.stride(0),
            head.softcap or 1.0,
            head.logit_scale,
            SOFTCAP=head.softcap is not None,
            BLOCK=BLOCK,
            num_warps=4,
        )
        return
    best, total, weighted, of_target, before = tile.state.unbind(0)
    lse = best + torch.log(total)
    if first == 0:
        is_top = (of_target >= best) & (of_target > before)
        stats.copy_(torch.stack((lse - of_target, lse - weighted / total, is_top.float()), 1))
    z, t = _capped(logits, head)
    is_target = torch.arange(z.shape[1], device=z.device) == (tile.targets - first)[:, None]
    grad = (torch.exp(z - lse[:, None]) - is_target.float()) * inverse_count
    if t is not None:
        grad = grad * (1 - t * t)
    logits.copy_(grad * head.logit_scale)
