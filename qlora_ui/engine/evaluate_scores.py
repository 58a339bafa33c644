"""How a model does on tokenized rows, one row at a time, with everything that comparing models needs.

Shapes: N learned tokens of a row (or of a part of it, or of all rows), V words of the vocabulary, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from qlora_ui.engine.give_back import give_back_memory
from qlora_ui.engine.tokens import IGNORED

MOST_PLACES = 1024
"""Learned tokens whose logits are computed at once; a row with more passes more than once: 8,192 x 152k x 14 bytes would be 16 GiB."""
FEWEST_PLACES = 64
"""So far it goes down where the card has no room for more."""
KEPT_LOGITS = 192
"""Learned tokens whose logits are kept whole, to compare merges: 192 x 152k x 4 bytes are 117 MB."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """A held-back row as tokens."""

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def places(self) -> list[int]:
        """Positions whose next token is learned."""
        return [place - 1 for place in range(1, len(self.labels)) if self.labels[place] != IGNORED]


@dataclass(slots=True)
class Scores:
    """Sums a row, and the choices on all learned tokens in order."""

    nll: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_right: list[int] = field(default_factory=list)
    choices_N: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    logits_NV: torch.Tensor | None = None
    """fp32 on the CPU, of the first KEPT_LOGITS tokens."""

    @property
    def loss(self) -> float:
        """Nats a learned token."""
        return sum(self.nll) / sum(self.num_tokens)

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """Share of learned tokens that are the likeliest."""
        return sum(self.num_right) / sum(self.num_tokens)

    def row_losses(self) -> list[float]:
        """Nats a token, row by row."""
        return [nll / count for nll, count in zip(self.nll, self.num_tokens, strict=True)]

    def agreement(self, other: Scores) -> float:
        """Share of learned tokens for which both would choose the same."""
        return float((self.choices_N == other.choices_N).double().mean())

    def logit_difference(self, other: Scores) -> dict[str, float] | None:
        """Mean and largest absolute difference of the kept logits."""
        if self.logits_NV is None or other.logits_NV is None:
            return None
        difference = (self.logits_NV - other.logits_NV).abs()
        return {"mean": float(difference.mean()), "max": float(difference.max())}


def score_rows(model: Any, rows: Sequence[EvalRow], device: torch.device, between: Callable[[int], None] = lambda done: None) -> Scores:
    """Teacher-forced scores of `model` on the rows; `between` is called with the number of rows done and may raise to stop.

    Where the card has no room for so many logits at once, fewer are computed.
    """
    scores = Scores()
    choices, kept = [], []
    num_kept, most = 0, MOST_PLACES
    for index, row in enumerate(rows):
        places = row.places
        nll, num_right, first = 0.0, 0, 0
        while first < len(places):
            part = _score(model, row, places[first : first + most], device, KEPT_LOGITS - num_kept, is_last_try=most <= FEWEST_PLACES)
            if part is None:
                most = max(most // 2, FEWEST_PLACES)
                give_back_memory()
                continue
            first += most
            nll, num_right = nll + part.nll, num_right + part.num_right
            choices.append(part.choices_N)
            kept.append(part.logits_NV)
            num_kept += len(part.logits_NV)
        scores.nll.append(nll)
        scores.num_tokens.append(len(places))
        scores.num_right.append(num_right)
        between(index + 1)
    scores.choices_N = torch.cat(choices)
    scores.logits_NV = torch.cat(kept)
    return scores


class _Part(NamedTuple):
    """Scores of some learned tokens of a row."""

    nll: float
    num_right: int
    choices_N: torch.Tensor
    logits_NV: torch.Tensor


def _score(model: Any, row: EvalRow, places: Sequence[int], device: torch.device, num_kept: int, *, is_last_try: bool) -> _Part | None:
    """Scores at some places of a row, with the logits of the first `num_kept`; None where the card has no room for so many."""
    try:
        with torch.inference_mode():
            logits_NV, wanted_N = _logits(model, row, places, device)
            chosen_N = logits_NV.argmax(-1)
            nll = float(torch.nn.functional.cross_entropy(logits_NV, wanted_N, reduction="sum"))
            return _Part(nll, int((chosen_N == wanted_N).sum()), chosen_N.cpu(), logits_NV[:num_kept].cpu())
    except torch.OutOfMemoryError:
        if is_last_try:
            raise
    # Behind the handler, whose error would hold the memory.
    return None


def _logits(model: Any, row: EvalRow, places: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (fp32) at these places of a row, and the tokens that stand there."""
    wanted_N = torch.tensor([row.labels[place + 1] for place in places], device=device)
    ids_1T = torch.tensor([list(row.ids)], device=device)
    logits = model(input_ids=ids_1T, use_cache=False, logits_to_keep=torch.tensor(list(places), device=device)).logits
    return logits[0].float(), wanted_N
