"""The launcher with a job of a few lines in the engine's place: one run for a hundred presses, queue, endings, restarts."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.cli import main
from qlora_ui.runs import launcher as launcher_module
from qlora_ui.runs import process as process_module
from qlora_ui.runs import thread as thread_module
from qlora_ui.runs.card import Card, Holder, Turns
from qlora_ui.runs.ending import end_as_another_said, end_unended
from qlora_ui.runs.events import Failed, Finished, Paused, Planned, Started, StepLogged, Stopped
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.launcher import Launcher, ask
from qlora_ui.runs.owner import describe_owner
from qlora_ui.runs.parts import clear_failures, leave_failure
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import create_run, find_run, list_runs
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Ownership, Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.action import Action
from qlora_ui.ui.page import Page
from qlora_ui.ui.run_actions import perform
from qlora_ui.ui.service import Service
from tests.journals import write_run

PLAN = Planned(
    num_steps=1000,
    num_train_rows=8,
    num_eval_rows=0,
    num_train_tokens=80,
    num_trained_tokens=40,
    effective_batch=4,
    trainable_params=10,
    total_params=100,
)


ROOT = Path(__file__).parents[2]
CRASHING = """
import sys, time
from pathlib import Path
from qlora_ui.runs.events import Started, StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir
run = RunDir(Path(sys.argv[1]))
run.claim()
journal = JournalWriter(run.journal_path)
journal.write(Started(pid=1, process_started=0.0, host="", launcher="thread", versions={}, device="CPU"))
journal.write(StepLogged(step=3, loss=1.0, learning_rate=0.1))
print("up", flush=True)
time.sleep(60)
"""
OWNING = """
import sys, time
from qlora_ui.runs.workspace import Ownership, Workspace
with Ownership(Workspace.at(sys.argv[1])) as ownership:
    ownership.note("http://127.0.0.1:7860")
    print("up", flush=True)
    time.sleep(60)
"""


class Stage:
    """A job that steps until it is told to end; the test decides when it may go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.may_leave = threading.Event()
        self.may_leave.set()
        self.order: list[str] = []
        self.leaves_without_a_word = False

    def __call__(self, path: Path, *, turns: Any) -> None:
        run = RunDir(path)
        run.claim()
        self.order.append(run.id)
        journal = JournalWriter(run.journal_path)
        journal.write(Started(pid=1, process_started=0.0, host="", launcher="thread", versions={}, device="CPU"))
        journal.write(PLAN)
        step = 0
        while not self.go.is_set() and not run.pending_requests():
            step += 1
            journal.write(StepLogged(step=step, loss=1.0, learning_rate=0.1, step_s=0.01))
            time.sleep(0.01)
        requests = run.pending_requests()
        for request in requests:
            run.take_request(request)
        if not self.leaves_without_a_word:
            journal.write(Paused() if Request.PAUSE in requests else Stopped() if requests else Finished())
        self.may_leave.wait(5)
        run.release()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(thread_module, "engine_object", lambda name: stage)
    return stage


@pytest.fixture
def launcher(workspace: Workspace, stage: Stage) -> Iterator[Launcher]:
    launcher = Launcher(workspace, Card())
    yield launcher
    stage.go.set()
    launcher.shutdown(5)


