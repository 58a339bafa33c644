"""Jobs one after another in one process: trained, stopped, failed; memory, threads and open files stay level."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import models_alive, tiny_config, write_rows
from test_job_stops import ask_when_called

from qlora_ui.engine import job
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.runs.workspace import Workspace

CYCLES = int(os.environ.get("QLORA_UI_CYCLES", "7"))
"""Twenty in the long form; a few show a leak of a model as well."""
GROWTH = 0.03


@pytest.mark.slow
def test_cycles_leave_nothing_behind(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=4, output__save_every=4, eval__every=4)
    me = psutil.Process()
    before = models_alive()
    level: tuple[int, int, int] | None = None
    for cycle in range(CYCLES):
        made = create_run(workspace, config)
        kind = ("done", "stopped", "failed")[cycle % 3]
        with monkeypatch.context() as patch:
            if kind == "stopped":
                ask_when_called(patch, "qlora_ui.engine.trainer.QloraTrainer.training_step", made, Request.STOP_NOW, started)
            elif kind == "failed":
                patch.setattr(QloraTrainer, "_get_grad_norm", broken)
            job.run(made.path)
        assert read_run(made).status is Status(kind)
        assert models_alive() == before, f"a model is left after cycle {cycle} ({kind})"
        now = (me.memory_info().rss, me.num_threads(), me.num_fds())
        if cycle == min(4, CYCLES - 4):
            level = now
    assert level is not None
    assert now[0] <= level[0] * (1 + GROWTH), f"{level[0] / 2**20:.0f} MiB grew to {now[0] / 2**20:.0f} MiB"
    assert now[1] <= level[1] and now[2] <= level[2]


def started(trainer: Any) -> bool:
    return bool(trainer.is_in_train) and trainer.state.global_step == 2


def broken(self: Any, *arguments: Any, **named: Any) -> Any:
    weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
    raise RuntimeError(f"an error that holds {len(weights)} tensors")


def test_a_failure_is_told_with_its_place(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(QloraTrainer, "_get_grad_norm", broken)
    made = create_run(workspace, tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl")))
    job.run(made.path)
    ended = read_run(made).ended
    assert ended is not None and ended.code == "bug" and "an error that holds" in ended.why
    assert "in broken" in ended.traceback
