"""Checkpoints are whole or not there, and a broken one is never taken for good."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import again, curve, tiny_config, train, write_rows
from safetensors.torch import save_file
from test_resume import interrupted

from qlora_ui.base.errors import RunError
from qlora_ui.engine.checkpoints import ADAPTER_FILES, MANIFEST, Broken, Checkpoint, CheckpointStore, verify
from qlora_ui.engine.exports.source import checkpoint_or_fail
from qlora_ui.engine.resume import find_checkpoint
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace


def save(store: CheckpointStore, step: int, text: str = "weights") -> Checkpoint:
    staged = store.stage(step)
    (staged / "optimizer.pt").write_text(text, encoding="utf-8")
    (staged / "trainer_state.json").write_text("{}", encoding="utf-8")
    return store.commit(step, {"tokens": step * 10})


def test_a_commit_is_verified_and_remembers_its_notes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    save(store, 10)
    found = store.find(10)
    assert found is not None and found.notes == {"tokens": 100} and found.num_bytes == 9
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "no manifest", "half a manifest"])
def test_any_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, 3)
    save(store, 10)
    victim = save(store, 20).path
    file = victim / "optimizer.pt"
    match damage:
        case "missing":
            file.unlink()
        case "short":
            file.write_text("weig", encoding="utf-8")
        case "changed":
            file.write_text("WEIGHTS", encoding="utf-8")
        case "no manifest":
            (victim / MANIFEST).unlink()
        case _:
            (victim / MANIFEST).write_text('{"step": 20, "fil', encoding="utf-8")
    newest, broken = store.newest_whole()
    assert newest is not None and newest.step == 10
    assert [item.step for item in broken] == [20] and broken[0].why
    assert isinstance(verify(victim), Broken)


def test_rotation_goes_by_step_and_not_by_the_clock(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    for step in (10, 20, 30, 40):
        save(store, step)
    os.utime(store.path_of(10), (time.time() + 1e6, time.time() + 1e6))
    assert store.rotate(best_step=10) == [20]
    assert sorted(store.steps()) == [10, 30, 40]
    assert store.rotate(best_step=None) == [10]


def damaged(folder: Path, whole: tuple[int, ...], without_optimizer: tuple[int, ...]) -> CheckpointStore:
    """A store with checkpoints of these steps; those of the second kind have their adapter and cannot be continued."""
    store = CheckpointStore(folder, 2)
    for step in (*whole, *without_optimizer):
        staged = store.stage(step)
        for name in (*ADAPTER_FILES, "optimizer.pt"):
            (staged / name).write_text(f"{name} {step}", encoding="utf-8")
        path = store.commit(step, {}).path
        if step in without_optimizer:
            (path / "optimizer.pt").unlink()
    return store


def test_what_was_learned_stays_where_no_checkpoint_can_be_continued(tmp_path: Path) -> None:
    """Cleaners and virus scanners remove pickles, and people what is large: Continue then began anew and removed the adapters."""
    store = damaged(tmp_path, (), (10, 20))
    with pytest.raises(RunError, match=r"step 20 is damaged.*Optimizer.pt is missing.*what this one has learned"):
        find_checkpoint(store, lambda event: None, is_main=True)
    newest = store.newest_adapter()
    assert newest is not None and newest.step == 20 and sorted(store.steps()) == [10, 20]
    (store.path_of(20) / ADAPTER_FILES[0]).write_text("cut", encoding="utf-8")
    newest = store.newest_adapter()
    assert newest is not None and newest.step == 10


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_damaged_result_names_its_copy_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    damaged(run.checkpoints, (), (10, 20))
    run.adapter.mkdir()
    save_file({"a": torch.zeros(2)}, run.adapter / ADAPTER_FILES[0])
    (run.adapter / ADAPTER_FILES[1]).write_text("{}", encoding="utf-8")
    assert checkpoint_or_fail(run) is None
    (run.adapter / name).write_text('{"r":', encoding="utf-8")
    with pytest.raises(RunError, match=rf"Its file {name}.*Copy .*checkpoint-20/{name} in its place"):
        checkpoint_or_fail(run)


def test_what_was_learned_after_the_checkpoint_that_is_continued_stays_until_it_is_learned_again(tmp_path: Path) -> None:
    store = damaged(tmp_path, (10,), (20, 30))
    told: list[Any] = []
    found = find_checkpoint(store, told.append, is_main=True)
    assert found is not None and found.step == 10 and len(told) == 2
    assert sorted(store.steps()) == [10, 30]
    for step in (12, 14):
        save(store, step)
        store.rotate(best_step=None, saved=step)
    assert sorted(store.steps()) == [12, 14, 30]
    save(store, 30)
    store.rotate(best_step=None, saved=30)
    assert sorted(store.steps()) == [14, 30] and store.find(30) is not None


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    save(store, 10)
    (store.stage(20) / "half").write_text("x", encoding="utf-8")
    (tmp_path / ".trash-5").mkdir()
    store.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, 2)
    monkeypatch.setattr("qlora_ui.engine.checkpoints.free_bytes", lambda path: 1000)
    with pytest.raises(RunError, match="checkpoint needs"):
        store.check_space(0)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rng_state.pth", "adapter_model.safetensors"))]
)
def test_a_run_with_a_broken_newest_checkpoint_continues_from_the_one_before(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The stock trainer takes the first two of these silently and goes on with other numbers."""
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=6, eval__share=0)
    whole = train(Workspace.at(tmp_path / "whole"), config)
    made = interrupted(Workspace.at(tmp_path / "broken"), config, Request.STOP, 3)
    (made.checkpoints / "checkpoint-4" / name).unlink()
    view = again(made)
    assert view.status is Status.DONE
    assert view.started is not None and view.started.resumed_from == 2
    assert any(event.what.startswith("The checkpoint of step 4 is broken") for event in view.notices if hasattr(event, "code"))
    assert curve(view) == curve(whole)
