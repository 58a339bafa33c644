"""What a journal is read as: one picture, incremental, right after resumes, crashes and broken lines; fast with thousands of runs."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ui.base import files
from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.cli import main
from qlora_ui.cli.train import ended_values
from qlora_ui.runs import events, listing
from qlora_ui.runs.card import Card, Turns
from qlora_ui.runs.events import (
    CheckpointSaved,
    EvalLogged,
    Failed,
    Finished,
    MemoryMeasured,
    Noticed,
    Paused,
    PhaseChanged,
    Planned,
    Queued,
    Started,
    StepLogged,
)
from qlora_ui.runs.journal import JournalWriter, read_events
from qlora_ui.runs.listing import RunList, compare, rename
from qlora_ui.runs.read import RunReader, RunReaders, RunView, read_run
from qlora_ui.runs.registry import create_run, delete_run, find_run, list_runs, newest_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, Request, RunDir, Status
from qlora_ui.runs.timing import seconds_left
from qlora_ui.runs.waiting import Left, find_left
from qlora_ui.runs.workspace import Ownership, Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.chosen import chosen_run
from qlora_ui.ui.run_lists import RunLists
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.run import head_html
from qlora_ui.ui.views.runs_table import reading_html, table_html
from tests.journals import run_with_checkpoint, write_run

PLAN = Planned(
    num_steps=10,
    num_train_rows=8,
    num_eval_rows=2,
    num_train_tokens=80,
    num_trained_tokens=40,
    effective_batch=4,
    trainable_params=10,
    total_params=100,
    eval_every=5,
    save_every=5,
)


def started(time_: float = 0.0, resumed_from: int | None = None) -> Started:
    return Started(time=time_, pid=1, process_started=0.0, host="", launcher="thread", versions={}, device="CPU", resumed_from=resumed_from)


def step(number: int, loss: float = 1.0, **values: Any) -> StepLogged:
    return StepLogged(step=number, loss=loss, learning_rate=0.1, step_s=2.0, **values)


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    return create_run(workspace, RunConfig().changed({"output.name": "first", "output.tags": "a,b"}))


def test_the_states_follow_from_the_journal_and_the_owner(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    reader = RunReader(run)
    assert reader.view().status is Status.QUEUED
    run.claim()
    journal.write(started())
    assert reader.view().status is Status.STARTING
    journal.write(PLAN)
    assert reader.view().status is Status.RUNNING
    run.release()
    assert reader.view().status is Status.CRASHED and reader.view().can_resume
    journal.write(Paused())
    assert reader.view().status is Status.PAUSED
    journal.write(Queued())
    assert reader.view().status is Status.QUEUED
    journal.write(Finished())
    assert reader.view().status is Status.DONE and not reader.view().can_resume


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_lines_wait_for_a_disk_that_takes_them(code: int, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *how: Any, **more: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    journal = JournalWriter(run.journal_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        patch.setattr("qlora_ui.runs.journal.LAST_S", 0.0)
        assert not journal.write(step(1)) and not journal.write(Finished()) and journal.refusal is not None
    assert journal.write(step(2)) and journal.refusal is None
    assert [event.step for event in read_events(run.journal_path) if not isinstance(event, Queued)] == [1, 0, 2]
    away = run.path.parent.rename(run.path.parent.with_name("away"))
    assert not journal.write(step(3))
    away.rename(run.path.parent)
    assert journal.write(step(4)) and read_events(run.journal_path)[-2].step == 3
    shutil.rmtree(run.path)
    with pytest.raises(FileNotFoundError):
        journal.write(step(5))


def test_a_checkpoint_is_known_though_a_power_cut_took_the_lines_that_tell_of_it(workspace: Workspace) -> None:
    made = run_with_checkpoint(workspace, num_steps=120, end="stopped")
    lines = made.journal_path.read_bytes().splitlines(keepends=True)
    made.journal_path.write_bytes(b"".join(lines[:2]) + bytes(300))
    view = read_run(made)
    assert view.status is Status.CRASHED and not view.checkpoints and view.saved_step == 114
    assert "Continue from step 114" in head_html(view)


def test_a_resumed_run_shows_every_step_once(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    now = time.time() + 10
    journal.write(started(now))
    for number in range(1, 8):
        journal.write(step(number, loss=10.0 + number, time=now + number))
    journal.write(EvalLogged(time=now + 7, step=7, loss=3.0))
    journal.write(CheckpointSaved(time=now + 8, step=5, path="checkpoints/checkpoint-5", num_bytes=1, duration_s=1.0))
    journal.write(started(now + 100, resumed_from=5))
    for number in range(6, 11):
        journal.write(step(number, loss=20.0 + number, time=now + 100 + number))
    journal.write(Finished(time=now + 115, final_loss=30.0))
    view = read_run(run)
    assert [event.step for event in view.steps] == list(range(1, 11))
    assert view.steps[5].loss == 26.0
    assert view.evals == () and len(view.checkpoints) == 1
    assert view.elapsed_s == pytest.approx(8.0 + 15.0)


def test_a_clock_that_is_set_while_a_run_works_does_not_change_how_long_it_took(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    year = 365 * 86_400.0
    for begins, ends in ((year, year + 40), (year + 100, 2 * year)):
        journal.write(started(begins))
        journal.write(Paused(time=ends, duration_s=30.0))
    assert read_run(run).elapsed_s == 60.0
    journal.write(started(3 * year))
    journal.write(Failed(time=3 * year + 7))  # by the launcher, which did not measure it
    assert read_run(run).elapsed_s == 67.0


def test_steps_between_two_points_of_the_curve_are_counted(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    reader = RunReader(run)
    for event in (started(), replace(PLAN, num_steps=25), step(1), step(10)):
        journal.write(event)
    assert reader.view().step == 10
    journal.write(CheckpointSaved(step=15, path="checkpoints/checkpoint-15", num_bytes=1, duration_s=1.0))
    assert reader.view().step == 15
    journal.write(Paused(step=17))
    assert reader.view().step == 17 and ended_values(reader.view())["steps"] == 17
    journal.write(started(resumed_from=15))
    assert reader.view().step == 15
    journal.write(Finished(step=25))
    assert reader.view().progress == 1.0


def test_reading_is_incremental_and_unchanged_is_the_same_object(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    reader = RunReader(run)
    first = reader.view()
    assert reader.view() is first
    journal.write(step(1))
    second = reader.view()
    assert second.version != first.version and len(second.steps) == 1
    run.write_about(notes="remember")
    assert reader.view().notes == "remember"


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"StepLogged","time":"x","step":1,"loss":1.0,"learning_rate":0.1}',
        '{"event":"StepLogged","time":1.0,"step":1,"loss":[],"learning_rate":0.1}',
        '{"event":"Finished","time":1.0,"step":1,"duration_s":"long","of_a_newer_version":1}',
        '{"event":["Queued"]}',
    ],
)
def test_a_value_of_another_kind_does_not_end_the_reading_of_all_runs(workspace: Workspace, run: RunDir, line: str) -> None:
    JournalWriter(run.journal_path).write(StepLogged(loss=2, learning_rate=1e-4, step=3))
    with run.journal_path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    assert [row.step for row in RunList(workspace).rows()] == [3]
    assert [type(event).__name__ for event in read_events(run.journal_path)] == ["Queued", "StepLogged"]


def test_what_is_remembered_of_lines_has_a_bound() -> None:
    def sizes() -> dict[str, int]:
        return {name: len(value) for name, value in vars(events).items() if isinstance(value, dict | set | list)}

    before = sizes()
    for time_ in ("1e300", "NaN", "-5", "Infinity"):
        assert events.from_line(f'{{"event":"Queued","time":{time_}}}') == Queued()
    assert events.from_line('{"event":"Queued","step":1.0}') == Queued(step=1) == events.from_line('{"event":"Queued","step":1,"newer":2}')
    assert sizes() == before


def test_broken_lines_and_newer_events_are_passed_over(run: RunDir) -> None:
    JournalWriter(run.journal_path).write(step(1))
    with run.journal_path.open("ab") as file:
        file.write(b'{"event": "FromTheFuture", "x": 1}\n{"event": "StepLogged", "st')
    JournalWriter(run.journal_path).write(step(2))
    assert [event.step for event in read_run(run).steps] == [1, 2]


def test_a_loss_that_is_no_number_is_read_as_it_was_written(run: RunDir) -> None:
    JournalWriter(run.journal_path).write(
        StepLogged(loss=float("nan"), learning_rate=1e-4, epoch=0.1, tokens=8, tokens_per_s=9.0, step_s=1.0)
    )
    step = read_events(run.journal_path)[-1]
    assert isinstance(step, StepLogged) and step.loss != step.loss


def test_the_highest_memory_is_counted_as_it_comes(run: RunDir) -> None:
    reader = RunReader(run)
    assert (reader.view().peak_bytes, reader.view().peak_measured_bytes) == (None, None)
    journal = JournalWriter(run.journal_path)
    measured: dict[str, Any] = {"allocated_bytes": None, "device_used_bytes": 90, "device_total_bytes": 99}
    for peak, process, reserved in ((None, 7, 5), (4, 9, 6), (8, None, 6), (3, 2, 1)):
        journal.write(MemoryMeasured(peak_allocated_bytes=peak, process_bytes=process, reserved_bytes=reserved, **measured))
        reader.view()
    assert (reader.view().peak_bytes, reader.view().peak_measured_bytes) == (8, 9)


def test_long_runs_leave_the_memory_once_no_page_looks_at_them(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(workspace, num_steps=40) for _ in range(4)]
    readers = RunReaders(workspace, most_points=100)
    for run in runs:
        readers.view(run)
    # Each is looked at now, by some page: to forget it would mean to read it again each second.
    assert all(readers.latest(run.id) for run in runs)
    now = time.monotonic() + 60
    monkeypatch.setattr("qlora_ui.runs.read.time.monotonic", lambda: now)
    readers.view(runs[0])
    newest = write_run(workspace, num_steps=4)
    readers.view(newest)
    assert [bool(readers.latest(run.id)) for run in (*runs, newest)] == [True, False, False, False, True]


def test_the_first_list_of_many_runs_keeps_the_newest_in_memory_only(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "NEWEST", 2)
    runs = [write_run(workspace, num_steps=4) for _ in range(4)]
    readers = RunReaders(workspace)
    assert [row.step for row in RunList(workspace, readers.view).rows()] == [4] * 4
    assert [bool(readers.latest(run.id)) for run in runs] == [False, False, True, True]


def test_a_page_does_not_wait_until_a_year_of_journals_is_read(workspace: Workspace) -> None:
    runs = [write_run(workspace, num_steps=4) for _ in range(4)]
    rows = RunList(workspace)
    seen = []
    for _ in range(5):
        found = rows.rows(within_s=-1)
        seen.append((len(found), rows.num_unread))
        rows.read_next()
    assert seen == [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)] and not rows.read_next()
    assert [row.id for row in found] == [run.id for run in reversed(runs)]
    # The next start goes on where this one ended.
    assert len(RunList(workspace).rows(within_s=-1)) == 4
    assert "3 to go" in reading_html(3) and not reading_html(0)


def test_a_journal_that_was_replaced_is_read_anew(run: RunDir) -> None:
    reader = RunReader(run)
    JournalWriter(run.journal_path).write(step(1))
    reader.view()
    run.journal_path.write_bytes(b"")
    assert reader.view().steps == ()


def test_time_left_counts_checks_and_saves() -> None:
    steps = [step(number, time=float(number)) for number in range(1, 6)]
    evals = [EvalLogged(step=5, loss=1.0, duration_s=4.0)]
    saves = [CheckpointSaved(step=5, path="", num_bytes=1, duration_s=3.0)]
    assert seconds_left(PLAN, steps, evals, saves, (), now=5.0) == pytest.approx(5 * 2.0 + 4.0 + 3.0)
    assert seconds_left(PLAN, steps, evals, saves, (), now=6.0) == pytest.approx(16.0)
    assert seconds_left(PLAN, steps[:1], evals, saves, (), now=5.0) is None


def test_many_threads_read_one_run_while_it_is_written(run: RunDir) -> None:
    journal = JournalWriter(run.journal_path)
    readers = RunReaders(Workspace(run.path.parent.parent))
    problems: list[str] = []
    done = threading.Event()

    def follow() -> None:
        last = 0
        while not done.is_set():
            steps = readers.view(run).steps
            if [event.step for event in steps] != list(range(1, len(steps) + 1)) or len(steps) < last:
                problems.append(f"{last} to {len(steps)}")
            last = len(steps)

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(1, 301):
        journal.write(step(number))
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(readers.view(run).steps) == 300


def test_runs_are_read_once_and_listed_fast(workspace: Workspace) -> None:
    template = create_run(workspace, RunConfig())
    journal = JournalWriter(template.journal_path)
    for event in (started(), PLAN, *(step(number, loss=1 / number) for number in range(1, 11)), Finished(final_loss=0.1)):
        journal.write(event)
    text, config = template.journal_path.read_bytes(), template.config_path.read_bytes()
    for number in range(100):
        path = workspace.runs / f"20260101-{number // 60:02d}{number % 60:02d}00-run-{number:04x}"
        path.mkdir()
        (path / "events.jsonl").write_bytes(text)
        (path / "config.yaml").write_bytes(config)
    runs = RunList(workspace)
    assert len(runs.rows()) == 101
    before = time.perf_counter()
    rows = runs.rows()
    warm = time.perf_counter() - before
    assert rows[0].final_loss == 0.1 and len(rows[0].sparkline) == 10
    assert warm < 0.2, f"{warm * 1000:.0f} ms for 101 runs that did not change"
    # Another process starts from the cache on the disk.
    before = time.perf_counter()
    assert [row.id for row in RunList(workspace).rows()] == [row.id for row in rows]
    assert time.perf_counter() - before < 1.0


def test_a_row_follows_its_run(workspace: Workspace, run: RunDir) -> None:
    runs = RunList(workspace)
    assert runs.rows()[0].status is Status.QUEUED
    run.claim()
    journal = JournalWriter(run.journal_path)
    journal.write(started())
    assert runs.rows()[0].status is Status.STARTING
    run.release()
    assert runs.rows()[0].status is Status.CRASHED
    rename(run, "  a better   name ")
    assert runs.rows()[0].name == "a better name"
    journal.write(Queued())
    # Its job, which may be about to begin, would make the folder anew, without settings.
    with pytest.raises(RunError, match=r"waits for its turn.*Take it out of the queue first"):
        delete_run(workspace, run)
    journal.write(Finished())
    delete_run(workspace, run)
    assert runs.rows() == [] and list_runs(workspace) == []
    damaged = create_run(workspace, RunConfig())
    damaged.journal_path.unlink()
    delete_run(workspace, damaged)
    assert list_runs(workspace) == []


def test_a_run_that_ends_while_it_is_looked_at_did_not_crash(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(run.journal_path)
    journal.write(started())

    def ends_now(self: RunDir) -> bool:
        journal.write(Finished())
        return False

    monkeypatch.setattr(RunDir, "owner_is_alive", ends_now)
    assert read_run(run).status is Status.DONE


@pytest.mark.parametrize("end", ["failed", "killed"])
def test_an_adapter_stays_on_offer_when_a_continuation_fails(end: str, workspace: Workspace) -> None:
    run = write_run(workspace, end="stopped", done=40)
    service, runs = Service(workspace), RunList(workspace)
    journal = JournalWriter(run.journal_path)
    journal.write(Queued())
    run.claim()
    journal.write(started(resumed_from=40))
    # Seen while it lives: nothing is written when it is killed.
    assert runs.rows()[0].has_adapter
    run.release()
    if end == "failed":
        journal.write(Failed(code="out-of-memory"))
    row = runs.rows()[0]
    assert (row.status, row.has_adapter) == (Status.FAILED if end == "failed" else Status.CRASHED, True)
    view = chosen_run(service, run.id)
    assert view is not None and view.id == run.id


def test_rows_that_an_earlier_version_wrote_down_are_read_again(workspace: Workspace) -> None:
    run = write_run(workspace, end="stopped", done=40)
    row = RunList(workspace).rows()[0]
    earlier = {run.id: [run.version_on_disk(), {**row.as_dict(), "has_adapter": False}]}
    (workspace.cache / "run-rows.json").write_text(json.dumps(earlier), encoding="utf-8")
    assert RunList(workspace).rows() == [row] and row.has_adapter


def test_a_run_that_may_not_be_read_does_not_hide_the_others(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = write_run(workspace, num_steps=4), write_run(workspace, num_steps=4)
    opened = Path.open

    def refuse(path: Path, *how: Any, **more: Any) -> Any:
        if path == theirs.journal_path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)
    rows = RunList(workspace)
    assert rows.rows(within_s=-1) == [] and all(rows.read_next() for _ in range(2))
    first, second = rows.rows()
    assert (first.id, first.status, first.problem) == (ours.id, Status.DONE, "")
    assert (second.id, second.status) == (theirs.id, Status.UNREADABLE)
    assert "events.jsonl cannot be read: Permission denied" in second.problem
    html = table_html([first, second], {}, (), page=0, num_found=2, num_all=2)
    assert "not readable" in html and second.problem in html and f"more-{ours.id}" in html and f"more-{theirs.id}" not in html
    assert main(["runs", "--workspace", str(workspace.root)]) == 0
    assert "cannot be read: Permission denied" in capsys.readouterr().out
    theirs.claim()
    monkeypatch.setattr("qlora_ui.runs.workspace.take_back", lambda folder: refuse(theirs.journal_path))
    with Ownership(workspace):
        pass
    assert find_left(workspace, []) == Left((), (), ())
    monkeypatch.undo()
    assert [row.status for row in rows.rows()] == [Status.DONE] * 2


@pytest.mark.parametrize("left", [b"", bytes(9000)], ids=["empty", "zeros"])
def test_a_journal_that_a_power_cut_emptied_is_no_run_that_waits(
    workspace: Workspace, left: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with_checkpoint(workspace, num_steps=120, end="stopped")
    run.journal_path.write_bytes(left)
    view = read_run(run)
    assert (view.status, view.can_resume, view.has_checkpoint) == (Status.CRASHED, True, True)
    assert time.time() - 100 < view.created <= time.time()
    html = head_html(view)
    assert "went down" in html and "Its journal holds nothing" in html and "Continue from step 114" in html
    assert main(["runs", "resume-info", "--workspace", str(workspace.root)]) == 0
    assert f"“train --resume {run.id}” continues it from step 114." in capsys.readouterr().out
    assert find_left(workspace, []).waiting == ()
    delete_run(workspace, run)


def test_a_run_whose_settings_cannot_be_read_is_not_offered_to_be_continued(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(workspace, num_steps=8, done=4, end="paused")
    rows, reader = RunList(workspace), RunReader(run)
    assert rows.rows()[0].can_resume and reader.view().can_resume
    good = run.config_path.read_bytes()
    run.config_path.write_text("lora: {rank: [", encoding="utf-8")
    row, view = rows.rows()[0], reader.view()
    assert not row.can_resume and not view.can_resume and row.problem == view.problem
    assert ">Continue<" not in table_html([row], {}, (), page=0, num_found=1, num_all=1)
    html = head_html(view)
    assert 'data-act="resume"' not in html and "Without its settings it cannot be continued." in html
    assert main(["runs", "resume-info", "--json", "--workspace", str(workspace.root)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert not info["can_resume"] and "is paused and cannot be continued: " in info["message"] and "config.yaml" in info["message"]
    assert main(["train", "--resume", run.id, "--workspace", str(workspace.root)]) == 2
    assert "cannot be continued" in capsys.readouterr().err and read_run(run).status is Status.PAUSED
    run.config_path.write_bytes(good)
    assert rows.rows()[0].can_resume and reader.view().can_resume


def test_settings_of_a_newer_app_are_named_and_not_called_misspelt(run: RunDir) -> None:
    text = run.config_path.read_text(encoding="utf-8")
    run.config_path.write_text(text.replace("train:\n", "train:\n  brand_new: 1\n"), encoding="utf-8")
    view = read_run(run)
    assert view.config is None and "does not know: train.brand_new. Another version of the app made it" in view.problem
    assert "Did you mean" not in view.problem and "Update QLoRA UI" in view.problem


def test_differences_of_two_runs_are_found() -> None:
    rows = compare(RunConfig(), RunConfig().changed({"lora.rank": 8}))
    assert rows == [("lora.rank", (16, 8))]


def test_requests_are_taken_once(run: RunDir) -> None:
    run.request(Request.STOP)
    run.request(Request.STOP)
    assert run.pending_requests() == [Request.STOP]
    assert run.take_request(Request.STOP) and not run.take_request(Request.STOP)


def test_the_command_line_gets_its_line(run: RunDir) -> None:
    JournalWriter(run.journal_path).write(Finished(step=4, final_loss=0.5, tokens_per_s=100.04, peak_bytes=7))
    values = ended_values(read_run(run))
    assert list(values) == ["run_id", "status", "run_dir", "steps", "final_loss", "tokens_per_s", "peak_bytes"]
    assert (values["status"], values["final_loss"], values["tokens_per_s"], values["peak_bytes"]) == ("done", 0.5, 100.0, 7)


def test_a_full_disk_loses_no_event(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(run.journal_path)
    original = Path.open

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == run.journal_path and is_full:
            raise OSError(28, "No space left on device")
        return original(self, *arguments, **named)

    is_full = True
    monkeypatch.setattr(Path, "open", full)
    journal.write(Noticed(level="info", code="x", what="while full"))
    is_full = False
    journal.write(PhaseChanged(phase="train"))
    kinds = [type(event).__name__ for event in read_events(run.journal_path)]
    assert kinds == ["Queued", "Noticed", "PhaseChanged"]


@pytest.mark.parametrize("num_waiting", [3, 2000])
def test_the_last_event_takes_the_room_that_was_kept_for_it(num_waiting: int, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.claim()
    reserve = run.path / ".reserve"
    room = reserve.stat().st_size
    original = Path.open

    def opened(self: Path, mode: str = "r", buffering: int = -1, **named: Any) -> Any:
        if self != run.journal_path or "a" not in mode:
            return original(self, mode, buffering, **named)
        _SmallDisk.room = 0 if reserve.exists() else room
        return _SmallDisk(str(self), "ab")

    monkeypatch.setattr(Path, "open", opened)
    journal = JournalWriter(run.journal_path)
    for number in range(1, num_waiting + 1):
        assert not journal.write(step(number))
    assert journal.write(Failed(what="The disk is full."), durable=True) and not reserve.exists()
    view = read_run(run)
    assert view.status is Status.FAILED and view.steps[-1].step == num_waiting
    run.release()


def test_a_run_that_cannot_be_written_down_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalWriter, "write", lambda self, event, *, durable=False: False)
    with pytest.raises(RunError, match="The disk is full"):
        create_run(workspace, RunConfig())
    assert not list_runs(workspace)


class _SmallDisk(io.FileIO):
    """A file on a disk that has room for some bytes more: it takes the first of a write and then refuses."""

    room = 0

    def write(self, data: Any) -> int:
        if not _SmallDisk.room:
            raise OSError(28, "No space left on device")
        taken = super().write(bytes(data)[: _SmallDisk.room])
        _SmallDisk.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 60, 150, 400, 520])
def test_lines_that_are_on_the_disk_are_not_written_again(room: int, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(run.journal_path)
    original = Path.open

    def opened(self: Path, mode: str = "r", buffering: int = -1, **named: Any) -> Any:
        if self != run.journal_path or "a" not in mode:
            return original(self, mode, buffering, **named)
        raw = _SmallDisk(str(self), "ab")
        return raw if buffering == 0 else io.BufferedWriter(raw)

    monkeypatch.setattr(Path, "open", opened)
    _SmallDisk.room = 0
    for number in range(1, 4):
        journal.write(step(number))
    # Room for a part of what waits, then for a bit of the next line, then for all.
    for number, space in ((4, room), (5, 7), (6, 10**6)):
        _SmallDisk.room = space
        journal.write(step(number))
    lines = run.journal_path.read_bytes().split(b"\n")
    assert [event.step for event in read_events(run.journal_path) if isinstance(event, StepLogged)] == [1, 2, 3, 4, 5, 6]
    assert len([line for line in lines if line.startswith(b"{") and line.endswith(b"}")]) == 7


def test_turns_come_in_the_order_of_asking() -> None:
    turns = Turns()
    order: list[str] = []

    def chat() -> None:
        with turns.turn():
            order.append("chat")

    with turns.turn():
        order.append("step 1")
        waiting = threading.Thread(target=chat)
        waiting.start()
        while turns._issued < 2:
            time.sleep(0.001)
        turns.pass_on()
        order.append("step 2")
    waiting.join()
    assert order == ["step 1", "chat", "step 2"]


def test_the_card_has_one_holder_unless_both_fit() -> None:
    card = Card()
    with card.hold("training", "run-1"):
        with pytest.raises(Exception, match="A training run has a model in memory"):
            card.hold("chat", "model")
        with card.hold("chat", "model", beside=("training",)):
            assert [holder.who for holder in card.holders()] == ["training", "chat"]
    assert card.holder() is None


def test_the_wait_for_a_chat_that_does_not_let_go_can_be_given_up() -> None:
    card, asked = Card(), []
    card.hold("chat", "model", release=lambda: asked.append(True))
    began = time.monotonic()
    with pytest.raises(RunError, match="The chat has a model in memory"):
        card.hold_after_chat("evaluation", "run-1", run_id="1", is_cancelled=lambda: True)
    assert asked and time.monotonic() - began < 5


def test_in_one_moment_a_run_looks_the_same_however_often_it_is_looked_at(workspace: Workspace) -> None:
    run = write_run(workspace, end="live", num_steps=40, done=30)
    readers = RunReaders(workspace)
    assert readers.latest(run.id) is None
    pictures: dict[str, RunView] = {}
    with readers.in_one_moment(pictures):
        before = readers.view(run)
        JournalWriter(run.journal_path).write(Finished(step=40))
        assert readers.view(run) is before and before.status is Status.RUNNING
    assert readers.view(run).status is Status.DONE
    with readers.in_one_moment(pictures):
        assert readers.view(run) is before
    latest = readers.latest(run.id)
    assert latest is not None and latest.status is Status.DONE


def test_the_list_of_many_runs_sees_what_matters_at_once_and_the_rest_soon(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "NEWEST", 2)
    first = write_run(workspace, end="done", num_steps=20)
    for number in range(4):
        shutil.copytree(first.path, workspace.runs / f"20250101-00000{number}-copy-{number:04x}")
    live = RunDir(workspace.runs / "20240101-000000-old-0000")
    shutil.copytree(write_run(workspace, end="live", num_steps=40, done=20).path, live.path)
    runs = RunList(workspace)
    assert {row.id: row.step for row in runs.rows()}[live.id] == 20
    # A run that goes on, however old, and one that goes: at once.
    JournalWriter(live.journal_path).write(StepLogged(step=21, loss=1.0, learning_rate=1e-4, tokens_per_s=9.0))
    gone = RunDir(workspace.runs / "20250101-000003-copy-0003")
    delete_run(workspace, gone)
    seen = {row.id: row for row in runs.rows()}
    assert seen[live.id].step == 21 and gone.id not in seen
    # Another name of an old one that ended: once it is asked for, or after some seconds.
    old = RunDir(workspace.runs / "20250101-000000-copy-0000")
    old.write_about(name="Renamed")
    runs.forget()
    assert {row.id: row.name for row in runs.rows()}[old.id] == "Renamed"
    old.write_about(name="Renamed again")
    monkeypatch.setattr(listing, "LOOK_AT_ALL_S", 0.0)
    assert {row.id: row.name for row in runs.rows()}[old.id] == "Renamed again"


def test_the_list_is_of_the_moment_that_a_page_is_drawn_in(workspace: Workspace) -> None:
    run = write_run(workspace, end="live", num_steps=40, done=40)
    readers = RunReaders(workspace)
    lists = RunLists(workspace, readers)
    assert lists.rows()[0].status is Status.RUNNING
    JournalWriter(run.journal_path).write(Finished(step=40))
    with readers.in_one_moment({}):
        assert readers.view(run).status is lists.rows()[0].status is Status.DONE


def test_what_happens_while_a_page_is_drawn_is_in_the_list_of_the_next_moment(workspace: Workspace) -> None:
    run = write_run(workspace, end="live", num_steps=40, done=40)
    readers = RunReaders(workspace)
    lists = RunLists(workspace, readers)
    with readers.in_one_moment({}):
        readers.view(run)
        JournalWriter(run.journal_path).write(Finished(step=40))
        run.release()
        rename(run, "Tickets")
        lists.rows()
    with readers.in_one_moment({}):
        assert (lists.rows()[0].status, lists.rows()[0].name) == (Status.DONE, "Tickets")


def test_settings_that_come_a_moment_after_their_run_are_seen(workspace: Workspace) -> None:
    lists = RunLists(workspace, RunReaders(workspace))
    run = create_run(workspace, RunConfig())
    settings = run.config_path.read_text(encoding="utf-8")
    run.config_path.unlink()
    assert lists.config(run.id) is None
    run.config_path.write_text(settings, encoding="utf-8")
    assert lists.config(run.id) == RunConfig()


def test_files_that_were_edited_by_hand_cost_no_list(workspace: Workspace) -> None:
    run = write_run(workspace, num_steps=4)
    run.config_path.write_bytes("output:\n  name: Müller\n".encode("cp1252"))
    (run.path / "about.json").write_text('{"name": 5, "tags": 7, "notes": "mine"}', encoding="utf-8")
    (row,) = RunList(workspace).rows()
    assert (row.status, row.name, row.notes) == (Status.DONE, run.default_name, "mine")
    assert "config.yaml is not UTF-8" in read_run(run).problem


def test_what_a_run_can_go_on_from_is_told_whatever_else_lies_beside_it(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(workspace, end="paused", num_steps=40, done=20)
    for name in ("checkpoint-10", "checkpoint-20", "checkpoint-20 copy", "checkpoint-30"):
        (run.checkpoints / name).mkdir(parents=True, exist_ok=True)
        if name != "checkpoint-30":
            (run.checkpoints / name / ADAPTER_WEIGHTS).touch()
    assert main(["runs", "resume-info", "--json", "--workspace", str(workspace.root)]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == 20


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows keeps its time zone")
def test_the_newest_run_is_the_one_made_last_also_when_the_wall_clock_went_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    try:
        for zone in ("UTC-14", "UTC+12", "UTC"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            runs.append(create_run(workspace, RunConfig()))
    finally:
        monkeypatch.undo()
        time.tzset()
    (workspace.runs / "20249999-999999-odd-0000").mkdir()
    old = workspace.runs / "20240101-000000-old-0000"
    shutil.copytree(runs[-1].path, old)
    assert [run.id for run in runs] != sorted(run.id for run in runs)
    assert newest_run(workspace) == find_run(workspace, "latest") == runs[-1]
    assert list_runs(workspace)[:3] == runs[::-1] and list_runs(workspace)[-1] == RunDir(old)
    # One that has nothing on its journal yet.
    begun = RunDir(runs[-1].path.with_name("20990101-000000-begun-0000"))
    begun.path.mkdir()
    assert newest_run(workspace) == begun


def test_the_newest_run_is_found_when_one_comes_and_when_one_goes(workspace: Workspace) -> None:
    service = Service(workspace)
    assert service.run_for("") is None
    for _ in range(5):
        run = write_run(workspace, num_steps=20)
        newest = service.run_for("")
        assert newest is not None and newest == newest_run(workspace) == list_runs(workspace)[0]
    # As if all that had been long ago: the folder's own time tells.
    os.utime(workspace.runs, ns=(10**18, 10**18))
    assert service.run_for("") == service.run_for("")
    shutil.move(run.path, workspace.trash / run.id)
    assert service.run_for("") == list_runs(workspace)[0]


def test_runs_that_were_copied_renamed_or_moved_to_another_disk_are_listed_and_open(workspace: Workspace, tmp_path: Path) -> None:
    first, moved = write_run(workspace, num_steps=4), write_run(workspace, num_steps=4)
    shutil.copytree(first.path, workspace.runs / "The best one (copy)")
    os.rename(moved.path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", moved.path, target_is_directory=True)
    (workspace.runs / "notes").mkdir()
    shutil.copytree(first.path, workspace.runs / '"><b>')
    rows = RunList(workspace).rows()
    assert {row.id for row in rows} == {first.id, moved.id, "The best one (copy)"} and [row.step for row in rows] == [4, 4, 4]
    assert [read_run(find_run(workspace, row.id)).status for row in rows] == [Status.DONE] * 3
    assert newest_run(workspace) == moved
    for strange in ("..", "../elsewhere", f"{first.id}/../../../elsewhere", ""):
        with pytest.raises(QloraUiError):
            find_run(workspace, strange)
    assert delete_run(workspace, find_run(workspace, moved.id)).is_symlink() and (tmp_path / "elsewhere" / "config.yaml").is_file()


@pytest.mark.parametrize(
    "kept", ['{"x": 5}', '{"x": [1, 2, 3]}', '{"x": ["1", null]}', "[1]", '{"x": ["1", {"status": "done", "tags": 1}]}']
)
def test_a_list_that_another_program_has_written_is_read_again(workspace: Workspace, kept: str) -> None:
    run = write_run(workspace, end="done")
    (workspace.cache / "run-rows.json").write_text(kept, encoding="utf-8")
    assert [row.id for row in RunList(workspace).rows()] == [run.id]


def test_a_name_and_tags_that_are_given_at_the_same_moment_are_both_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(workspace, RunConfig())
    read = files.read_json
    monkeypatch.setattr(files, "read_json", lambda path: (read(path), time.sleep(0.05))[0])
    changes: list[dict[str, Any]] = [{"name": "Pirate"}, {"notes": "remember"}, {"tags": ["best"]}]
    writers = [threading.Thread(target=run.write_about, kwargs=change) for change in changes]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert run.about() == {"name": "Pirate", "notes": "remember", "tags": ["best"]}
