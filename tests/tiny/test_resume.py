"""A run that was interrupted anywhere ends as if it had not been: the same losses, gradient norms and adapter, to the last bit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jobs import again, curve, tiny_config, train, write_rows
from pyarrow.parquet import read_table

from qlora_ui.base.files import sha256_of
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.runs.events import Finished, Noticed, Queued
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import RunView
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

WEIGHTS = "adapter_model.safetensors"
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32 arithmetic": {},
    "bf16 arithmetic": {"quant__compute_dtype": "bfloat16"},
    "fp32 master weights": {"quant__compute_dtype": "bfloat16", "train__optimizer": "adamw_fp32"},
}


@pytest.fixture(scope="module", params=[next(iter(VARIANTS)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(VARIANTS)[1:])])
def whole(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunView]:
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(tiny_model_dir, write_rows(folder / "rows.jsonl"), **VARIANTS[request.param])
    view = train(Workspace.at(folder / "workspace"), config)
    assert view.status is Status.DONE, view.ended
    return config, view


@contextmanager
def asking(run: RunDir, request: Request, after_step: int) -> Iterator[None]:
    """Ask for something when the point of `after_step` is written, so that it is seen in the step after it."""
    from qlora_ui.engine.callbacks import Recorder

    original = Recorder.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        original(self, args, state, control, **named)
        if state.global_step == after_step and not asked:
            asked.append(True)
            run.request(request)

    asked: list[bool] = []
    Recorder.on_log = on_log  # type: ignore[method-assign]
    try:
        yield
    finally:
        Recorder.on_log = original  # type: ignore[method-assign]


def interrupted(workspace: Workspace, config: RunConfig, request: Request, after_step: int) -> RunDir:
    from qlora_ui.engine.job import run

    made = create_run(workspace, config)
    with asking(made, request, after_step):
        run(made.path)
    return made


def assert_same(first: RunView, second: RunView) -> None:
    assert second.status is Status.DONE, second.ended
    assert curve(second) == curve(first)
    assert [event.tokens for event in second.steps] == [event.tokens for event in first.steps]
    # A check that the stop fell into is made up for.
    assert [(event.step, event.loss, event.is_best) for event in second.evals] == [
        (event.step, event.loss, event.is_best) for event in first.evals
    ]
    assert sha256_of(second.run.adapter / WEIGHTS) == sha256_of(first.run.adapter / WEIGHTS)


@pytest.mark.parametrize(
    ("request_", "after_step"),
    [
        (Request.STOP, 1),
        (Request.PAUSE, 3),
        pytest.param(Request.STOP, 4, marks=pytest.mark.slow),
        pytest.param(Request.STOP_NOW, 6, marks=pytest.mark.slow),
    ],
)
def test_continuing_gives_the_same_run(whole: tuple[RunConfig, RunView], tmp_path: Path, request_: Request, after_step: int) -> None:
    config, view = whole
    made = interrupted(Workspace.at(tmp_path), config, request_, after_step)
    from qlora_ui.runs.read import read_run

    before = read_run(made)
    assert before.status in (Status.STOPPED, Status.PAUSED)
    assert before.step < 8
    assert_same(view, again(made))


def test_a_failure_in_the_middle_of_a_step_costs_nothing(
    whole: tuple[RunConfig, RunView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_ui.engine.job import run
    from qlora_ui.engine.trainer import QloraTrainer
    from qlora_ui.runs.read import read_run

    config, view = whole
    original = QloraTrainer.training_step
    calls: list[int] = []

    def failing(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if self.state.global_step == 5 and len(calls) % 2 == 0:
            raise RuntimeError("something odd")
        return original(self, *arguments, **named)

    made = create_run(Workspace.at(tmp_path), config)
    with monkeypatch.context() as patch:
        patch.setattr(QloraTrainer, "training_step", failing)
        run(made.path)
    failed = read_run(made)
    assert failed.status is Status.FAILED
    assert failed.ended is not None and "something odd" in failed.ended.why
    assert "Traceback" in failed.ended.traceback
    assert_same(view, again(made))


def test_a_run_goes_on_with_its_own_rows_whatever_became_of_their_file(whole: tuple[RunConfig, RunView], tmp_path: Path) -> None:
    config, view = whole
    rows = write_rows(tmp_path / "rows.jsonl")
    made = interrupted(Workspace.at(tmp_path / "workspace"), config.changed({"data.sources": [{"id": str(rows)}]}), Request.PAUSE, 3)
    rows.write_text(rows.read_text(encoding="utf-8").replace("world", "planet"), encoding="utf-8")
    ended = again(made)
    assert_same(view, ended)
    notice = next(event for event in ended.notices if isinstance(event, Noticed) and event.code == "own-rows")
    assert "changed or gone since then: rows.jsonl" in notice.what


def test_a_run_learns_the_date_of_the_day_on_which_it_was_made(tiny_model_dir: Path, tmp_path: Path) -> None:
    """So it goes on with the rows that it began with where its own are gone: a template's date would be another tomorrow."""
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "dated"))
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} " + template, encoding="utf-8")
    config = tiny_config(model, write_rows(tmp_path / "rows.jsonl"), train__max_steps=1, eval__share=0)
    made = create_run(Workspace.at(tmp_path / "workspace"), config)
    two_days_ago = time.time() - 2 * 86400
    made.journal_path.unlink()
    JournalWriter(made.journal_path).write(Queued(time=two_days_ago))
    assert again(made).status is Status.DONE
    ids = read_table(made.data / "train.tokens.parquet")["input_ids"][0].as_py()
    assert load_tokenizer(model).decode(ids).startswith(time.strftime("%d %b %Y ", time.localtime(two_days_ago)))


