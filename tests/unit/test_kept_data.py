"""Data files that the workspace keeps: what is listed, what can be deleted, and what is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ui.base.errors import DataError, QloraUiError
from qlora_ui.data.fixes import write_version
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.runs.events import Finished, Stopped
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.kept_data import delete_kept, kept_files
from qlora_ui.runs.listing import RunList
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.new_data import keep_pasted

ROWS = (Conversation((Message("user", "a"), Message("assistant", "b"))),)


def delete(workspace: Workspace, path: Path) -> Path:
    return delete_kept(workspace, str(path), RunList(workspace).rows())


def run_with(workspace: Workspace, path: Path) -> RunDir:
    return create_run(workspace, RunConfig().changed({"data.sources": [str(path)], "output.name": "mine"}))


def test_a_deleted_file_is_in_the_trash_and_its_number_is_not_given_again(workspace: Workspace) -> None:
    pasted = Path(keep_pasted('{"prompt": "a", "completion": "b"}', workspace))
    version = write_version(ROWS, workspace, "rows.jsonl", "DATA-EMPTY")
    assert {file.path for file in kept_files(workspace)} == {pasted, version}
    moved = [delete(workspace, path) for path in (pasted, version)]
    assert [path.name for path in moved] == ["pasted-rows.jsonl", "rows-v2.jsonl"] and moved[0].read_text().startswith('{"prompt"')
    assert not kept_files(workspace) and not pasted.parent.exists()
    assert write_version(ROWS, workspace, "rows.jsonl", "DATA-EMPTY").name == "rows-v3.jsonl"
    with pytest.raises(DataError, match="not kept here any more"):
        delete(workspace, pasted)


def test_what_a_run_has_still_to_read_stays(workspace: Workspace) -> None:
    path = write_version(ROWS, workspace, "rows.jsonl", "DATA-EMPTY")
    run = run_with(workspace, path)
    with pytest.raises(DataError, match=r"rows-v2\.jsonl is needed by the run mine.*Let the run end"):
        delete(workspace, path)
    journal = JournalWriter(run.journal_path)
    journal.write(Stopped())
    with pytest.raises(DataError, match="when it is continued"):
        delete(workspace, path)
    # From its first checkpoint on a run has its rows in its own folder.
    for name in ("data/receipt.json", "checkpoints/checkpoint-3/adapter_model.safetensors"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("{}")
    assert delete(workspace, path).is_file()


def test_a_run_that_is_done_or_learns_from_others_is_not_in_the_way(workspace: Workspace) -> None:
    path = write_version(ROWS, workspace, "rows.jsonl", "DATA-EMPTY")
    run_with(workspace, write_version(ROWS, workspace, "rows.jsonl", "DATA-EMPTY"))
    JournalWriter(run_with(workspace, path).journal_path).write(Finished())
    assert delete(workspace, path).is_file()


def test_nothing_outside_the_workspace_is_deleted(workspace: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "own" / "rows.jsonl"
    outside.parent.mkdir()
    outside.write_text("{}")
    (workspace.datasets / "link.jsonl").symlink_to(outside)
    (workspace.datasets / "folder").symlink_to(outside.parent)
    assert [file.path.name for file in kept_files(workspace)] == ["link.jsonl"]
    for file_id in (str(outside), str(workspace.datasets / "folder" / "rows.jsonl"), str(workspace.root / "draft.json"), ""):
        with pytest.raises(QloraUiError):
            delete_kept(workspace, file_id, [])
    assert delete(workspace, workspace.datasets / "link.jsonl").is_symlink() and outside.is_file()
