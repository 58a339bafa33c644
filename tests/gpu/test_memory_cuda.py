"""Memory that really runs out on a card: the allocator's limit is lowered while a job runs, and the job has to finish all the same.

With QLORA_UI_RESULTS=FILE every case appends what it saw to that file, a JSON object a line.
"""

from __future__ import annotations

import gc
import json
import os
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import Healed, MemoryMeasured
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.jobs import curve, tiny_config, train
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MIB = 2**20
PLAIN = {"train__fast_path": "off", "train__packing": "off", "train__checkpointing": "none"}
FAST = {"train__packing": "on", "train__checkpointing": "none"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of a width at which activations outweigh everything else."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "small", num_layers=8, hidden=1024)


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    """Every case begins and ends with all of the card."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def config_of(model_dir: Path, folder: Path, **changes: Any) -> RunConfig:
    """Six steps of 16 conversations; one row of 1,400 tokens among others of 100 to 300."""
    draw, lines = random.Random(3), []
    for number in range(120):
        count = 1400 if number == 60 else draw.randint(100, 300)
        text = "".join(draw.choices(string.ascii_lowercase, k=count))
        lines.append(json.dumps({"messages": [{"role": "user", "content": str(number)}, {"role": "assistant", "content": text}]}))
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {"data__max_length": 1536, "train__batch_size": 8, "train__accumulation": 2, "train__max_steps": 6, "lora__rank": 16,
              "train__learning_rate": 2e-4, "lora__dropout": 0.0, "eval__batch_size": 8, "eval__every": 6, "output__save_every": 6,
              "launch__device": "cuda"}  # fmt: skip
    return tiny_config(model_dir, rows, **{**values, **changes})


def needed_bytes(view: RunView) -> int:
    """What the heaviest batch took on top of what was there: the try before the first step."""
    tried = next(event for event in read_events(view.run.journal_path) if isinstance(event, MemoryMeasured) and event.at == "dry-run")
    assert tried.peak_allocated_bytes is not None and tried.allocated_bytes is not None
    return tried.peak_allocated_bytes - tried.allocated_bytes


def leave(num_bytes: int) -> None:
    """From now on this process may allocate that much and no more."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)


def starve(monkeypatch: pytest.MonkeyPatch, method: str, is_time: Callable[[Any], bool], num_bytes: int) -> list[int]:
    """Lower the limit once, the first time that it `is_time` ahead of a call of the trainer's method."""
    original = getattr(QloraTrainer, method)
    steps: list[int] = []

    def starved(self: Any, *arguments: Any, **named: Any) -> Any:
        if not steps and is_time(self):
            steps.append(int(self.state.global_step))
            leave(num_bytes)
        return original(self, *arguments, **named)

    monkeypatch.setattr(QloraTrainer, method, starved)
    return steps


def held_bytes() -> tuple[int, int]:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def check(name: str, whole: RunView, noise: RunView, view: RunView, before: tuple[int, int]) -> list[Healed]:
    """The run is done, its curve the undisturbed one within bf16's noise, and the memory is back."""
    assert view.status is Status.DONE, view.ended
    after = held_bytes()
    healed = [event for event in view.notices if isinstance(event, Healed)]
    apart = max(abs(a[1] - b[1]) for a, b in zip(curve(whole), curve(view), strict=True))
    usual = max(abs(a[1] - b[1]) for a, b in zip(curve(whole), curve(noise), strict=True))
    said = {
        "case": name, "healed": [event.changes for event in healed], "steps": [point[0] for point in curve(view)],
        "loss": [point[1] for point in curve(view)], "undisturbed": [point[1] for point in curve(whole)],
        "largest_difference": apart, "difference_by_micro_batch_alone": usual,
        "allocated_mib_before_after": [before[0] / MIB, after[0] / MIB], "reserved_mib_before_after": [before[1] / MIB, after[1] / MIB],
        "card": torch.cuda.get_device_name(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(said))
    if results := os.environ.get("QLORA_UI_RESULTS"):
        with Path(results).open("a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")
    assert healed
    assert [point[0] for point in curve(view)] == [1, 2, 3, 4, 5, 6]
    assert apart <= max(2 * usual, 2**-8 * curve(whole)[0][1])  # a step of bf16 is 2^-8 of a number
    assert abs(after[0] - before[0]) <= MIB
    return healed


# A captured step holds its memory already and cannot run out in the middle; its capture, in the first step, can.
@pytest.mark.parametrize(("path", "step"), [("plain", 0), ("plain", 3), ("fast", 0)])
def test_training(path: str, step: int, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(model_dir, tmp_path, **(PLAIN if path == "plain" else FAST))
    whole, noise = undisturbed(config, tmp_path)
    before = held_bytes()

    def is_time(trainer: Any) -> bool:
        return bool(trainer.is_in_train and trainer.state.global_step == step and trainer.args.per_device_train_batch_size == 8)

    steps = starve(monkeypatch, "training_step", is_time, round(0.7 * needed_bytes(whole)))
    view = train(Workspace.at(tmp_path / "healed"), config)
    assert steps == [step]
    healed = check(f"{path}, step {step + 1}", whole, noise, view, before)
    assert [event.changes for event in healed] == [{"train.batch_size": [8, 4], "train.accumulation": [2, 4]}]


def undisturbed(config: RunConfig, folder: Path) -> tuple[RunView, RunView]:
    """The run without a limit, and the same with half the micro-batch: what the split alone changes."""
    whole = train(Workspace.at(folder / "whole"), config)
    assert whole.status is Status.DONE, whole.ended
    return whole, train(Workspace.at(folder / "noise"), config.changed({"train.batch_size": 4, "train.accumulation": 4}))


def test_one_long_conversation(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(model_dir, tmp_path, **PLAIN)
    whole, noise = undisturbed(config, tmp_path)
    before = held_bytes()
    # Room for every batch but the one with the long row.
    steps = starve(monkeypatch, "training_step", lambda trainer: bool(trainer.is_in_train), round(0.7 * needed_bytes(whole)))
    view = train(Workspace.at(tmp_path / "healed"), config)
    assert steps == [0]
    healed = check("one long conversation", whole, noise, view, before)
    assert [event.changes for event in healed] == [{"train.batch_size": [8, 4], "train.accumulation": [2, 4]}]


def test_evaluation(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(model_dir, tmp_path, **{**PLAIN, "train__checkpointing": "all"}, train__batch_size=2, train__accumulation=8,
                       eval__batch_size=16, eval__every=3)  # fmt: skip
    needed: list[int] = []
    original = QloraTrainer.prediction_step

    def measured(self: Any, *arguments: Any, **named: Any) -> Any:
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = original(self, *arguments, **named)
        needed.append(torch.cuda.max_memory_allocated() - held)
        return result

    monkeypatch.setattr(QloraTrainer, "prediction_step", measured)
    whole = train(Workspace.at(tmp_path / "whole"), config)
    monkeypatch.setattr(QloraTrainer, "prediction_step", original)
    before = held_bytes()
    steps = starve(monkeypatch, "prediction_step", lambda trainer: bool(trainer.is_in_train), round(0.7 * max(needed[1:])))
    view = train(Workspace.at(tmp_path / "healed"), config)
    assert steps == [3]
    healed = check("evaluation", whole, whole, view, before)
    assert healed[0].changes == {"eval.batch_size": [16, 8]}
    assert [event.loss for event in view.evals] == pytest.approx([event.loss for event in whole.evals], rel=2**-8)
