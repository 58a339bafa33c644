"""How much of a run is looked at in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.catalog.metrics import MOST_ROWS
from qlora_ui.engine.evaluate_models import VARIANTS

SHORTEST_ANSWER, LONGEST_ANSWER = 96, 512
"""Tokens that an answer may have in any case, and at most."""
NUM_ANSWERS, NUM_LABELS = 16, 64
"""Questions that are answered, and how many where the answers are as short as labels: what they show is surer with more of them."""
LABEL_TOKENS, LABEL_ANSWER = 16, SHORTEST_ANSWER * NUM_ANSWERS // NUM_LABELS
"""Tokens of what counts as a label, and what an answer may have there in any case: all of them take no longer than others do."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """How much is looked at."""

    max_rows: int = MOST_ROWS
    """Held-back rows whose loss is computed, taken evenly from all: they stand in the order of the data, which may be sorted."""
    num_answers: int | None = None
    """Held-back rows that base and adapter answer; 0 leaves the task metrics out, None is NUM_ANSWERS, or NUM_LABELS of labels."""
    max_tokens: int | None = None
    """Longest answer; None gives each what its reference needs and a quarter more, between SHORTEST_ANSWER and LONGEST_ANSWER."""
    variants: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)

    def num_asked(self, *, are_labels: bool) -> int:
        """Questions that are put at most."""
        return self.num_answers if self.num_answers is not None else NUM_LABELS if are_labels else NUM_ANSWERS

    def longest_answer(self, num_needed: int, *, is_among_labels: bool = False) -> int:
        """Tokens that the answer to a question may have whose reference has `num_needed`."""
        shortest = LABEL_ANSWER if is_among_labels else SHORTEST_ANSWER
        return self.max_tokens or min(max(num_needed * 5 // 4, shortest), LONGEST_ANSWER)


def evenly(count: int, most: int) -> list[int]:
    """At most that many places among `count`, in order and equally far apart."""
    return [place * count // most for place in range(most)] if count > most else list(range(count))
