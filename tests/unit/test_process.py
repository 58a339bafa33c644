"""A job in processes of its own, with a few lines in the place of accelerate and of the engine: none is forgotten, none is left."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_ui.base.errors import RunError
from qlora_ui.runs import process
from qlora_ui.runs.card import Card
from qlora_ui.runs.events import Failed
from qlora_ui.runs.launcher import Launcher, ask
from qlora_ui.runs.parts import leave_failure
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.views.run import head_html

CONFIG = RunConfig().changed({"launch.where": "process", "launch.num_processes": 2})
PART = """
import subprocess, sys, time
from pathlib import Path
part, *words = sys.argv[1:]
if part == "launcher":
    children = [subprocess.Popen([sys.executable, "-c", CODE, name, *words]) for name in ("first", "second")]
if part == "first":
    from qlora_ui.runs.events import Finished, Started
    from qlora_ui.runs.journal import JournalWriter
    from qlora_ui.runs.run_dir import RunDir
    run = RunDir(Path(words[-1]))
    run.claim()
    journal = JournalWriter(run.journal_path)
    journal.write(Started(pid=1, process_started=0.0, host="", launcher="process", versions={}, device="CPU"))
    while not run.pending_requests():
        time.sleep(0.01)
    journal.write(Finished())
    run.release()
else:
    time.sleep(60)
"""


@pytest.fixture
def launcher(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    monkeypatch.setattr(process, "POLL_S", 0.02)
    monkeypatch.setattr(process, "REST_S", 0.3)
    starting_with("launcher", monkeypatch)
    launcher = Launcher(workspace, Card())
    yield launcher
    launcher.shutdown(0)
    process.end_processes([RunDir(path) for path in workspace.runs.iterdir()])


def starting_with(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"CODE = {PART!r}\n{PART}"
    monkeypatch.setattr(process, "launch_command", lambda run, config: [sys.executable, "-c", code, part, process.JOB, str(run.path)])


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def begun(launcher: Launcher) -> tuple[RunDir, list[psutil.Process]]:
    run = launcher.start(CONFIG)
    until(lambda: read_run(run).status.is_live)
    parts = process.processes_of([run])
    assert len(parts) == 3
    return run, parts


def test_a_job_whose_launcher_is_killed_goes_on_and_keeps_the_card(launcher: Launcher) -> None:
    run, (accelerate, *_) = begun(launcher)
    accelerate.kill()
    (run.path / "owner.json").unlink()  # as somebody who tidies up
    waiting = launcher.start(CONFIG.changed({"output.name": "next"}))
    time.sleep(0.5)
    assert len(process.processes_of([run])) == 2 and launcher.current() == run and launcher.queue() == [waiting]
    launcher.cancel(waiting)
    run.request(Request.STOP)
    assert launcher.wait_until_idle(20)
    # The second one, which nobody else ends now, is not left.
    assert read_run(run).status is Status.DONE and not process.processes_of([run])


@pytest.mark.parametrize("app_is_there", [True, False])
def test_no_process_outlives_a_first_one_that_was_killed(app_is_there: bool, launcher: Launcher, workspace: Workspace) -> None:
    run, parts = begun(launcher)
    if not app_is_there:
        launcher.shutdown(0)
    for part in parts[:2]:
        part.kill()
    until(lambda: read_run(run).status is Status.CRASHED)
    if not app_is_there:
        following = Launcher(workspace, Card())
        assert following.restore() == [run]
    assert launcher.wait_until_idle(20)
    until(lambda: not process.processes_of([run]))
    assert read_run(run).status is Status.CRASHED


@pytest.mark.parametrize(("request_", "status"), [(Request.STOP, Status.STOPPED), (Request.PAUSE, Status.PAUSED)])
def test_one_that_waits_for_other_machines_can_be_stopped(
    request_: Request, status: Status, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting_with("waiting", monkeypatch)
    run = launcher.start(CONFIG)
    until(lambda: process.processes_of([run]))
    launcher.request(run, request_)
    assert launcher.wait_until_idle(5)
    assert read_run(run).status is status and not process.processes_of([run])
    assert not run.pending_requests() and not run.has_owner()


def test_a_job_about_to_begin_is_not_started_a_second_time(
    launcher: Launcher, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting_with("waiting", monkeypatch)
    run = launcher.start(CONFIG)
    until(run.owner_is_alive)
    launcher.shutdown(0)
    following = Launcher(workspace, Card())
    with pytest.raises(RunError, match="Another process works on it"):
        following.resume(run)
    assert following.restore() == []
    until(lambda: following.current() == run)
    assert len(process.processes_of([run])) == 1 and not following.is_held
    ask(run, Request.STOP)  # as the command line does
    assert following.wait_until_idle(5)
    assert read_run(run).status is Status.STOPPED and not process.processes_of([run])
    following.shutdown(5)


def of_machines(rank: int, **launch: Any) -> RunConfig:
    values = {"where": "process", "num_machines": 2, "machine_rank": rank, **launch}
    return RunConfig().changed({f"launch.{name}": value for name, value in values.items()})


def test_what_a_machine_waits_for_is_said_and_so_is_that_it_was_in_vain(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    starting_with("waiting", monkeypatch)
    run = launcher.start(of_machines(1, main_port=1))
    until(lambda: process.processes_of([run]))
    words = "Waits for the other machine at 127.0.0.1:1, an address that other computers cannot reach; it gives up after 15 min."
    page = head_html(read_run(run))
    assert words in page and ">Stop</button>" in page and "Waits for its turn" not in page
    monkeypatch.setattr(process, "MEETING_S", 0.0)
    process.end_processes([run])
    assert launcher.wait_until_idle(5)
    view = read_run(run)
    assert isinstance(view.ended, Failed) and view.ended.code == "machines-apart" and "127.0.0.1:1" in view.ended.why
    assert "did not meet" in head_html(view) and "q-phase" not in head_html(view)


def test_a_host_that_is_not_known_and_a_port_that_is_taken_are_said_at_once(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        configs = of_machines(1, main_host="no such host"), of_machines(0, main_port=other.getsockname()[1])
        runs = [launcher.start(config) for config in configs]
        assert launcher.wait_until_idle(10)
    ended = [read_run(run).ended for run in runs]
    assert all(isinstance(end, Failed) for end in ended)
    assert "No computer “no such host” is known here" in str(ended[0]) and "is used by another program" in str(ended[1])


def test_a_deleted_folder_is_not_made_anew(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "gone")
    run.request(Request.STOP)
    leave_failure(run, 1, Failed(what="Nowhere to write."))
    assert not run.path.exists()


def test_processes_of_other_runs_are_left_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)", process.JOB]
    children = [subprocess.Popen([*words, str(tmp_path / name)]) for name in ("one", "one-more")]
    try:
        until(lambda: process.processes_of([RunDir(tmp_path / "one")]))
        process.end_processes([RunDir(tmp_path / "one")])
        assert children[0].poll() is not None and children[1].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
