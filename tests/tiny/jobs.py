"""Small runs for the tests of jobs: a two-layer model, a few short conversations, a workspace of their own."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_ui.runs.card import Card
from qlora_ui.runs.events import Event, StepLogged
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

WORDS = ("hello", "world", "how", "are", "you", "today", "user", "system")


def write_rows(path: Path, count: int = 24) -> Path:
    """Conversations of different lengths; the same count gives the same rows."""
    lines = []
    for number in range(count):
        words = [WORDS[(number * 3 + place) % len(WORDS)] for place in range(1 + number % 5)]
        answer = f"{' '.join(reversed(words))} {number}"
        turns = (("user", " ".join(words)), ("assistant", answer))
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_config(model_dir: Path, rows: Path, **changes: Any) -> RunConfig:
    """Eight steps with a check and a save every two; options by path with `__` for the dot."""
    values = {
        "model.id": str(model_dir),
        "data.sources": [{"id": str(rows)}],
        "data.max_length": 64,
        "train.max_steps": 8,
        "train.batch_size": 2,
        "train.accumulation": 2,
        "train.learning_rate": 5e-3,
        "train.warmup": 1,
        "lora.rank": 4,
        "lora.dropout": 0.1,
        "eval.share": 0.2,
        "eval.every": 4,
        "eval.batch_size": 2,
        "output.save_every": 2,
        "output.keep_last": 3,
        "launch.device": "cpu",
    }
    return RunConfig().changed({**values, **{name.replace("__", "."): value for name, value in changes.items()}})


def train(workspace: Workspace, config: RunConfig) -> RunView:
    """Run a job in this thread and return what its journal says."""
    from qlora_ui.engine.job import run

    made = create_run(workspace, config)
    run(made.path)
    return read_run(made)


def again(made: RunDir) -> RunView:
    """Run the job of a run once more, which continues it."""
    from qlora_ui.engine.job import run

    run(made.path)
    return read_run(made)


def curve(view: RunView) -> list[tuple[int, float, float | None]]:
    """Step, loss and gradient norm of every point."""
    return [(event.step, event.loss, event.grad_norm) for event in view.steps]


def whole_steps(view: RunView) -> list[int]:
    """Steps whose checkpoint is whole."""
    from qlora_ui.engine.checkpoints import CheckpointStore

    store = CheckpointStore(view.run.checkpoints, 9)
    return sorted(step for step in store.steps() if store.find(step) is not None)


def models_alive() -> int:
    """Models of the tiny family that this process holds."""
    from transformers import LlamaForCausalLM

    return sum(isinstance(item, LlamaForCausalLM) for item in gc.get_objects())


def when(made: RunDir, matches: Callable[[Event], bool], action: Callable[[], object], launcher: Launcher) -> None:
    """Do something as soon as a fitting event stands on the journal; then wait for the run's end."""
    import time

    while launcher.current() is None and launcher.queue():
        time.sleep(0.01)
    done = False
    while not launcher.wait_until_idle(0.01):
        if not done and any(matches(event) for event in read_events(made.journal_path)):
            action()
            done = True
    assert done


def launcher_of(workspace: Workspace) -> Launcher:
    """A launcher with a card of its own."""
    return Launcher(workspace, Card())


def at_step(step: int) -> Callable[[Event], bool]:
    """Matches the point of a step."""
    return lambda event: isinstance(event, StepLogged) and event.step >= step
