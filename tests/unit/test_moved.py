"""A workspace that was moved: what its runs and its page name is found where it is now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from model_files import write_model

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import write_json
from qlora_ui.data.load import inspect
from qlora_ui.runs.kept_models import runs_on
from qlora_ui.runs.listing import RunList
from qlora_ui.runs.moved import found_here, places
from qlora_ui.runs.registry import create_run, find_run, list_runs
from qlora_ui.runs.workspace import Ownership, Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.handler import attempt
from qlora_ui.ui.service import Service


def test_runs_and_the_last_visit_find_the_files_that_moved_with_them(workspace: Workspace, tmp_path: Path) -> None:
    with Ownership(workspace):
        pass
    kept, base = workspace.datasets / "ab12" / "rows.jsonl", write_model(workspace.models / "merged")
    kept.parent.mkdir()
    kept.write_text("{}")
    outside = tmp_path / "mine.jsonl"
    outside.write_text("{}")
    config = RunConfig().changed({"data.sources": [{"id": str(kept), "weight": 2}, str(outside)], "model.id": str(base)})
    run = create_run(workspace, config)
    write_json(workspace.root / "draft.json", {"preset": "", "settings": config.to_nested(only_changed=True)})
    RunList(workspace).rows()

    there = tmp_path / "another disk" / "qlora"
    there.parent.mkdir()
    shutil.move(workspace.root, there)
    moved = Workspace.at(there)
    with Ownership(moved):
        assert places(there) == [str(workspace.root), str(there)]
        for read in (find_run(moved, run.id).config(), Service(moved).kept_draft.last()[1]):
            assert [source.id for source in read.data.sources] == [str(there / "datasets" / "ab12" / "rows.jsonl"), str(outside)]
            assert read.data.sources[0].weight == 2 and read.model.id == str(there / "models" / "merged")
        assert [row.id for row in runs_on(str(there / "models" / "merged"), RunList(moved).rows())] == [run.id]
        # What was deleted is missing where it was, and nothing takes its place.
        (there / "models" / "merged" / "config.json").unlink()
        shutil.rmtree(there / "models" / "merged")
        assert list_runs(moved)[0].config().model.id == str(base)


def test_a_copy_beside_the_first_changes_nothing_and_paths_of_another_system_are_understood(workspace: Workspace, tmp_path: Path) -> None:
    for root in (workspace.root, tmp_path / "copy"):
        (root / "datasets").mkdir(parents=True, exist_ok=True)
        (root / "datasets" / "rows.jsonl").write_text("{}")
    earlier, copy = [str(workspace.root), r"C:\Users\Ann\qlora-ui"], tmp_path / "copy"
    assert found_here(str(workspace.root / "datasets" / "rows.jsonl"), copy, earlier) == str(workspace.root / "datasets" / "rows.jsonl")
    assert found_here(r"C:\Users\Ann\qlora-ui\datasets\rows.jsonl", copy, earlier) == str(copy / "datasets" / "rows.jsonl")
    for other in (str(workspace.root), f"{workspace.root}/../copy/datasets", f"{workspace.root}-2/datasets/rows.jsonl", "hub:a/b", ""):
        assert found_here(other, copy, earlier) == other


def test_a_link_to_a_disk_that_is_away_makes_no_empty_workspace(tmp_path: Path) -> None:
    link, disk = tmp_path / "home", tmp_path / "disk" / "qlora-ui"
    disk.parent.mkdir()
    link.symlink_to(disk)
    for folder in (link, link / "inside"):
        with pytest.raises(RunError, match=r"is not there.*which does not exist.*Connect the disk"):
            Workspace.at(folder)
    assert not disk.exists()
    disk.mkdir()
    assert Workspace.at(link).root == disk.resolve()


def test_a_workspace_that_is_away_is_told_and_not_made_anew(workspace: Workspace) -> None:
    run, service = create_run(workspace, RunConfig()), Service(workspace)
    away = workspace.root.rename(workspace.root.with_name("away"))
    for look in (lambda: service.view(run.id), lambda: list_runs(workspace), lambda: inspect(RunConfig().data, workspace)):
        _, (problem,) = attempt(look, "here")
        assert "is not there" in problem.what and "Put it back" in problem.fix
    assert not workspace.root.exists()
    away.rename(workspace.root)
    view = service.view(run.id)
    assert view is not None and view.id == run.id
