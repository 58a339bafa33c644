"""What `doctor` says of a card that PyTorch cannot use."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path

import pytest

from qlora_ui.cli import doctor, main
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.runs.workspace import Workspace

CARD = GpuState(0, "GPU-0", "NVIDIA GeForce RTX 4060", 8 << 30, 0, None, compute_capability=(8, 9))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with a driver of CUDA 12."""
    monkeypatch.setattr(doctor, "read_gpus", lambda *, visible_only=True: [CARD])
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.1")


def test_it_says_the_rest_where_the_workspace_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a file"
    file.touch()
    assert main(["doctor", "--workspace", str(file / "ws")]) == 1
    said = capsys.readouterr().out
    assert "transformers" in said and f"! The workspace {file / 'ws'} cannot be written." in said


@pytest.mark.parametrize(
    ("answer", "is_hidden", "says"),
    [
        ('["13.0", 1]', False, "PyTorch can use 1 of 1 (built for CUDA 13.0)"),
        ('["13.0", 0]', False, "built for CUDA 13.0, cannot use it with the driver 550.1"),
        ("[null, 0]", False, "PyTorch was built without CUDA"),
        ('["13.0", 0]', True, "CUDA_VISIBLE_DEVICES hides every card"),
        ("", False, "PyTorch cannot be started: OSError: libcudnn.so.9 is gone."),
    ],
)
@pytest.mark.usefixtures("card")
def test_it_says_what_pytorch_sees(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, answer: str, is_hidden: bool, says: str) -> None:
    done = subprocess.CompletedProcess([], 0, answer, "Traceback\nOSError: libcudnn.so.9 is gone")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *words, **named: done)
    if is_hidden:
        monkeypatch.setattr(doctor, "read_gpus", lambda *, visible_only=True: [] if visible_only else [CARD])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["doctor", "--workspace", str(workspace.root)])
    assert says in said.getvalue()
    assert code == (0 if answer else 1)
