"""Stop, stop now, pause and save, in every phase: seen at once, done in bounded time, nothing lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import again, at_step, curve, launcher_of, tiny_config, train, when, write_rows

from qlora_ui.engine import job
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import RequestSeen, StepLogged
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

BOUND_S = 10.0
"""Far above one tiny step and a save on a busy machine, far below the thirty seconds that are promised."""


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"))


def ask_when_called(
    monkeypatch: pytest.MonkeyPatch, target: str, run: RunDir, request: Request, wait_for: Callable[..., bool]
) -> list[float]:
    """Ask as soon as `target` is called and `wait_for(its first argument)` holds; returns when that was."""
    import pydoc

    owner, name = target.rsplit(".", 1)
    original = getattr(pydoc.locate(owner), name)
    asked: list[float] = []

    def asking(*arguments: Any, **named: Any) -> Any:
        if not asked and wait_for(*arguments[:1]):
            asked.append(time.monotonic())
            run.request(request)
        return original(*arguments, **named)

    monkeypatch.setattr(target, asking)
    return asked


def anyhow(*arguments: Any) -> bool:
    return True


def in_training(trainer: Any) -> bool:
    return bool(trainer.is_in_train) and trainer.state.global_step == 3


def at_first_check(trainer: Any) -> bool:
    return bool(trainer.is_in_train) and trainer.state.global_step == 4


PHASES: dict[str, tuple[str, Callable[..., bool], int]] = {
    "download": ("qlora_ui.engine.job.ensure_model", anyhow, 0),
    "data": ("qlora_ui.engine.job.build_datasets", anyhow, 0),
    "load": ("qlora_ui.engine.build.load_model", anyhow, 0),
    "check": ("qlora_ui.engine.build.dry_run", anyhow, 0),
    "step": ("qlora_ui.engine.trainer.QloraTrainer.training_step", in_training, 4),
    "evaluation": ("qlora_ui.engine.trainer.QloraTrainer.prediction_step", at_first_check, 4),
    "save": ("qlora_ui.engine.checkpoints.CheckpointStore.commit", anyhow, 3),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "request_", [Request.STOP_NOW, *(pytest.param(asked, marks=pytest.mark.slow) for asked in (Request.STOP, Request.PAUSE))]
)
def test_every_phase_ends_in_time(phase: str, request_: Request, config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    target, wait_for, step = PHASES[phase]
    made = create_run(workspace, config)
    with monkeypatch.context() as patch:
        asked = ask_when_called(patch, target, made, request_, wait_for)
        job.run(made.path)
    took = time.monotonic() - asked[0]
    view = read_run(made)
    assert view.status is (Status.PAUSED if request_ is Request.PAUSE else Status.STOPPED), view.ended
    assert took < BOUND_S
    assert [event.request for event in view.requests] == [request_.value]
    assert view.requests[0].detail
    if request_ is not Request.STOP_NOW and step:
        assert view.step == step
        assert CheckpointStore(made.checkpoints, 9).find(step) is not None
    if request_ is Request.STOP and step:
        assert view.ended is not None and view.ended.adapter == "adapter"


def test_in_a_check_only_one_batch_is_still_done(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    calls: list[int] = []
    original = QloraTrainer.prediction_step

    def counting(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.is_in_train:
            calls.append(1)
            made.request(Request.STOP)
        return original(self, *arguments, **named)

    made = create_run(workspace, config.changed({"eval.share": 0.4, "eval.batch_size": 1}))
    monkeypatch.setattr(QloraTrainer, "prediction_step", counting)
    job.run(made.path)
    assert len(calls) == 1 and read_run(made).status is Status.STOPPED


def test_save_now_writes_a_checkpoint_and_goes_on(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    made = create_run(workspace, config.changed({"output.save_every": 8, "eval.share": 0}))
    asked = ask_when_called(monkeypatch, "qlora_ui.engine.trainer.QloraTrainer.training_step", made, Request.SAVE_NOW, in_training)
    job.run(made.path)
    view = read_run(made)
    assert asked and view.status is Status.DONE
    assert [event.step for event in view.checkpoints] == [4, 8]


@pytest.mark.slow
def test_a_long_accumulated_step_is_given_up_after_its_grace(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    monkeypatch.setattr("qlora_ui.engine.callbacks.STEP_GRACE_S", 0.1)

    def slow(trainer: Any) -> bool:
        if in_training(trainer):
            time.sleep(0.15)
        return in_training(trainer)

    whole = train(Workspace.at(workspace.root / "whole"), config.changed({"train.accumulation": 6}))
    made = create_run(workspace, config.changed({"train.accumulation": 6}))
    with monkeypatch.context() as patch:
        ask_when_called(patch, "qlora_ui.engine.trainer.QloraTrainer.training_step", made, Request.STOP, slow)
        original = QloraTrainer.training_step
        patch.setattr(QloraTrainer, "training_step", lambda self, *a, **n: (slow(self), original(self, *a, **n))[1])
        job.run(made.path)
    view = read_run(made)
    assert view.status is Status.STOPPED and view.step == 3
    view = again(made)
    assert curve(view) == curve(whole)


def test_pause_frees_and_continue_goes_on_in_the_same_app(config: RunConfig, workspace: Workspace) -> None:
    launcher = launcher_of(workspace)
    made = launcher.start(config)
    when(made, at_step(2), lambda: launcher.request(made, Request.PAUSE), launcher)
    paused = read_run(made)
    assert paused.status is Status.PAUSED
    launcher.resume(made)
    assert launcher.wait_until_idle(60)
    view = read_run(made)
    assert view.status is Status.DONE
    assert [event.step for event in view.steps] == list(range(1, 9))
    assert launcher.shutdown()


def test_the_echo_comes_before_the_end(config: RunConfig, workspace: Workspace) -> None:
    launcher = launcher_of(workspace)
    made = launcher.start(config)
    said: list[str] = []
    when(made, at_step(1), lambda: said.append(launcher.request(made, Request.STOP)), launcher)
    events = read_events(made.journal_path)
    seen = next(index for index, event in enumerate(events) if isinstance(event, RequestSeen))
    assert said and said[0].startswith("Stopping")
    assert seen < len(events) - 1
    assert sum(isinstance(event, StepLogged) for event in events[seen:]) <= 1
    launcher.shutdown()