def until(holds: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def named(name: str) -> RunConfig:
    return RunConfig().changed({"output.name": name})


def test_a_hundred_presses_start_one_run(launcher: Launcher, workspace: Workspace, stage: Stage) -> None:
    runs: list[RunDir] = []
    presses = [threading.Thread(target=lambda: runs.append(launcher.start(RunConfig(), key="press-1"))) for _ in range(100)]
    for press in presses:
        press.start()
    for press in presses:
        press.join()
    assert len(runs) == 100 and len(set(runs)) == 1
    assert len(list_runs(workspace)) == 1
    stage.go.set()
    assert launcher.wait_until_idle(5)
    assert stage.order == [runs[0].id]


def test_equal_settings_at_once_are_one_press_and_another_key_is_another_run(launcher: Launcher) -> None:
    assert launcher.start(RunConfig()) == launcher.start(RunConfig())
    assert launcher.start(RunConfig(), key="a") != launcher.start(RunConfig(), key="b")
    assert launcher.start(named("x")) != launcher.start(named("y"))


def test_the_queue_is_worked_off_in_its_order_and_can_be_changed(launcher: Launcher, stage: Stage) -> None:
    first, second, third, fourth = (launcher.start(named(name)) for name in "abcd")
    until(lambda: launcher.current() == first)
    launcher.move(fourth, 0)
    launcher.cancel(second)
    assert launcher.queue() == [fourth, third]
    assert read_run(second).status is Status.STOPPED
    with pytest.raises(RunError, match="does not wait any more"):
        launcher.cancel(second)
    stage.go.set()
    assert launcher.wait_until_idle(5)
    assert stage.order == [first.id, fourth.id, third.id]


@pytest.mark.parametrize(("request_", "status"), [(Request.STOP, Status.STOPPED), (Request.PAUSE, Status.PAUSED)])
def test_a_request_says_when_and_ends_the_run(launcher: Launcher, request_: Request, status: Status) -> None:
    run = launcher.start(RunConfig())
    until(lambda: read_run(run).steps)
    assert "after this step" in launcher.request(run, request_)
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is status
    with pytest.raises(RunError, match=f"it is {status.value}"):
        launcher.request(run, request_)


def test_stopping_a_waiting_run_takes_it_out(launcher: Launcher) -> None:
    running = launcher.start(named("a"))
    waiting = launcher.start(named("b"))
    until(lambda: launcher.current() == running)
    assert launcher.request(waiting, Request.STOP) == "Taken out of the queue."
    assert launcher.queue() == [] and read_run(waiting).status is Status.STOPPED


def test_a_paused_run_continues_and_two_presses_are_one(launcher: Launcher, stage: Stage) -> None:
    run = launcher.start(RunConfig())
    until(lambda: read_run(run).steps)
    launcher.request(run, Request.PAUSE)
    assert launcher.wait_until_idle(5)
    stage.go.set()
    assert launcher.resume(run) == launcher.resume(run) == run
    assert launcher.wait_until_idle(5)
    assert stage.order == [run.id, run.id]
    assert read_run(run).status is Status.DONE
    with pytest.raises(RunError, match="It is done"):
        launcher.resume(run)


def test_continue_pressed_while_the_job_leaves_is_heard(launcher: Launcher, stage: Stage) -> None:
    stage.may_leave.clear()
    run = launcher.start(RunConfig())
    until(lambda: read_run(run).steps)
    assert launcher.resume(run) == run  # it runs: nothing to do
    launcher.request(run, Request.PAUSE)
    until(lambda: read_run(run).status is Status.PAUSED)
    assert launcher.resume(run) == launcher.resume(run) == run
    # The leaving job is the journal's writer to its end.
    assert read_run(run).status is Status.PAUSED and launcher.current() == run
    stage.go.set()
    stage.may_leave.set()
    assert launcher.wait_until_idle(5)
    assert stage.order == [run.id, run.id] and read_run(run).status is Status.DONE


@pytest.mark.parametrize("way", ["stop", "pause", "remove"])
def test_a_stop_pressed_while_the_engine_is_loaded_is_heard(
    way: str, launcher: Launcher, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()
    monkeypatch.setattr(thread_module, "engine_object", lambda name: stage if loaded.wait(5) else None)
    run = launcher.start(RunConfig())
    until(lambda: launcher.current() == run)
    assert read_run(run).status is Status.QUEUED
    with pytest.raises(RunError, match="has not started"):
        launcher.request(run, Request.SAVE_NOW)
    if way == "remove":
        launcher.cancel(run)
    else:
        assert "as soon as it has begun" in launcher.request(run, Request(way))
    loaded.set()
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is (Status.PAUSED if way == "pause" else Status.STOPPED) and not read_run(run).steps


def test_a_run_waits_for_the_card_and_says_for_whom(workspace: Workspace, stage: Stage) -> None:
    card = Card()
    launcher = Launcher(workspace, card)
    asked: list[bool] = []
    hold = card.hold("chat", "SmolLM2", release=lambda: asked.append(True))
    run = launcher.start(RunConfig())
    until(lambda: launcher.waiting_for() is not None)
    holder = launcher.waiting_for()
    assert holder is not None and holder.sentence() == "The chat has a model in memory (SmolLM2)."
    assert read_run(run).status is Status.QUEUED
    assert card.free("chat") and asked == [True]
    stage.go.set()
    hold.give_back()
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is Status.DONE
    launcher.shutdown(5)


def test_who_is_in_the_way_is_told_and_not_who_is_company(workspace: Workspace, stage: Stage) -> None:
    card = Card()
    asked: list[Holder] = []
    launcher = Launcher(workspace, card, fits_beside=lambda config, holder: holder.who == "chat", make_room=asked.append)
    card.hold("chat", "SmolLM2", release=lambda: None)
    evaluation = card.hold("evaluation", "Pirate", run_id="1", beside=("chat",))
    launcher.start(named("Parrot"))
    until(lambda: launcher.waiting_for() is not None and asked)
    assert launcher.waiting_for() == asked[0] == evaluation.holder
    evaluation.give_back()
    until(lambda: launcher.current() is not None)
    assert [holder.what for holder in card.holders()] == ["SmolLM2", "Parrot"]  # its name, and not its id
    stage.go.set()
    assert launcher.wait_until_idle(5)
    launcher.shutdown(5)


def test_a_run_starts_beside_a_chat_where_both_fit(workspace: Workspace, stage: Stage) -> None:
    card = Card()
    launcher = Launcher(workspace, card, fits_beside=lambda config, holder: holder.who == "chat")
    card.hold("chat", "SmolLM2")
    launcher.start(RunConfig())
    until(lambda: launcher.current() is not None)
    assert [holder.who for holder in card.holders()] == ["chat", "training"]
    stage.go.set()
    assert launcher.wait_until_idle(5)
    launcher.shutdown(5)


def test_a_job_that_leaves_without_a_word_is_a_failure(launcher: Launcher, stage: Stage) -> None:
    stage.leaves_without_a_word = True
    stage.go.set()
    run = launcher.start(RunConfig())
    assert launcher.wait_until_idle(5)
    ended = read_run(run).ended
    assert isinstance(ended, Failed) and "without a word" in ended.what


def test_a_job_that_a_full_disk_keeps_from_beginning_says_so(launcher: Launcher, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: RunDir) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "claim", full)
        run = launcher.start(RunConfig())
        assert (run.path / ".reserve").is_file()
        assert launcher.wait_until_idle(5)
    view = read_run(run)
    assert isinstance(view.ended, Failed) and view.ended.why == "The disk is full."
    assert not (run.path / ".reserve").exists()
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "write", lambda self, event, *, durable=False: False)
        with pytest.raises(RunError, match="The disk is full"):
            launcher.resume(run)
    assert launcher.queue() == [] and read_run(run).ended == view.ended


