"""The same job under `accelerate launch`: two CPU processes over gloo equal one, and the app may die meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jobs import at_step, curve, launcher_of, tiny_config, train, when, write_rows

from qlora_ui.base.errors import RunError
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine import processes
from qlora_ui.engine.callbacks import RequestDesk
from qlora_ui.engine.failures import StopRun
from qlora_ui.engine.phases import Phases
from qlora_ui.runs import process
from qlora_ui.runs.card import Card
from qlora_ui.runs.events import Failed
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.process import free_port
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

ROOT = Path(__file__).parents[2]
STARTING = """
import sys, time
from qlora_ui.runs.card import Card
from qlora_ui.runs.events import Failed
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.process import free_port
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig
launcher = Launcher(Workspace.at(sys.argv[1]), Card())
print(launcher.start(RunConfig.parse(read_yaml(sys.stdin.read(), "settings"))).id, flush=True)
time.sleep(120)
"""


@pytest.mark.slow
def test_two_processes_equal_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    # 25 rows, a fifth held back: 20 rows are five steps of four, so no process has to be given a row twice.
    rows = write_rows(tmp_path / "rows.jsonl", 25)
    config = tiny_config(tiny_model_dir, rows, lora__dropout=0.0, train__max_steps=6)
    one = train(Workspace.at(tmp_path / "one"), config)
    workspace = Workspace.at(tmp_path / "two")
    launcher = launcher_of(workspace)
    run = launcher.start(config.changed({"train.accumulation": 1, "launch.where": "process", "launch.num_processes": 2}))
    assert launcher.wait_until_idle(150)
    launcher.shutdown()
    two = read_run(run)
    assert two.status is Status.DONE, run.log_path.read_text(encoding="utf-8")[-2000:]
    assert two.started is not None and two.started.launcher == "process"
    assert two.planned is not None and (two.planned.num_processes, two.planned.effective_batch) == (2, 4)
    for (step, loss, norm), (expected_step, expected, expected_norm) in zip(curve(two), curve(one), strict=True):
        assert step == expected_step
        assert loss == pytest.approx(expected, rel=1e-5) and norm == pytest.approx(expected_norm, rel=1e-4)
    # The Trainer averages over batches, and two processes make other batches of the held-back rows.
    assert [event.loss for event in two.evals] == pytest.approx([event.loss for event in one.evals], rel=0.02)
    assert (run.adapter / "adapter_model.safetensors").is_file()


class Told(dict[str, Any]):
    """The store of processes that are threads here."""

    set = dict.__setitem__
    lock = threading.Lock()

    def get(self, key: str) -> Any:
        return self[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self.lock:
            self[key] = self.setdefault(key, 0) + amount
            return int(self[key])

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        return str(self.setdefault(key, value)).encode()


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((None, None), "made"),
        ((Cancelled(), None), StopRun),
        ((StopRun(), None), StopRun),
        ((OSError("no space"), None), RunError),
        ((None, Cancelled()), StopRun),
        ((None, OSError("no space")), RunError),
    ],
)
def test_the_others_follow_the_first_process_and_all_end_together(
    ends: tuple[Exception | None, Exception | None], told: str | type[Exception]
) -> None:
    store: Any = Told()
    worked: list[int] = []

    def work(rank: int) -> str:
        time.sleep(0.1)
        assert rank == 0 or worked == [0]
        worked.append(rank)
        if (error := ends[rank]) is not None:
            raise error
        return "made"

    with ThreadPoolExecutor() as pool:
        parts = [
            pool.submit(processes.in_turn, partial(work, rank), store, "key", rank=rank, num=2, wants_end=lambda: False) for rank in (1, 0)
        ][::-1]
    for part, own in zip(parts, ends, strict=True):
        if own is not None:
            assert part.exception() is own
        else:
            assert part.result() == told if isinstance(told, str) else type(part.exception()) is told
    assert worked == ([0] if ends[0] is not None else [0, 1])


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_stop_is_heard_by_a_process_that_waits_for_another(waiting: int) -> None:
    store: Any = Told()
    is_stopped, goes_on = threading.Event(), threading.Event()

    def work(rank: int) -> str:
        assert rank == waiting or goes_on.wait(10)
        return "made"

    with ThreadPoolExecutor() as pool:
        parts = [
            pool.submit(
                processes.in_turn,
                partial(work, rank),
                store,
                "key",
                rank=rank,
                num=2,
                wants_end=is_stopped.is_set if rank == waiting else goes_on.is_set,
            )
            for rank in (0, 1)
        ]
        time.sleep(0.1)
        is_stopped.set()
        assert type(parts[waiting].exception(10)) is StopRun
        goes_on.set()
        assert type(parts[1 - waiting].exception(10)) is StopRun


def test_a_stop_between_two_phases_ends_all_processes_or_none(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / name) for name in ("first", "other")]
    runs[0].path.mkdir()
    runs[0].request(Request.STOP)
    desks = [RequestDesk(run, lambda event: None) for run in runs]
    meeting, wishes = threading.Barrier(2), [0, 0]

    def agree(rank: int, wish: int) -> int:
        wishes[rank] = wish
        meeting.wait(10)
        return max(wishes)

    def end(rank: int) -> None:
        phases = Phases(desks[rank], lambda event: None)
        phases.agree = partial(agree, rank)
        phases.raise_if_ending()

    with ThreadPoolExecutor() as pool:
        ended = [pool.submit(end, rank) for rank in (0, 1)]
    assert [type(part.exception()) for part in ended] == [StopRun, StopRun]
    assert all(desk.has(Request.STOP) for desk in desks)


def test_the_app_is_killed_and_the_job_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    config = tiny_config(tiny_model_dir, rows, train__max_steps=60, output__save_every=20, eval__every=30, launch__where="process")
    workspace = Workspace.at(tmp_path / "workspace")
    app = subprocess.Popen(
        [sys.executable, "-c", STARTING, str(workspace.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert app.stdin is not None and app.stdout is not None
    app.stdin.write(config.to_yaml().encode())
    app.stdin.close()
    app.stdout.readline()
    (run,) = list_runs(workspace)
    while not read_run(run).steps:
        assert app.poll() is None
        time.sleep(0.1)
    os.kill(app.pid, signal.SIGKILL)
    app.wait()
    app.stdout.close()

    launcher = Launcher(workspace, Card())
    assert launcher.restore() == []
    assert launcher.wait_until_idle(150)
    launcher.shutdown()
    view = read_run(run)
    assert view.status is Status.DONE
    assert [event.step for event in view.steps] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("hangs", ["", "yes"])
def test_what_fails_in_the_second_process_ends_the_run_in_its_words(
    hangs: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "JOB", "tests.tiny.job_that_fails")
    monkeypatch.setenv("HANGS", hangs)
    two = {"train.accumulation": 1, "launch.where": "process", "launch.num_processes": 2}
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 25)).changed(two)
    launcher = launcher_of(Workspace.at(tmp_path / "workspace"))
    run = launcher.start(config)
    assert launcher.wait_until_idle(150)
    view = read_run(run)
    assert isinstance(view.ended, Failed), run.log_path.read_text(encoding="utf-8")[-2000:]
    assert view.ended.code == "out-of-memory" and view.ended.suggestions and "process 2 of this run" in view.ended.why
    assert [event.step for event in view.checkpoints] == [2]
    monkeypatch.undo()
    launcher.resume(run)
    assert launcher.wait_until_idle(150)
    assert read_run(run).status is Status.DONE
    launcher.shutdown()


@pytest.mark.slow
def test_two_machines_equal_one_and_stop_together(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Two launchers with workspaces of their own that meet on this computer's loopback, as two machines would."""
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 25), lora__dropout=0.0, train__max_steps=40)
    one = train(Workspace.at(tmp_path / "one"), config)
    launchers, runs = on_two_machines(config, tmp_path)
    # Asked on the second machine.
    when(runs[0], at_step(3), lambda: launchers[1].request(runs[1], Request.STOP), launchers[0])
    assert all(launcher.wait_until_idle(150) for launcher in launchers)
    first, second = map(read_run, runs)
    assert first.status is second.status is Status.STOPPED, [run.log_path.read_text(encoding="utf-8")[-2000:] for run in runs]
    losses = [loss for _, loss, _ in curve(first)]
    assert 3 <= len(losses) < 40 and losses == pytest.approx([loss for _, loss, _ in curve(one)][: len(losses)], rel=1e-5)
    assert (runs[0].adapter / "adapter_model.safetensors").is_file() and not runs[1].adapter.exists()
    for launcher in launchers:
        launcher.shutdown()


