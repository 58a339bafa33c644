"""Whose a run is and whether that one lives: a clock that is set, a new name, a container made anew, another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from qlora_ui.base.errors import RunError
from qlora_ui.runs import owner
from qlora_ui.runs.events import Started
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import create_run, delete_run
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

HERE = owner.Place("boot-1", "pid:[1]", "machine-1")
HOST = "studio"


@pytest.fixture
def run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """One that this process, on a machine of the test's, has begun to work on."""
    move_to(monkeypatch, HERE, HOST)
    run = create_run(workspace, RunConfig())
    run.claim()
    JournalWriter(run.journal_path).write(Started(pid=1, process_started=0.0, host="", launcher="thread", versions={}, device="CPU"))
    return run


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def move_to(monkeypatch: pytest.MonkeyPatch, place: owner.Place, host: str) -> None:
    """Look from another place from now on."""
    monkeypatch.setattr(owner, "here", lambda: place)
    monkeypatch.setattr(owner.socket, "gethostname", lambda: host)


def change_owner(run: RunDir, **changes: Any) -> None:
    """Change what the owner wrote; None takes a word out."""
    path = run.path / "owner.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")


def be_silent(run: RunDir, seconds: float) -> None:
    then = time.time() - seconds
    for path in (run.journal_path, run.path / "owner.json"):
        os.utime(path, (then, then))


def of_earlier_version(run: RunDir, **changes: Any) -> None:
    change_owner(run, start=None, boot=None, pids=None, machine=None, **changes)


def test_the_place_of_this_process_is_known() -> None:
    place = owner.here()
    if sys.platform == "linux":
        assert len(place.boot) == 36 and place.pids.startswith("pid:[")
    assert place == owner.here()


def test_a_clock_that_is_set_changes_nothing(run: RunDir, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil counts a start time from what the kernel says of the clock, and that moves when the clock is set."""
    change_owner(run, pid=sleeper.pid, start=owner.start_of(sleeper.pid), process_started=psutil.Process(sleeper.pid).create_time())
    original = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: original(self) + 3.0)
    assert run.owner_is_alive() and read_run(run).status is Status.STARTING
    sleeper.kill()
    sleeper.wait()
    assert not run.owner_is_alive() and read_run(run).status is Status.CRASHED


@pytest.mark.skipif(sys.platform != "linux", reason="zombies of /proc")
def test_the_remains_of_a_process_and_another_with_its_number_are_not_alive(run: RunDir, sleeper: subprocess.Popen[bytes]) -> None:
    change_owner(run, pid=sleeper.pid, start=owner.start_of(sleeper.pid))
    assert run.owner_is_alive()
    change_owner(run, pid=sleeper.pid, start=1.0)
    assert not run.owner_is_alive()
    change_owner(run, pid=sleeper.pid, start=owner.start_of(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not run.owner_is_alive()


def test_another_name_of_this_computer_changes_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    move_to(monkeypatch, HERE, "studio.in.another.network")
    assert run.owner_is_alive()
    change_owner(run, pid=2**22 + 1)
    assert not run.owner_is_alive()


@pytest.mark.parametrize("name", [HOST, "another-name"])
def test_nothing_outlives_a_restart_of_the_machine(run: RunDir, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    move_to(monkeypatch, replace(HERE, boot="boot-2"), name)
    assert not run.owner_is_alive() and not run.is_ours()


def test_a_container_after_a_restart_of_its_machine(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine id says nothing in a container: images bring one. Its name stays over restarts."""
    change_owner(run, machine="")
    move_to(monkeypatch, owner.Place("boot-2", "pid:[2]", ""), HOST)
    assert not run.owner_is_alive()
    move_to(monkeypatch, owner.Place("boot-2", "pid:[2]", ""), "3f2a9c")
    assert run.owner_is_alive()


def test_another_container_of_this_machine_counts_as_gone_after_two_minutes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the workspace and the card, and neither the other's processes; this one may have come in the place of that one."""
    move_to(monkeypatch, replace(HERE, pids="pid:[2]", machine=""), "3f2a9c")
    assert run.owner_is_alive() and run.is_ours()
    be_silent(run, owner.SILENT_NEARBY_S + 5)
    assert not run.owner_is_alive() and read_run(run).status is Status.CRASHED


def test_another_machine_is_named_and_counts_as_gone_after_ten_minutes(
    run: RunDir, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_to(monkeypatch, owner.Place("boot-9", "pid:[1]", "machine-9"), "laptop")
    be_silent(run, owner.SILENT_S - 60)
    assert run.owner_is_alive() and not run.is_ours()
    with pytest.raises(RunError, match=r"still running.*“studio” works on it; its last sign of life is 9 min old.*Stop it there.*10 min"):
        delete_run(workspace, run)
    be_silent(run, owner.SILENT_S + 5)
    assert read_run(run).status is Status.CRASHED
    delete_run(workspace, run)


def test_what_an_earlier_version_wrote_is_read(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    of_earlier_version(run)
    assert run.owner_is_alive() and run.is_ours()
    of_earlier_version(run, process_started=1.0)
    assert not run.owner_is_alive()
    of_earlier_version(run, host="a-container-of-old", pid=1)
    assert run.owner_is_alive() and not run.is_ours()
    be_silent(run, owner.SILENT_S + 5)
    assert not run.owner_is_alive()


def test_an_earlier_version_reads_what_is_written(run: RunDir) -> None:
    values = json.loads((run.path / "owner.json").read_text(encoding="utf-8"))
    assert values["pid"] == os.getpid() and values["host"] == HOST
    assert values["process_started"] == pytest.approx(psutil.Process().create_time(), abs=0.5)
