"""Watches the curves and says in words what a practised eye would see: divergence, learning by heart, learning nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from qlora_ui.runs.events import EvalLogged, Noticed, StepLogged

DIVERGED_FACTOR = 3.0
WINDOW = 20
"""Points that a smoothed loss is taken over."""
OVERFIT_RISE = 0.05
"""Share by which the held-back loss must have risen above its best, twice in a row, to be called overfitting."""
RISEN_FACTOR = 1.2
"""Of its start: a loss that ends above was driven there; below that batches differ from each other."""
LEARNED_SHARE = 0.03
"""A run whose loss fell by less than this share of its start has learned nothing that can be seen."""


class Sentinels:
    """Takes the points of the curves in order and gives back what should be said; each thing once."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._first: list[float] = []
        self._lowest: float | None = None
        self._evals: list[EvalLogged] = []
        self._said: set[str] = set()
        self._num_zero = 0
        self._num_points = 0

    def follow(self, steps: Sequence[StepLogged], evals: Sequence[EvalLogged]) -> None:
        """Take in what earlier attempts of the run have logged; what is to be said of it was said then."""
        # At the same step the point comes before the check.
        events: list[StepLogged | EvalLogged] = [*steps, *evals]
        for event in sorted(events, key=lambda event: event.step):
            if isinstance(event, StepLogged):
                self.on_step(event)
            else:
                self.on_eval(event)

    def on_step(self, event: StepLogged) -> Noticed | None:
        """What the training loss says."""
        self._num_points += 1
        self._recent.append(event.loss)
        if len(self._first) < WINDOW:
            self._first.append(event.loss)
        self._num_zero = self._num_zero + 1 if event.grad_norm == 0 else 0
        if self._num_zero == 5:
            return self._once(
                "no-gradient",
                "The adapter gets no gradient.",
                "Nothing of what is trained has an influence on the loss",
                "Look at which layers learn and at what the model learns from",
            )
        if self._num_points < WINDOW:
            return None
        smooth = fmean(self._recent)
        self._lowest = smooth if self._lowest is None else min(self._lowest, smooth)
        if smooth > DIVERGED_FACTOR * self._lowest:
            return self._once(
                "diverging",
                f"The loss is {smooth / self._lowest:.1f} times its best value and rising.",
                "The steps are probably too large",
                "Stop and start again with half the learning rate",
            )
        return None

    def on_eval(self, event: EvalLogged) -> Noticed | None:
        """What the gap between held-back and training loss says."""
        self._evals.append(event)
        best = min(item.loss for item in self._evals)
        rising = [item for item in self._evals[-2:] if item.loss > best * (1 + OVERFIT_RISE)]
        if len(self._evals) > 2 and len(rising) == 2 and self._recent and fmean(self._recent) < best:
            return self._once(
                "overfitting",
                f"The held-back loss rose from {best:.3f} to {event.loss:.3f} while the training loss fell.",
                "The model is learning the rows by heart",
                "Fewer passes, a smaller adapter or more rows; “keep the best” takes the adapter from before it began",
            )
        return None

    def on_end(self) -> Noticed | None:
        """What the whole curve says."""
        if self._num_points < 10:
            return None
        part = max(min(self._num_points // 5, WINDOW), 1)
        start, end = fmean(self._first[:part]), fmean(list(self._recent)[-part:])
        if start > 0 and end > start * RISEN_FACTOR:
            if "diverging" in self._said:
                return None
            return self._once(
                "risen",
                f"The loss went from {start:.3f} to {end:.3f}: it is higher than at the start.",
                "The steps were probably too large",
                "Start again with half the learning rate",
            )
        if start > 0 and end > start * (1 - LEARNED_SHARE) and "no-gradient" not in self._said:
            return self._once(
                "learned-nothing",
                f"The loss went from {start:.3f} to {end:.3f}: this run learned next to nothing.",
                "The learning rate may be too small, or the rows say what the model already knows",
                "Try a five times larger learning rate",
            )
        return None

    def _once(self, code: str, what: str, why: str, fix: str) -> Noticed | None:
        if code in self._said:
            return None
        self._said.add(code)
        return Noticed(level="warning", code=code, what=what, why=why, fix=fix)
