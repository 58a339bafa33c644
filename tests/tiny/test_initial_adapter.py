"""A new run that begins with an earlier adapter: its first loss is what the old adapter's loss is on those rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jobs import again, curve, tiny_config, train, write_rows
from safetensors.torch import load_file

from qlora_ui.runs.events import Failed, Noticed
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

WEIGHTS = "adapter_model.safetensors"
STRONG = {"lora__dropout": 0.0, "train__learning_rate": 5e-2, "train__max_steps": 20, "eval__every": 20, "output__save_every": 10}


@pytest.fixture(scope="module")
def old(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunConfig, RunView]:
    folder = tmp_path_factory.mktemp("initial")
    workspace = Workspace.at(folder / "workspace")
    config = tiny_config(tiny_model_dir, write_rows(folder / "rows.jsonl"), **STRONG)
    view = train(workspace, config)
    assert view.status is Status.DONE, view.ended
    return workspace, config, view


def test_the_curve_goes_on_where_the_old_adapter_ended(old: tuple[Workspace, RunConfig, RunView]) -> None:
    workspace, config, before = old
    view = train(workspace, config.changed({"lora.start_from": before.id}))
    assert view.status is Status.DONE, view.ended
    first, last = before.steps[0].loss, before.steps[-1].loss
    # Same seed, so the same first rows: a fresh adapter starts at `first`, the old one has come far below it.
    assert last < first - 0.2
    assert view.steps[0].loss < first - 0.7 * (first - last)
    assert any(isinstance(event, Noticed) and event.code == "start-from" for event in view.timeline)


def test_weights_are_those_of_the_adapter_and_a_folder_will_do(old: tuple[Workspace, RunConfig, RunView], tmp_path: Path) -> None:
    workspace, config, before = old
    shutil.copytree(before.run.adapter, tmp_path / "mine")
    sidecar = json.loads((tmp_path / "mine" / "qlora_ui.json").read_text(encoding="utf-8"))
    (tmp_path / "mine" / "qlora_ui.json").write_text(json.dumps({**sidecar, "weights_mark": "of others"}), encoding="utf-8")
    one_step = {"train.max_steps": 1, "train.learning_rate": 1e-12, "train.schedule": "constant", "train.warmup": 0, "eval.every": 1}
    view = train(workspace, config.changed({"lora.start_from": str(tmp_path / "mine"), **one_step}))
    assert view.status is Status.DONE, view.ended
    new, given = load_file(view.run.adapter / WEIGHTS), load_file(before.run.adapter / WEIGHTS)
    assert new.keys() == given.keys()
    assert all((new[name] - given[name]).abs().max() < 1e-9 for name in new)
    assert any(notice.code == "base-replaced" for notice in view.notices if isinstance(notice, Noticed))
    assert not any(notice.code == "base-replaced" for notice in before.notices if isinstance(notice, Noticed))
    # The held-back rows are the same, so their loss is where the old run left it.
    assert view.evals[-1].loss == pytest.approx(before.evals[-1].loss, abs=1e-4)


def test_continuing_such_a_run_needs_the_old_one_no_more(old: tuple[Workspace, RunConfig, RunView], tmp_path: Path) -> None:
    workspace, config, before = old
    folder = tmp_path / "mine"
    shutil.copytree(before.run.adapter, folder)
    view = train(workspace, config.changed({"lora.start_from": str(folder)}))
    whole = curve(view)
    shutil.rmtree(folder)
    shutil.rmtree(view.run.checkpoints / "checkpoint-20")
    after = again(view.run)
    assert after.status is Status.DONE, after.ended
    assert curve(after) == whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.rank": 8}, "adapter size is 4"),
        ({"lora.alpha": 4}, "adapter strength is 8"),
        ({"lora.rslora": True}, "rsLoRA is off"),
        ({"lora.targets": ["q_proj"]}, "weights for"),
    ],
    ids=str,
)
def test_another_size_or_strength_is_refused(old: tuple[Workspace, RunConfig, RunView], changes: dict[str, object], said: str) -> None:
    workspace, config, before = old
    view = train(workspace, config.changed({"lora.start_from": before.id, **changes}))
    assert isinstance(view.ended, Failed) and view.ended.code == "adapter-misfit", view.ended
    assert said in view.ended.why


def test_another_base_and_no_adapter_are_refused(old: tuple[Workspace, RunConfig, RunView], tmp_path: Path) -> None:
    workspace, config, before = old
    other = tmp_path / "other"
    shutil.copytree(before.run.adapter, other)
    sidecar = json.loads((other / "qlora_ui.json").read_text(encoding="utf-8"))
    sidecar |= {"base_model": "somebody/other-model", "config_sha256": "0" * 64}
    (other / "qlora_ui.json").write_text(json.dumps(sidecar), encoding="utf-8")
    view = train(workspace, config.changed({"lora.start_from": str(other)}))
    assert isinstance(view.ended, Failed) and view.ended.code == "adapter-misfit" and "somebody/other-model" in view.ended.why
    (other / WEIGHTS).unlink()
    view = train(workspace, config.changed({"lora.start_from": str(other)}))
    assert isinstance(view.ended, Failed) and view.ended.code == "adapter-missing"