def test_a_full_disk_or_a_folder_that_is_gone_stops_one_run_and_not_the_next(
    launcher: Launcher, workspace: Workspace, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = launcher.start(named("deleted"))
    until(lambda: read_run(deleted).steps)
    deleted.path.rename(workspace.trash / deleted.id)
    assert launcher.wait_until_idle(5) and launcher.current() is None

    def full(workspace: Workspace, ids: list[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launcher_module, "write_order", full)
    stage.go.set()
    run = launcher.start(named("on a full disk"))
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is Status.DONE

    def broken(run: RunDir) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(launcher_module, "config_or_none", broken)
        unread = launcher.start(named("unread"))
        assert launcher.wait_until_idle(5)
    ended = read_run(unread).ended
    assert isinstance(ended, Failed) and "Input/output error" in ended.why
    following = launcher.start(named("following"))
    assert launcher.wait_until_idle(5)
    assert read_run(following).status is Status.DONE


def test_a_run_that_is_deleted_while_it_waits_does_not_come_back(launcher: Launcher, workspace: Workspace, stage: Stage) -> None:
    first, second = launcher.start(named("first")), launcher.start(named("second"))
    until(lambda: read_run(first).steps)
    shutil.rmtree(second.path)
    stage.go.set()
    assert launcher.wait_until_idle(5) and stage.order == [first.id]
    assert list_runs(workspace) == [first]


def test_a_run_that_lost_its_settings_can_still_be_deleted(workspace: Workspace) -> None:
    service, run = Service(workspace), write_run(workspace, end="done")
    run.config_path.unlink()
    assert [row.id for row in service.run_lists.rows()] == [run.id]
    perform(cast(Page, SimpleNamespace(service=service)), Action("delete", run.id, "", False, {}))
    assert not list_runs(workspace)


def test_shutdown_beside_a_folder_that_is_gone(workspace: Workspace, stage: Stage) -> None:
    launcher = Launcher(workspace, Card())
    run = launcher.start(RunConfig())
    until(lambda: read_run(run).steps)
    stage.leaves_without_a_word = True
    run.path.rename(workspace.trash / run.id)
    assert launcher.shutdown(5)
    assert not run.path.exists()


def test_shutdown_stops_and_saves_and_keeps_the_queue(workspace: Workspace, stage: Stage) -> None:
    launcher = Launcher(workspace, Card())
    running, waiting = launcher.start(named("a")), launcher.start(named("b"))
    until(lambda: read_run(running).steps)
    assert launcher.shutdown(5)
    assert read_run(running).status is Status.STOPPED
    assert read_run(waiting).status is Status.QUEUED
    with pytest.raises(RunError, match="closing"):
        launcher.start(RunConfig())

    following = Launcher(workspace, Card())
    stage.go.set()
    assert following.restore() == [] and not following.is_held
    assert following.wait_until_idle(5)
    assert read_run(waiting).status is Status.DONE
    following.shutdown(5)


def left_by_an_app(workspace: Workspace, *names: str) -> list[RunDir]:
    """Runs that waited, in this order, when their app ended."""
    launcher = Launcher(workspace, Card())
    launcher.hold(True)
    runs = [launcher.start(named(name)) for name in names]
    launcher.move(runs[-1], 0)
    launcher.shutdown(5)
    return [runs[-1], *runs[:-1]]


def test_the_queue_of_an_earlier_app_goes_on_after_a_rest_or_with_the_next_wish(workspace: Workspace, stage: Stage) -> None:
    runs = left_by_an_app(workspace, "a", "b", "c")
    stage.go.set()
    launcher = Launcher(workspace, Card())
    assert launcher.restore(rest_s=60) == [] and launcher.queue() == runs
    time.sleep(0.05)
    assert launcher.current() is None and stage.order == []
    launcher.cancel(runs[1])
    wished = launcher.start(named("d"))
    assert launcher.wait_until_idle(5)
    assert stage.order == [runs[0].id, runs[2].id, wished.id]
    launcher.shutdown(5)

    runs = left_by_an_app(workspace, "e", "f")
    launcher = Launcher(workspace, Card())
    launcher.restore(rest_s=0.1)
    assert launcher.wait_until_idle(5)
    assert stage.order[-2:] == [run.id for run in runs]
    launcher.shutdown(5)


def test_train_of_the_command_line_neither_starts_nor_loses_the_queue_of_the_app(workspace: Workspace, stage: Stage) -> None:
    first, second, third = left_by_an_app(workspace, "a", "b", "c")
    stage.go.set()
    for work in (lambda launcher: launcher.start(named("d")), lambda launcher: launcher.resume(second)):
        launcher = Launcher(workspace, Card())
        run = work(launcher)
        assert launcher.wait_until_idle(5) and launcher.shutdown(5)
        assert stage.order[-1] == run.id
    assert len(stage.order) == 2
    launcher = Launcher(workspace, Card())
    launcher.hold(True)
    launcher.restore()
    assert launcher.queue() == [first, third]
    launcher.shutdown(5)


def test_a_run_whose_app_ended_before_its_job_began_waits_and_holds_the_queue(workspace: Workspace, stage: Stage) -> None:
    """Whatever ended that app, the import of a broken driver for one, must not end each following one."""
    orderly = left_by_an_app(workspace, "a", "b")
    popped = create_run(workspace, named("popped"))
    create_run(workspace, named("no settings")).config_path.unlink()
    launcher = Launcher(workspace, Card())
    assert launcher.restore() == []
    assert launcher.queue() == [popped, *orderly] and launcher.is_held and launcher.current() is None
    assert launcher.request(popped, Request.STOP) == "Taken out of the queue."
    stage.go.set()
    launcher.hold(False)
    assert launcher.wait_until_idle(5)
    assert stage.order == [run.id for run in orderly]
    launcher.shutdown(5)


def test_a_waiting_run_that_a_process_of_an_earlier_app_has_begun_is_not_taken_out(workspace: Workspace) -> None:
    (run,) = left_by_an_app(workspace, "a")
    launcher = Launcher(workspace, Card())
    launcher.hold(True)
    launcher.restore()
    run.claim()
    JournalWriter(run.journal_path).write(Started(pid=1, process_started=0.0, host="", launcher="process", versions={}, device="CPU"))
    with pytest.raises(RunError, match="does not wait any more"):
        launcher.cancel(run)
    assert launcher.request(run, Request.STOP).startswith("Stopping")
    assert run.pending_requests() == [Request.STOP] and read_run(run).status is Status.STARTING
    launcher.shutdown(5)


def test_a_crashed_run_is_recognised_and_continues(workspace: Workspace, stage: Stage) -> None:
    run = create_run(workspace, RunConfig())
    child = subprocess.Popen([sys.executable, "-c", CRASHING, str(run.path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    assert read_run(run).status is Status.STARTING
    child.kill()
    child.wait()
    child.stdout.close()
    assert read_run(run).status is Status.CRASHED
    launcher = Launcher(workspace, Card())
    assert launcher.restore() == [run]
    stage.go.set()
    launcher.resume(run)
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is Status.DONE
    launcher.shutdown(5)


@pytest.mark.parametrize("is_app_there", [True, False])
def test_a_first_process_that_was_ended_for_another_leaves_its_reason(is_app_there: bool, workspace: Workspace) -> None:
    run = write_run(workspace, values={"launch.where": "process"}, end="crashed", done=20)
    run.claim()
    owner = run.path / "owner.json"
    write_json(owner, {**read_json(owner), "pid": 2**22 + 1})  # above the largest pid
    assert read_run(run).status is Status.CRASHED and not end_as_another_said(run)
    leave_failure(run, 2, Failed(time=20.0, code="bug", what="Later."))
    leave_failure(
        run, 1, Failed(time=10.0, code="out-of-memory", what="The card is full.", why="Too many rows", suggestions=[{"label": "x"}])
    )
    if is_app_there:
        end_unended(run)
    else:
        launcher = Launcher(workspace, Card())
        assert launcher.restore() == [run]
        launcher.shutdown(5)
    view = read_run(run)
    assert isinstance(view.ended, Failed) and (view.ended.code, view.ended.what, view.step) == ("out-of-memory", "The card is full.", 20)
    assert view.ended.why == "It happened in process 2 of this run. Too many rows" and view.ended.suggestions and view.ended.time > 1e9
    clear_failures(run)
    assert not list(run.path.glob("failed-*"))


def test_a_job_of_its_own_process_is_taken_up_again(workspace: Workspace, stage: Stage) -> None:
    """The app restarts while a job that outlives it goes on: the next run waits for it."""
    run = create_run(workspace, named("outlives"))
    run.claim()
    journal = JournalWriter(run.journal_path)
    journal.write(Started(pid=1, process_started=0.0, host="", launcher="process", versions={}, device="CPU"))
    (waiting,) = left_by_an_app(workspace, "waiting")
    launcher = Launcher(workspace, Card())
    assert launcher.restore() == []
    until(lambda: launcher.current() == run)
    following = launcher.start(named("next"))
    assert launcher.queue() == [waiting, following]
    journal.write(Finished())
    run.release()
    stage.go.set()
    assert launcher.wait_until_idle(5)
    assert stage.order == [waiting.id, following.id]
    launcher.shutdown(5)


def test_a_waiting_run_is_taken_out_by_the_command_line_where_no_app_has_it(workspace: Workspace, capsys: Any) -> None:
    run = create_run(workspace, RunConfig())
    words = ["--workspace", str(workspace.root)]
    with Ownership(workspace):
        assert main(["runs", "stop", run.id, *words]) == 2 and "already uses the workspace" in capsys.readouterr().err
    assert main(["runs", "delete", run.id, *words]) == 2 and "runs stop" in capsys.readouterr().err
    assert main(["runs", "resume-info", run.id, *words]) == 0 and "waits for its turn" in capsys.readouterr().out
    assert main(["runs", "stop", run.id, *words]) == 0
    assert read_run(run).status is Status.STOPPED and not (run.path / ".reserve").exists()


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "too little memory"),
        (OSError("[WinError 1455] The paging file is too small for this operation to complete."), "too little memory"),
        (ImportError("libcudart.so.13: cannot open shared object file"), "packages"),
    ],
)
def test_an_engine_that_cannot_be_loaded_says_what_helps(
    error: Exception, fix: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        raise error

    run = create_run(workspace, RunConfig())
    monkeypatch.setattr(thread_module, "engine_object", load)
    thread_module.run_in_thread(run, Turns())
    ended = read_run(run).ended
    assert isinstance(ended, Failed) and ended.code == "engine" and fix in ended.fix


def test_asking_needs_no_launcher(workspace: Workspace) -> None:
    run = create_run(workspace, RunConfig())
    run.claim()
    JournalWriter(run.journal_path).write(Started(pid=1, process_started=0.0, host="", launcher="thread", versions={}, device="CPU"))
    assert ask(run, Request.STOP).startswith("Stopping")
    assert run.pending_requests() == [Request.STOP]
    run.release()
    assert find_run(workspace, "latest") == run


def test_the_second_app_on_a_workspace_is_told_who_has_it(workspace: Workspace) -> None:
    child = subprocess.Popen([sys.executable, "-c", OWNING, str(workspace.root)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        with pytest.raises(RunError, match=rf"process {child.pid}.*http://127.0.0.1:7860"), Ownership(workspace):
            pass
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    with Ownership(workspace):
        pass


def test_the_app_comes_up_on_a_full_disk_where_its_user_can_make_room(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("workspace", "moved"):
        monkeypatch.setattr(f"qlora_ui.runs.{place}.write_json", full)
    with Ownership(workspace) as ownership:
        ownership.note("http://127.0.0.1:7860")


def test_what_a_killed_app_has_left_is_removed_by_the_next_one(workspace: Workspace, tmp_path: Path) -> None:
    left = ["temp/uploads/tmpabc", "temp/uploads/exports/run/adapter.zip"]
    old = [
        "temp/peek-0123/complaints.txt",
        "cache/data/.0123-45/rows.jsonl",
        "datasets/0123/.4567.tmp",
        "runs/one/exports/.making-gguf-f16-0a/model.gguf",
    ]
    stays = [
        "runs/one/exports/gguf-f16/model.gguf",
        "datasets/0123/rows.jsonl",
        "cache/data/0123/report.json",
        "cache/tokens/.89ab/ids.npy",
        "temp/4567-rows.jsonl",
    ]
    outside = tmp_path / "outside" / "rows.jsonl"
    for path in (outside, *(workspace.root / name for name in (*left, *old, *stays))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("rows")
    (workspace.uploads / "link").symlink_to(outside.parent)
    for name in old:
        path = workspace.root / name
        for one in (path, path.parent):
            os.utime(one, (0, 0))
    making = {name: workspace.runs / "one" / "exports" / f".making-ollama-{name}" for name in ("gone", "at-it")}
    for name, folder in making.items():
        write_json(folder / "owner.json", describe_owner() | ({"start": 1.0} if name == "gone" else {}))
    with Ownership(workspace):
        pass
    # A model's size is not kept for a day where whoever made it is known to be gone.
    assert making["at-it"].is_dir() and not making["gone"].exists()
    shutil.rmtree(making["at-it"])
    files = [path for path in workspace.root.rglob("*") if path.is_file() and path.parent != workspace.root]
    assert sorted(str(path.relative_to(workspace.root)) for path in files) == sorted(stays)
    assert outside.is_file() and not list(workspace.uploads.iterdir())


def test_a_program_in_the_runs_folder_is_not_what_the_job_imports(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(workspace, RunConfig())
    (run.path / "json.py").write_text("open('was-run', 'w').close()", encoding="utf-8")
    monkeypatch.setattr(process_module, "launch_command", lambda run, config: [sys.executable, "-m", "json.tool", "--help"])
    process_module.run_in_process(run, run.config(), until=lambda: False)
    assert not (run.path / "was-run").exists() and "json" in run.log_path.read_text(encoding="utf-8")
