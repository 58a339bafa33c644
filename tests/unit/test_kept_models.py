"""Models and exports that the app keeps: their size, which runs need them, and what can be deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from filelock import FileLock
from model_files import write_model

from qlora_ui.base.errors import ModelError, QloraUiError, RunError
from qlora_ui.base.files import GONE, read_json, write_json
from qlora_ui.cli import main
from qlora_ui.models.builtin import converted_folder
from qlora_ui.models.catalogue import list_models
from qlora_ui.models.hub_cache import download_lock, download_mark, repository_folder
from qlora_ui.runs.deleted import empty_trash
from qlora_ui.runs.events import Finished
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.kept_models import delete_export, delete_model, kept_model, runs_on_exports
from qlora_ui.runs.listing import RunList
from qlora_ui.runs.registry import create_run, delete_checkpoints
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.storage import free_remade, measure
from qlora_ui.runs.workspace import Ownership, Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import BUILTIN_MODEL
from qlora_ui.ui.action import Action
from qlora_ui.ui.background import Background
from qlora_ui.ui.page import Page
from qlora_ui.ui.run_actions import perform
from qlora_ui.ui.service import Service
from qlora_ui.ui.storage import drawn, look
from qlora_ui.ui.views.exports import Card, _card
from qlora_ui.ui.views.kept_model import kept_model_html
from qlora_ui.ui.views.runs_table import _menu
from tests.journals import write_run
from tests.unit.test_bounded import entry

HUB = "some-owner/small-model"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def run_on(workspace: Workspace, model: Any, name: str = "mine", *, is_over: bool = True) -> RunDir:
    run = create_run(workspace, RunConfig().changed({"model.id": str(model), "output.name": name}))
    if is_over:
        JournalWriter(run.journal_path).write(Finished())
    return run


def brought(model_id: str = HUB) -> Path:
    """A download of the app's that was stopped early."""
    blobs = repository_folder(model_id) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.qlora-ui.incomplete").write_bytes(bytes(5000))
    download_mark(model_id).parent.mkdir(parents=True, exist_ok=True)
    download_mark(model_id).touch()
    return repository_folder(model_id)


def test_a_folder_of_the_workspace_goes_to_the_trash_when_no_run_loads_it(workspace: Workspace) -> None:
    folder = write_model(workspace.models / "merged")
    waiting = run_on(workspace, f"{folder}/", "next", is_over=False)
    run_on(workspace, folder, "Pirate")
    rows = RunList(workspace).rows()
    model = kept_model(workspace, str(folder))
    assert model is not None and model.num_bytes > 5000
    assert "2 runs cannot be talked to, measured, continued or merged without it" in kept_model_html(model, rows)
    with pytest.raises(ModelError, match=r"needed by the run next\. It has still to load it"):
        delete_model(workspace, str(folder), rows)
    JournalWriter(waiting.journal_path).write(Finished())
    moved = delete_model(workspace, str(folder), RunList(workspace).rows())
    assert moved is not None and (moved / "config.json").is_file() and not folder.exists()
    assert empty_trash(workspace)[0] == 1
    with pytest.raises(ModelError, match="not kept here any more"):
        delete_model(workspace, str(folder), [])


def test_what_comes_again_is_removed_at_once(workspace: Workspace) -> None:
    write_model(converted_folder(workspace))
    waiting = run_on(workspace, BUILTIN_MODEL, is_over=False)
    assert kept_model(workspace, str(converted_folder(workspace))) is None, "it is the built-in one's, not a folder of the user's"
    assert delete_model(workspace, BUILTIN_MODEL, RunList(workspace).rows()) is None
    assert not converted_folder(workspace).exists() and not list(workspace.trash.iterdir())
    waiting.claim()
    folder = brought()
    with FileLock(download_lock(HUB)), pytest.raises(ModelError, match=r"small-model is being downloaded\."):
        delete_model(workspace, HUB, [])
    assert delete_model(workspace, HUB, RunList(workspace).rows()) is None
    assert not folder.exists() and not list(folder.parent.glob(f"{GONE}*"))
    (folder / "blobs").mkdir(parents=True)
    assert kept_model(workspace, HUB) is None, "what another program brought after that is not the app's"


def test_what_resisted_its_removal_goes_with_the_next_start(workspace: Workspace) -> None:
    left = [workspace.models / f"{GONE}1", repository_folder(HUB).with_name(f"{GONE}2"), workspace.trash / f"{GONE}3"]
    for folder in left:
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    with Ownership(workspace):
        assert not any(map(Path.exists, left))


def test_the_workspace_itself_is_no_model_of_it(workspace: Workspace) -> None:
    assert kept_model(workspace, f"{workspace.models}/..") is None


def test_a_download_that_was_stopped_early_is_listed_and_that_of_another_program_is_left_alone(workspace: Workspace) -> None:
    brought()
    listed = next(one for one in list_models(workspace) if one.id == HUB)
    assert (listed.is_begun, listed.size_bytes) == (True, 5000) and listed.problem
    (repository_folder("another/model") / "blobs").mkdir(parents=True)
    assert kept_model(workspace, "another/model") is None
    assert kept_model(workspace, str(write_model(workspace.root.parent / "elsewhere"))) is None