@pytest.mark.slow
def test_two_machines_continue_from_the_same_step_or_not_at_all(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 25), lora__dropout=0.0, train__max_steps=40)
    one = train(Workspace.at(tmp_path / "one"), config)
    launchers, runs = on_two_machines(config, tmp_path)
    when(runs[0], at_step(3), lambda: launchers[0].request(runs[0], Request.PAUSE), launchers[0])
    assert all(launcher.wait_until_idle(150) for launcher in launchers)
    assert [read_run(run).status for run in runs] == [Status.PAUSED, Status.PAUSED]
    # The checkpoints are on the first machine alone: going on would leave the two waiting for each other.
    for launcher, run in zip(launchers, runs, strict=True):
        launcher.resume(run)
    assert all(launcher.wait_until_idle(150) for launcher in launchers)
    for ended in (read_run(run).ended for run in runs):
        assert isinstance(ended, Failed) and ended.code == "resume-machines", ended
    shutil.copytree(runs[0].checkpoints, runs[1].checkpoints, dirs_exist_ok=True)
    for launcher, run in zip(launchers, runs, strict=True):
        launcher.resume(run)
    assert all(launcher.wait_until_idle(150) for launcher in launchers)
    assert read_run(runs[0]).status is read_run(runs[1]).status is Status.DONE
    assert curve(read_run(runs[0]))[-1][1] == pytest.approx(curve(one)[-1][1], rel=1e-4)
    for launcher in launchers:
        launcher.shutdown()


def on_two_machines(config: RunConfig, folder: Path) -> tuple[list[Launcher], list[RunDir]]:
    """One run in two workspaces, each a machine of its own to the other."""
    changes = {"train.accumulation": 1, "launch.where": "process", "launch.num_machines": 2, "launch.main_port": free_port()}
    launchers = [launcher_of(Workspace.at(folder / name)) for name in ("first", "second")]
    return launchers, [launcher.start(config.changed({**changes, "launch.machine_rank": rank})) for rank, launcher in enumerate(launchers)]
