"""A workspace that may be read and not written: what only reads works there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qlora_ui.cli import main
from qlora_ui.runs.workspace import Workspace
from tests.journals import write_run


@pytest.fixture
def read_only(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """One with two runs, in which no file or folder can be made by anybody, the tests' root included."""
    write_run(workspace, num_steps=4)
    write_run(workspace, num_steps=4, end="paused", values={"lora.rank": 8})

    def refused(function: Any) -> Any:
        def call(path: Any, *how: Any, **more: Any) -> Any:
            if Path(path).is_relative_to(workspace.root) and not (function is os.mkdir and os.path.isdir(path)):
                raise OSError(30, "Read-only file system", str(path))
            return function(path, *how, **more)

        return call

    for module, name in ((Path, "touch"), (Path, "write_text"), (os, "mkdir")):
        monkeypatch.setattr(module, name, refused(getattr(module, name)))
    access = os.access
    inside = lambda path: Path(path).is_relative_to(workspace.root)
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and inside(path)) and access(path, mode))
    return workspace


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("runs", "paused"),
        ("runs show", "settings"),
        ("runs resume-info", "continues it"),
        ("runs trash", "empty"),
        ("estimate", "steps, about"),
    ],
)
def test_what_only_reads_works(read_only: Workspace, capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    assert main([*line.split(), "--workspace", str(read_only.root)]) == 0
    assert says in capsys.readouterr().out


def test_two_runs_can_be_compared_and_none_be_renamed(read_only: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(os.listdir(read_only.runs))
    assert main(["runs", "compare", first, second, "--workspace", str(read_only.root)]) == 0
    assert "lora.rank" in capsys.readouterr().out
    assert main(["runs", "rename", first, "other", "--workspace", str(read_only.root)]) == 2
    assert "cannot be written" in capsys.readouterr().err
