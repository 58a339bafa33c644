"""A full disk while a page is used: it is told, and nothing stands still."""

from __future__ import annotations

import errno
import os

import gradio as gr
import pytest

from qlora_ui.cli import main
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.handler import attempt, handler
from qlora_ui.ui.new_data import keep_pasted
from qlora_ui.ui.service import Service


@pytest.fixture(autouse=True)
def full(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_handler_names_the_disk_and_no_fault_of_the_app(workspace: Workspace) -> None:
    with pytest.raises(gr.Error, match=r"The disk is full.*Free some space") as shown:
        handler(keep_pasted)("[1]", workspace)
    assert "fault" not in shown.value.message
    _, (problem,) = attempt(lambda: keep_pasted("[1]", workspace), "here")
    assert problem.code == "disk-full"


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EROFS, "The disk is read-only"), (errno.EACCES, "The system refuses access to"), (errno.EINVAL, "A fault in the app")],
)
def test_a_disk_that_refuses_is_no_fault_of_the_app(
    code: int, said: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What a system does with a disk that has errors, in the middle of a day's work.
    def replace(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code), str(source))

    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(gr.Error, match=said):
        handler(keep_pasted)("[1]", workspace)
    assert bool(caplog.records) == (code == errno.EINVAL)


def test_an_edit_is_drawn_and_only_not_kept(workspace: Workspace) -> None:
    service = Service(workspace)
    service.kept_draft.remember(service.draft({"lora.rank": 7}), "tab", is_edit=True)
    assert not (workspace.root / "draft.json").exists()


def test_a_run_that_cannot_be_made_is_not_in_the_list(workspace: Workspace) -> None:
    with pytest.raises(OSError, match="No space"):
        Service(workspace).launcher.start(RunConfig())
    assert list_runs(workspace) == []


def test_a_command_says_it_without_a_traceback(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "demo", "--workspace", str(workspace.root)]) == 2
    assert "The disk is full." in capsys.readouterr().err
