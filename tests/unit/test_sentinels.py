"""What is said of a curve is said of the whole of it, however often the run was continued."""

from __future__ import annotations

import math

import pytest

from qlora_ui.engine.sentinels import Sentinels
from qlora_ui.runs.events import EvalLogged, StepLogged

POINTS = [StepLogged(step=step, loss=1 + 2.5 * math.exp(-step / 40), learning_rate=1e-4, grad_norm=1.0) for step in range(1, 221)]
CHECKS = [EvalLogged(step=step, loss=1 + 2.5 * math.exp(-step / 40)) for step in range(20, 221, 20)]


def continued(step: int) -> Sentinels:
    """Those of the attempt that goes on after `step`."""
    sentinels = Sentinels()
    sentinels.follow(POINTS[:step], [check for check in CHECKS if check.step <= step])
    return sentinels


def test_a_run_that_learned_before_it_was_continued_has_learned() -> None:
    flat, whole = Sentinels(), continued(200)
    for point in POINTS[200:]:
        assert flat.on_step(point) is None and whole.on_step(point) is None
    assert whole.on_end() is None
    alone = flat.on_end()
    assert alone is not None and alone.code == "learned-nothing"


def test_rows_learned_by_heart_are_seen_over_a_continuation() -> None:
    sentinels = continued(200)
    for step in (201, 202):
        sentinels.on_step(POINTS[step])
    assert sentinels.on_eval(EvalLogged(step=201, loss=1.3)) is None
    for step in (203, 204):
        sentinels.on_step(StepLogged(step=step, loss=0.1, learning_rate=1e-4, grad_norm=1.0))
    said = sentinels.on_eval(EvalLogged(step=204, loss=1.4))
    assert said is not None and said.code == "overfitting"


def test_what_was_said_before_is_not_said_again() -> None:
    still = [StepLogged(step=step, loss=1.0, learning_rate=1e-4, grad_norm=0.0) for step in range(1, 12)]
    sentinels = Sentinels()
    sentinels.follow(still[:6], ())
    assert [sentinels.on_step(point) for point in still[6:]] == [None] * 5


@pytest.mark.parametrize("worst", [2.0, 5.0])
def test_a_loss_that_rose_is_not_answered_with_larger_steps(worst: float) -> None:
    # “Learned next to nothing: try a five times larger learning rate”, also behind “start again with half the learning rate”.
    sentinels, said = Sentinels(), []
    for step in range(1, 101):
        said.append(sentinels.on_step(StepLogged(step=step, loss=1.0 if step < 40 else worst, learning_rate=1e-3, grad_norm=1.0)))
    said.append(sentinels.on_end())
    assert [notice.fix.split()[-4:] for notice in said if notice] == [["half", "the", "learning", "rate"]]


def test_where_nothing_is_trained_no_larger_steps_are_advised() -> None:
    sentinels = Sentinels()
    said = [sentinels.on_step(StepLogged(step=step, loss=1.0, learning_rate=1e-3, grad_norm=0.0)) for step in range(1, 31)]
    assert [notice.code for notice in said if notice] == ["no-gradient"] and sentinels.on_end() is None
