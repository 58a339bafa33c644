"""A curve with a point every few steps: its numbers are those of all of them, and a continuation between two points does not show."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import again, tiny_config, train, write_rows

from qlora_ui.engine.fast.apply import FastReport, fuse
from qlora_ui.engine.fast.micro_step import MicroStep
from qlora_ui.engine.job import run
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import Healed
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

EVERY, NUM_STEPS = 4, 11


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    changes = {
        "output__log_every": EVERY,
        "train__max_steps": NUM_STEPS,
        "output__save_every": 100,
        "eval__share": 0.0,
        "lora__dropout": 0.0,
    }
    return tiny_config(tiny_model_dir, rows, **changes)


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return train(Workspace.at(tmp_path_factory.mktemp("whole")), config)


def points(view: RunView) -> list[tuple[Any, ...]]:
    return [(event.step, event.loss, event.grad_norm, event.accuracy, event.tokens) for event in view.steps]


def before_step(patch: pytest.MonkeyPatch, act: Any) -> None:
    """Call `act(trainer)` ahead of every micro-step."""
    original = QloraTrainer.training_step

    def training_step(self: Any, *arguments: Any, **named: Any) -> Any:
        act(self)
        return original(self, *arguments, **named)

    patch.setattr(QloraTrainer, "training_step", training_step)


def stopped_and_continued(workspace: Workspace, config: RunConfig, step: int) -> RunView:
    """Stopped when `step` steps were done, looked at, and continued."""
    made = create_run(workspace, config)
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda trainer: made.request(Request.STOP) if trainer.state.global_step == step - 1 else None)
        run(made.path)
    stopped = read_run(made)
    assert (stopped.status, stopped.step) == (Status.STOPPED, step)
    return again(made)


def test_time_and_speed_are_those_of_all_steps_since_the_last_point(whole: RunView) -> None:
    assert [event.step for event in whole.steps] == [1, 4, 8]
    first, last = whole.steps[0], whole.steps[-1]
    took = last.time - first.time
    assert sum(event.step_s * EVERY for event in whole.steps[2:]) + whole.steps[1].step_s * 3 == pytest.approx(took, rel=0.2)
    assert whole.ended is not None
    for speed in (whole.ended.tokens_per_s, last.tokens_per_s):
        assert speed == pytest.approx((last.tokens - first.tokens) / took, rel=0.5)


def test_a_run_that_ends_between_two_points_is_complete(whole: RunView) -> None:
    assert whole.status is Status.DONE and whole.step == NUM_STEPS and whole.progress == 1.0


def test_a_continuation_between_two_points_does_not_show(config: RunConfig, whole: RunView, tmp_path: Path) -> None:
    assert points(stopped_and_continued(Workspace.at(tmp_path), config, 6)) == points(whole)


def test_a_step_that_was_given_up_does_not_count_into_the_next_point(config: RunConfig, whole: RunView, tmp_path: Path) -> None:
    calls: list[int] = []

    def starve(trainer: Any) -> None:
        calls.append(trainer.state.global_step)
        # In the middle of an accumulated step: its first half has been added to the sums already.
        if trainer.args.per_device_train_batch_size == 2 and calls[-2:] == [6, 6]:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, starve)
        view = train(Workspace.at(tmp_path), config)
    assert any(isinstance(event, Healed) for event in view.notices) and view.status is Status.DONE
    assert [event.tokens for event in view.steps] == [event.tokens for event in whole.steps]
    assert [event.loss for event in view.steps] == pytest.approx([event.loss for event in whole.steps], rel=2e-4)


def test_the_fast_step_s_sums_are_continued_too(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def enable(trainer: Any, *others: Any) -> FastReport:
        """The fast step with torch's operations, which the app leaves off on a CPU."""
        state = fuse(trainer.model, dropout=0.0, num_kept_layers=0)
        micro = MicroStep(trainer.model, state, run_seed=3, capture=False, capture_lock=threading.Lock(), on_note=print)
        trainer._start_fast_step(trainer.model, micro)
        return FastReport(True, ("steps",), ())

    monkeypatch.setattr("qlora_ui.engine.build.enable_fast", enable)
    whole = train(Workspace.at(tmp_path / "whole"), config)
    assert whole.planned is not None and whole.planned.fast_path and whole.steps[-1].accuracy is not None
    assert points(stopped_and_continued(Workspace.at(tmp_path / "parts"), config, 6)) == points(whole)