def test_changed_rows_refuse_to_continue(whole: tuple[RunConfig, RunView], tmp_path: Path) -> None:
    config, _ = whole
    rows = write_rows(tmp_path / "rows.jsonl")
    config = config.changed({"data.sources": [{"id": str(rows)}]})
    made = interrupted(Workspace.at(tmp_path / "workspace"), config, Request.STOP, 3)
    receipt = made.receipt_path.read_text(encoding="utf-8")
    rows.write_text(rows.read_text(encoding="utf-8").replace("world", "planet"), encoding="utf-8")
    shutil.rmtree(made.data)
    view = again(made)
    assert made.receipt_path.read_text(encoding="utf-8") == receipt
    assert view.status is Status.FAILED
    assert view.ended is not None and view.ended.code == "resume-changed" and "the data" in view.ended.what
    assert (made.path / "adapter" / WEIGHTS).is_file()


def test_a_stop_in_the_check_that_is_made_up_for_leaves_it_owed(whole: tuple[RunConfig, RunView], tmp_path: Path) -> None:
    from qlora_ui.engine.job import run
    from qlora_ui.engine.trainer import QloraTrainer
    from qlora_ui.runs.read import read_run

    config, view = whole
    made = interrupted(Workspace.at(tmp_path), config, Request.PAUSE, 4)
    original = QloraTrainer.prediction_step

    def asking(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.is_in_train:
            made.request(Request.PAUSE)
        return original(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QloraTrainer, "prediction_step", asking)
        run(made.path)
    paused = read_run(made)
    assert (paused.status, paused.step) == (Status.PAUSED, 4) and not paused.evals
    assert_same(view, again(made))


def test_an_end_that_is_asked_for_in_the_last_check_leaves_it_out_and_says_so(whole: tuple[RunConfig, RunView], tmp_path: Path) -> None:
    from qlora_ui.runs.read import read_run

    config, view = whole
    done = read_run(interrupted(Workspace.at(tmp_path), config, Request.STOP, 8))
    assert done.status is Status.DONE and len(done.evals) < len(view.evals)
    assert "without the last check" in done.ended.reason and "check" not in view.ended.reason  # type: ignore[union-attr]


def test_a_run_whose_patience_was_used_up_ends_at_once_when_it_is_continued(
    whole: tuple[RunConfig, RunView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_ui.engine.callbacks import Best
    from qlora_ui.engine.job import Job, run

    class Killed(BaseException):
        pass

    def kill(*arguments: Any) -> None:
        raise Killed

    add = Best.add
    monkeypatch.setattr(Best, "add", lambda self, step, loss: add(self, step, float(step)))
    made = create_run(Workspace.at(tmp_path), whole[0].changed({"eval.every": 2, "eval.patience": 1}))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Job, "_completed", kill)
        run(made.path)
    ended = again(made)
    assert (ended.status, ended.step, ended.steps[-1].step, ended.evals[-1].step) == (Status.DONE, 4, 4, 4)
    assert isinstance(ended.ended, Finished) and "did not get better in 1 check" in ended.ended.reason


def test_what_the_curve_says_is_said_of_all_attempts_and_at_the_end(
    whole: tuple[RunConfig, RunView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_ui.engine.sentinels import Sentinels

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(Sentinels, "on_end", lambda self: asked.append((self._num_points, len(self._evals))))
    made = interrupted(Workspace.at(tmp_path), whole[0], Request.PAUSE, 4)
    assert asked == []
    assert again(made).status is Status.DONE
    assert asked == [(8, 2)]