def test_an_export_goes_to_the_trash_but_not_under_a_run_that_has_it_as_its_base(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run_on(workspace, BUILTIN_MODEL, "Source")
    folder = write_model(source.exports / "merged-original")
    write_json(source.exports / "exports.json", {"merged-original": {"note": "equal"}, "adapter": {"note": "kept"}})
    other = run_on(workspace, folder, "On it", is_over=False)
    rows = RunList(workspace).rows()
    assert [(key, [row.name for row in found]) for key, found in runs_on_exports(workspace, rows).items()] == [
        ((source.id, "merged-original"), ["On it"])
    ]
    with pytest.raises(ModelError, match="The export is needed by the run On it"):
        delete_export(workspace, source, "merged-original", rows)
    assert main(["runs", "delete", source.id, "--workspace", str(workspace.root)]) != 0
    assert "needed by the run On it" in capsys.readouterr().err and source.path.is_dir()
    JournalWriter(other.journal_path).write(Finished())
    for wrong in ("", "..", "../exports", "gguf-f16", ".making-x"):
        with pytest.raises(ModelError, match="not there any more"):
            delete_export(workspace, source, wrong, rows)
    moved = delete_export(workspace, source, "merged-original", RunList(workspace).rows())
    assert (moved / "config.json").is_file() and not folder.exists()
    assert read_json(source.exports / "exports.json") == {"adapter": {"note": "kept"}}


def test_an_export_whose_base_is_gone_is_still_there_to_take_and_to_delete() -> None:
    html = _card(
        Card("adapter", "Adapter", "", "", path="/there", problem="The base is gone.", needed="X needs it."), "r", "", is_busy=False
    )
    assert "The base is gone." in html and "Download" in html and "Make it again" not in html
    assert 'data-act="delete-export"' in html and "X needs it." in html


def test_what_the_workspace_takes_is_counted_by_kind_and_rows_can_be_freed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run, brought_folder = run_on(workspace, BUILTIN_MODEL), brought()
    for name, size in (("checkpoints/checkpoint-3/optimizer.pt", 30_000), ("exports/adapter/a.bin", 20_000)):
        (run.path / name).parent.mkdir(parents=True)
        (run.path / name).write_bytes(bytes(size))
    data, tokens = workspace.rows_and_tokens
    entry(data, "old", 4000)
    entry(tokens, "used now", 1000, days=0)
    found = measure(workspace)
    assert (found.checkpoint_bytes, found.export_bytes, found.remade_bytes, found.free_now_bytes) == (30_000, 20_000, 5000, 4000)
    assert found.runs[0].id == run.id and found.hub_bytes == 5000 and brought_folder.is_dir()
    assert found.total_bytes == found.run_bytes + 5000 + found.working_bytes > 55_000
    main(["doctor", "--free", "--workspace", str(workspace.root)])
    assert "rows and tokens that were read 1 KiB" in (said := capsys.readouterr().out) and "4 KiB are free again" in said
    assert free_remade(workspace) == 0


def test_what_was_deleted_since_the_look_is_not_counted_twice(workspace: Workspace) -> None:
    # Its checkpoints were counted with the run and in the trash.
    run = write_run(workspace, end="done")
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    (run.checkpoints / "checkpoint-3" / "optimizer.pt").write_bytes(bytes(3 << 20))
    service, work = Service(workspace), Background("measurement")
    assert "disk-use" not in drawn(service, work)
    look(service, work)
    work.wait(10)
    before = drawn(service, work)
    assert "of it checkpoints 3 MiB" in before and "of it checkpoints 3 MiB," not in before and "Trash" not in before
    delete_checkpoints(workspace, run)
    drawn(service, work)
    work.wait(10)
    after = drawn(service, work)
    assert "of it checkpoints" not in after and "Trash" in after
    assert re.findall("takes (.*?)<", after) == re.findall("takes (.*?)<", before)


def test_the_checkpoints_of_a_run_go_without_its_adapter(workspace: Workspace) -> None:
    done, paused, by_word = write_run(workspace, end="done"), write_run(workspace, end="paused"), write_run(workspace, end="done")
    for run in (done, paused, by_word):
        (run.checkpoints / "checkpoint-3").mkdir(parents=True)
        (run.checkpoints / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"x")
    lists = RunList(workspace)
    before = {row.id: row for row in lists.rows()}
    assert "Delete its checkpoints" in _menu(before[done.id], "") and "Delete its checkpoints" not in _menu(before[paused.id], "")
    moved = delete_checkpoints(workspace, done)
    assert (moved / "checkpoint-3").is_dir() and done.has_adapter and not done.checkpoints.exists()
    after = {row.id: row for row in lists.rows()}[done.id]
    assert (after.has_checkpoint, after.has_adapter) == (False, True) and "Delete its checkpoints" not in _menu(after, "")
    with pytest.raises(RunError, match="has nothing but its checkpoints"):
        delete_checkpoints(workspace, paused)
    with pytest.raises(RunError, match="has no checkpoints"):
        delete_checkpoints(workspace, done)
    assert main(["runs", "delete-checkpoints", by_word.id, "--workspace", str(workspace.root)]) == 0
    assert by_word.has_adapter and not by_word.checkpoints.exists()


def test_a_run_that_another_will_begin_with_is_not_deleted(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_run(workspace, end="done")
    waiting = create_run(workspace, RunConfig().changed({"lora.start_from": source.id, "output.name": "Next"}))
    service = Service(workspace)
    page = cast(Page, SimpleNamespace(service=service))
    with pytest.raises(ModelError, match=r"This run is needed by the run Next\."):
        perform(page, Action("delete", source.id, "", False, {}))
    assert main(["runs", "delete", source.id, "--workspace", str(workspace.root)]) != 0
    assert "This run is needed by the run Next" in capsys.readouterr().err
    JournalWriter(waiting.journal_path).write(Finished())
    with monkeypatch.context() as patch, pytest.raises(QloraUiError, match="still being read"):
        patch.setattr("qlora_ui.ui.run_lists.RunLists.num_unread", 1)
        perform(page, Action("delete", source.id, "", False, {}))
    perform(page, Action("delete", source.id, "", False, {}))
    assert not source.path.exists()
