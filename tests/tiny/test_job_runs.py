"""A run from beginning to end on a two-layer model: what lies on the disk and on the journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import curve, tiny_config, train, write_rows
from safetensors.torch import load_file

from qlora_ui.base.units import MIB
from qlora_ui.engine.adapter import WEIGHTS
from qlora_ui.runs.events import CheckpointSaved, MemoryMeasured, PhaseChanged
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    folder = tmp_path_factory.mktemp("finished")
    probes: dict[str, Any] = {"eval__probes": ["hello"], "eval__probe_every": 4, "eval__probe_tokens": 8}
    # A CPU has AdamW only, so the run is that of the default.
    config = tiny_config(tiny_model_dir, write_rows(folder / "rows.jsonl"), train__optimizer="adamw_8bit", **probes)
    return train(Workspace.at(folder / "workspace"), config)


def test_it_is_done_and_every_step_is_on_the_curve(finished: RunView) -> None:
    assert finished.status is Status.DONE, finished.ended
    assert [event.step for event in finished.steps] == list(range(1, 9))
    assert [event.step for event in finished.evals] == [4, 8]
    assert finished.steps[-1].loss < finished.steps[0].loss
    assert finished.steps[-1].tokens > finished.steps[0].tokens > 0


def test_the_plan_says_what_then_happens(finished: RunView) -> None:
    plan = finished.planned
    assert plan is not None
    assert (plan.num_steps, plan.effective_batch, plan.eval_every, plan.save_every, plan.probe_every) == (8, 4, 4, 2, 4)
    assert plan.num_train_rows + plan.num_eval_rows == 24
    assert 0 < plan.num_trained_tokens < plan.num_train_tokens
    assert plan.trainable_params < plan.total_params
    assert [notice.what for notice in finished.notices if notice.code == "optimizer"] == [
        "On a CPU plain AdamW trains: AdamW 8-bit needs an NVIDIA card."
    ]


def test_phases_come_in_order(finished: RunView) -> None:
    phases = [event.phase for event in read_events(finished.run.journal_path) if isinstance(event, PhaseChanged)]
    order = ["download", "data", "load", "check", "train", "save", "finish"]
    firsts = [phases.index(phase) for phase in order]
    assert firsts == sorted(firsts)


def test_memory_is_measured_where_it_is_compared(finished: RunView) -> None:
    at = {event.at for event in finished.memory}
    assert {"dry-run", "step", "end"} <= at
    assert all(event.process_bytes is not None for event in finished.memory)
    # What it adds to a process that has trained before can be nothing; the next test but one measures it.
    assert isinstance(finished.memory[0], MemoryMeasured)


def test_a_finished_run_teaches_the_estimate_of_time(finished: RunView) -> None:
    from qlora_ui.hardware.devices import CPU_KEY, stored_speeds

    speed = stored_speeds(Workspace.at(finished.run.path.parent.parent), CPU_KEY)["plain"]
    assert speed.num_runs == 1 and speed.factor > 0


def test_on_a_cpu_memory_is_what_the_run_adds_to_the_app() -> None:
    import torch

    from qlora_ui.engine.memory_watch import MemoryWatch

    def measured(at: str) -> int:
        return watch.measure(at).process_bytes or 0

    watch = MemoryWatch(torch.device("cpu"), lambda event: None, lambda: None)
    assert measured("tick") < 16 * MIB  # the page, torch and what else was there before do not count
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    assert measured("tick") == pytest.approx(64 * MIB, abs=16 * MIB)
    del held
    assert measured("end") >= 48 * MIB  # the peak
    assert measured("returned") < 16 * MIB


def test_the_adapter_is_whole_and_names_no_path(finished: RunView) -> None:
    from safetensors import safe_open

    adapter = finished.run.adapter
    assert finished.ended is not None and finished.ended.adapter == "adapter"
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "qlora_ui.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 2 * 7 * 2
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert finished.config is not None and settings["base_model_name_or_path"] == finished.config.model.id


def test_checkpoints_rotate_and_keep_the_best(finished: RunView) -> None:
    from qlora_ui.engine.checkpoints import CheckpointStore

    store = CheckpointStore(finished.run.checkpoints, 3)
    best = finished.best_eval
    assert best is not None
    assert set(store.steps()) == {4, 6, 8} | {best.step}
    assert all(store.find(step) is not None for step in store.steps())
    assert not any(path.name.startswith(".") for path in finished.run.checkpoints.iterdir())
    assert all(event.duration_s >= 0 for event in finished.timeline if isinstance(event, CheckpointSaved))


def test_probes_are_answered_along_the_way(finished: RunView) -> None:
    assert [event.step for event in finished.probes] == [0, 4, 8]


def test_the_receipt_tells_all(finished: RunView) -> None:
    receipt = json.loads(finished.run.receipt_path.read_text(encoding="utf-8"))
    assert receipt["status"] == "done"
    assert receipt["measured"]["steps"] == 8
    assert receipt["measured"]["final_loss"] == finished.steps[-1].loss
    assert receipt["data"]["files"] and receipt["adapter_sha256"] and receipt["versions"]["torch"]


def test_probes_and_the_dry_run_leave_the_curve_as_it_is(finished: RunView, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Dropout is on: one number drawn too many would move every loss that follows."""
    rows = write_rows(tmp_path / "rows.jsonl")
    plain = train(Workspace.at(tmp_path / "workspace"), tiny_config(tiny_model_dir, rows))
    assert curve(plain) == curve(finished)


def test_the_owner_leaves_no_trace(finished: RunView) -> None:
    assert not finished.run.has_owner()
    assert not finished.run.pending_requests()


def test_a_run_of_one_step_learns_from_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    config = tiny_config(tiny_model_dir, rows, train__max_steps=None, train__epochs=1, train__warmup=0.03, train__accumulation=8)
    view = train(Workspace.at(tmp_path / "one"), config.changed({"eval.share": 0}))
    assert [(event.step, event.learning_rate) for event in view.steps] == [(1, config.train.learning_rate)]
    weights = load_file(view.run.adapter / WEIGHTS)
    assert all(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
