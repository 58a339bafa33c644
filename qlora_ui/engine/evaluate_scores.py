"""How a model does on tokenized rows, one row at a time, with everything that comparing models needs.

Shapes: N learned tokens of a row (or of a part of it, or of all rows), V words of the vocabulary, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qlora_ui.engine.tokens import IGNORED

MOST_PLACES = 1024
"""Learned tokens whose logits are computed at once; a row with more passes more than once: 8,192 x 152k x 14 bytes would be 16 GiB."""
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
    """Teacher-forced scores of `model` on the rows; `between` is called with the number of rows done and may raise to stop."""
    scores = Scores()
    choices, kept = [], []
    num_kept = 0
    for index, row in enumerate(rows):
        places = row.places
        nll, num_right = 0.0, 0
        for first in range(0, len(places), MOST_PLACES):
            with torch.inference_mode():
                logits_NV, wanted_N = _logits(model, row, places[first : first + MOST_PLACES], device)
                chosen_N = logits_NV.argmax(-1)
                nll += float(torch.nn.functional.cross_entropy(logits_NV, wanted_N, reduction="sum"))
                num_right += int((chosen_N == wanted_N).sum())
                choices.append(chosen_N.cpu())
                if num_kept < KEPT_LOGITS:
                    kept.append(logits_NV[: KEPT_LOGITS - num_kept].cpu())
                    num_kept += len(kept[-1])
                # Gone before the next ones come.
                del logits_NV
        scores.nll.append(nll)
        scores.num_tokens.append(len(places))
        scores.num_right.append(num_right)
        between(index + 1)
    scores.choices_N = torch.cat(choices)
    scores.logits_NV = torch.cat(kept)
    return scores


def _logits(model: Any, row: EvalRow, places: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (fp32) at these places of a row, and the tokens that stand there."""
    wanted_N = torch.tensor([row.labels[place + 1] for place in places], device=device)
    ids_1T = torch.tensor([list(row.ids)], device=device)
    logits = model(input_ids=ids_1T, use_cache=False, logits_to_keep=torch.tensor(list(places), device=device)).logits
    return logits[0].float(), wanted_N
