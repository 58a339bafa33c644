"""Kills a training job again and again, most often in the middle of a save, and checks that nothing but unsaved steps is lost.

    python tests/bench/kill_harness.py --kills 200 --out tests/bench/results/kills.json

Every job is a process of its own that ends itself with SIGKILL at a chosen point. After each kill the run must be recognised as
crashed, continue from the newest checkpoint that was announced (or a newer one), and at the end have the very losses, gradient
norms and adapter of a run that nobody disturbed. Leftovers of half-written saves must be gone.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from qlora_ui.base.files import sha256_of
from qlora_ui.runs.events import CheckpointSaved
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.jobs import curve, tiny_config, write_rows

WEIGHTS = "adapter_model.safetensors"
SAVE_EVERY = 2

# Where a save can be cut: the owner of a function, its name, and whether the kill comes before or after it.
IN_SAVE: dict[str, tuple[str, str, bool]] = {
    "folder made": ("qlora_ui.engine.checkpoints.CheckpointStore", "stage", False),
    "before the adapter": ("qlora_ui.engine.trainer", "write_adapter", True),
    "after the adapter": ("qlora_ui.engine.trainer", "write_adapter", False),
    "before the optimizer": ("qlora_ui.engine.trainer.QloraTrainer", "_save_optimizer_and_scheduler", True),
    "after the optimizer": ("qlora_ui.engine.trainer.QloraTrainer", "_save_optimizer_and_scheduler", False),
    "after the random state": ("qlora_ui.engine.trainer.QloraTrainer", "_save_rng_state", False),
    "before the state": ("transformers.trainer_callback.TrainerState", "save_to_json", True),
    "before the manifest": ("qlora_ui.engine.checkpoints.CheckpointStore", "commit", True),
    "before the sync": ("qlora_ui.engine.checkpoints", "sync_tree", True),
    "before the rename": ("qlora_ui.engine.checkpoints", "sync_tree", False),
    "after the rename": ("qlora_ui.engine.checkpoints", "sync_directory", True),
    "before rotating": ("qlora_ui.engine.checkpoints.CheckpointStore", "rotate", True),
    "while rotating": ("qlora_ui.engine.checkpoints.CheckpointStore", "_discard", False),
    "before the final adapter": ("qlora_ui.engine.adapter", "replace_folder", True),
}
ELSEWHERE = ("in a step", "at a random time")


@dataclass
class Tally:
    """What the kills have shown so far."""

    kills: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    lost_steps: int = 0
    most_lost: int = 0
    finished_runs: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())

    @property
    def num_in_saves(self) -> int:
        return sum(count for point, count in self.kills.items() if point not in ELSEWHERE)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kills": self.num_kills,
            "kills_inside_saves": self.num_in_saves,
            "resumed": self.resumed,
            "most_steps_lost": self.most_lost,
            "save_every": SAVE_EVERY,
            "mean_steps_lost": round(self.lost_steps / max(self.num_kills, 1), 2),
            "runs_finished_identical": self.finished_runs,
            "problems": self.problems,
            "by_point": dict(sorted(self.kills.items())),
        }


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process and return its exit status; negative is the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def arm(point: str, occurrence: int, delay_s: float) -> None:
    """Make this process end itself at a point; called in the child."""
    if point == "at a random time":
        threading.Timer(delay_s, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return
    import pydoc

    owner_name, name, before = IN_SAVE.get(point, ("qlora_ui.engine.trainer.QloraTrainer", "training_step", True))
    owner: Any = pydoc.locate(owner_name)
    original = getattr(owner, name)
    seen = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if before and seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def job(run: RunDir, point: str | None, occurrence: int, delay_s: float) -> Callable[[], None]:
    """The work of a child: a job, with a point to die at."""

    def work() -> None:
        from qlora_ui.engine.job import run as train

        if point is not None:
            arm(point, occurrence, delay_s)
        train(run.path)

    return work


def reference(workspace: Workspace, config: RunConfig) -> RunView:
    """The run that nobody disturbs."""
    made = create_run(workspace, config)
    in_child(job(made, None, 0, 0))
    view = read_run(made)
    assert view.status is Status.DONE, view.ended
    return view


def harass(folder: Path, model_dir: Path, num_kills: int, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Tally:
    """Kill jobs `num_kills` times and check every continuation."""
    import qlora_ui.engine.job  # noqa: F401 - imported once; children are forks

    chance = random.Random(seed)
    rows = write_rows(folder / "rows.jsonl")
    config = tiny_config(model_dir, rows, train__max_steps=10, output__save_every=SAVE_EVERY, output__keep_last=2, eval__every=5)
    workspace = Workspace.at(folder / "workspace")
    calm = reference(workspace, config)
    adapter = sha256_of(calm.run.adapter / WEIGHTS)
    tally = Tally()
    points = [*IN_SAVE, *ELSEWHERE]
    while tally.num_kills < num_kills:
        run = create_run(workspace, config)
        for _ in range(4):
            if tally.num_kills >= num_kills:
                break
            point = points[tally.num_kills % len(points)]
            occurrence = 1 if point == "before the final adapter" else chance.randint(1, 6 if point == "in a step" else 2)
            if in_child(job(run, point, occurrence, chance.uniform(0.2, 4.0))) != -signal.SIGKILL:
                break
            _check_kill(run, point, tally)
            say(f"{tally.num_kills} kills, {tally.resumed} resumable, {len(tally.problems)} problems")
        _finish(run, calm, adapter, tally)
    return tally


def _check_kill(run: RunDir, point: str, tally: Tally) -> None:
    tally.kills[point] += 1
    view = read_run(run)
    if view.status not in (Status.CRASHED, Status.QUEUED):
        tally.problems.append(f"{run.id}: {view.status} after a kill {point}")
    announced = max((event.step for event in read_events(run.journal_path) if isinstance(event, CheckpointSaved)), default=0)
    from qlora_ui.engine.checkpoints import CheckpointStore

    newest, _ = CheckpointStore(run.checkpoints, 2).newest_whole()
    # A checkpoint may be whole and not yet announced: the kill came between its rename and the journal's line.
    whole = newest.step if newest else 0
    tally.lost_steps += view.step - whole
    tally.most_lost = max(tally.most_lost, view.step - whole)
    if whole < announced:
        tally.problems.append(f"{run.id}: checkpoint {announced} was announced and is gone after a kill {point}")
    else:
        tally.resumed += 1


def _finish(run: RunDir, calm: RunView, adapter: str, tally: Tally) -> None:
    code = 0
    if read_run(run).status is not Status.DONE:
        code = in_child(job(run, None, 0, 0))
    view = read_run(run)
    if view.status is not Status.DONE:
        tally.problems.append(f"{run.id}: ended as {view.status} (exit {code}): {view.ended}")
    elif curve(view) != curve(calm) or sha256_of(run.adapter / WEIGHTS) != adapter:
        tally.problems.append(f"{run.id}: other numbers than the undisturbed run")
    else:
        tally.finished_runs += 1
    left = [path.name for path in (*run.path.iterdir(), *run.checkpoints.iterdir()) if path.name.startswith(".")]
    if left:
        tally.problems.append(f"{run.id}: leftovers {left}")


def main() -> int:
    """Run the long form and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        in_child(lambda: _make_model(Path(folder) / "model"))
        started = time.monotonic()
        tally = harass(Path(folder), Path(folder) / "model", arguments.kills, arguments.seed, lambda text: print(text, file=sys.stderr))
    result = {**tally.as_dict(), "seconds": round(time.monotonic() - started), "seed": arguments.seed}
    print(json.dumps(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if tally.problems else 0


def _make_model(folder: Path) -> None:
    from tests.tiny_model import make_tiny_model

    make_tiny_model(folder)


if __name__ == "__main__":
    sys.exit(main())
