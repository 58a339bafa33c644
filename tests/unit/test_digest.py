"""A long journal in short: what a page is shown of the run is the same but for points of its curves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qlora_ui.runs import digest
from qlora_ui.runs.digest import digest_path, read_digest, write_digest
from qlora_ui.runs.events import Finished, MemoryMeasured, Queued, Started, StepLogged
from qlora_ui.runs.journal import JournalWriter, read_events
from qlora_ui.runs.read import RunReader, RunReaders, RunView
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from tests.journals import write_run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ui.runs.read.LONG_POINTS", 300)
    monkeypatch.setattr("qlora_ui.runs.digest.KEPT_POINTS", 60)
    monkeypatch.setattr("qlora_ui.runs.digest.LAST_LINES", 30)


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    """Continued once from its checkpoint of step 500, with a spike, a loss that is no number, and memory that was measured often."""
    run = write_run(workspace, num_steps=1000, done=700, end="paused", step_s=0.5)
    events = read_events(run.journal_path)
    writer, clock = JournalWriter(run.journal_path), events[-1].time + 3600
    started = next(event for event in events if isinstance(event, Started))
    memory = next(event for event in events if isinstance(event, MemoryMeasured))
    writer.write(Queued(time=clock))
    writer.write(replace(started, time=clock + 5, resumed_from=500, step=500))
    for step in range(501, 1001):
        clock += 0.5
        loss = 9.5 if step == 777 else math.nan if step == 900 else 0.6
        writer.write(StepLogged(time=clock, step=step, loss=loss, learning_rate=1e-4, step_s=0.5, tokens_per_s=100.0))
        peak = 1000 if step == 640 else 10
        writer.write(replace(memory, time=clock, step=step, at="tick", process_bytes=5000 + step % 7, peak_allocated_bytes=peak * 10**7))
    writer.write(Finished(time=clock + 1, step=1000, duration_s=250.0))
    return run


def essence(view: RunView) -> dict[str, object]:
    """All that is shown of a run but its curves."""
    names = set(RunView.__dataclass_fields__) - {"run", "steps", "memory", "config"}
    return {name: getattr(view, name) for name in names} | {"step": view.step, "first": view.steps[0], "last": view.steps[-10:]}


def test_the_second_opening_shows_the_same_run_with_fewer_points(workspace: Workspace, run: RunDir) -> None:
    whole = RunReaders(workspace).view(run)
    assert len(whole.steps) == 1000 and digest_path(run.journal_path).is_file()
    short = RunReaders(workspace).view(run)
    assert essence(short) == essence(whole)
    assert 50 < len(short.steps) < 200 and 50 < len(short.memory) < 200
    losses = {event.step: event.loss for event in short.steps}
    assert losses[777] == 9.5 and math.isnan(losses[900])
    # A job that goes on, and a command, have every point.
    assert len(RunReader(run).view().steps) == 1000


def test_what_is_added_later_comes_in_full(workspace: Workspace, run: RunDir) -> None:
    RunReaders(workspace).view(run)
    readers = RunReaders(workspace)
    few = len(readers.view(run).steps)
    writer = JournalWriter(run.journal_path)
    for step in range(1001, 1101):
        writer.write(StepLogged(time=1e9 + step, step=step, loss=0.5, learning_rate=1e-4))
    assert [event.step for event in readers.view(run).steps[few:]] == list(range(1001, 1101))
    assert len(RunReaders(workspace).view(run).steps) == few + 100
    # Taken up again at an earlier step: the points behind it are gone from the short form, too.
    writer.write(Started(pid=1, process_started=1.0, host="h", launcher="thread", versions={}, device="CPU", resumed_from=600, time=2e9))
    assert RunReaders(workspace).view(run).steps[-1].step <= 600 == RunReader(run).view().steps[-1].step


def test_a_run_that_is_deleted_while_its_journal_is_shortened_does_not_come_back(
    workspace: Workspace, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = digest._kept

    def delete(lines: list[bytes]) -> set[int]:
        run.path.rename(workspace.trash / run.id)
        return kept(lines)

    monkeypatch.setattr(digest, "_kept", delete)
    write_digest(run.journal_path, run.journal_size())
    assert list_runs(workspace) == []


def test_a_journal_that_got_shorter_meanwhile_is_not_taken_for_the_long_one(run: RunDir) -> None:
    end = run.journal_size()
    run.journal_path.write_bytes(run.journal_path.read_bytes()[: end // 2])
    write_digest(run.journal_path, end)
    assert read_digest(run.journal_path) is None


def test_a_short_form_of_another_journal_or_half_of_one_is_not_taken(workspace: Workspace, run: RunDir) -> None:
    end = run.journal_size()
    write_digest(run.journal_path, end)
    assert read_digest(run.journal_path)
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    for other in (b"".join(lines[:-1]), b"".join(lines[:-2] + lines[-1:] * 2), b"".join(lines[1:] + lines[:1])):
        run.journal_path.write_bytes(other)
        assert read_digest(run.journal_path) is None
    run.journal_path.write_bytes(b"".join(lines))
    assert read_digest(run.journal_path)
    digest_path(run.journal_path).write_text('{"version": 1}\n')
    assert read_digest(run.journal_path) is None and len(RunReaders(workspace).view(run).steps) == 1000
    # Written anew by that look.
    assert read_digest(run.journal_path)


def test_a_run_that_cannot_be_written_is_read_whole_each_time_and_a_short_one_needs_no_other_form(
    workspace: Workspace, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qlora_ui.runs.digest.write_text", refused)
    readers = RunReaders(workspace)
    assert len(readers.view(run).steps) == len(readers.view(run).steps) == 1000
    monkeypatch.undo()
    few = write_run(workspace, num_steps=40)
    RunReaders(workspace).view(few)
    assert not digest_path(few.journal_path).exists()
