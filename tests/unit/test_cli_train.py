"""`train` on the command line when nobody listens any more: the run goes on, or is saved."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qlora_ui.cli import main, train
from qlora_ui.runs.run_dir import Request
from qlora_ui.runs.workspace import Workspace


class _Gone:
    """A stream of a terminal that was closed."""

    def __init__(self, file: Any) -> None:
        self.fileno = file.fileno

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "said").open("w") as file:
        monkeypatch.setattr("sys.stderr", _Gone(file))
        train._say("step 1/30")
        # Nor does anybody else's line: a library that warns in the job's thread would end it.
        os.write(file.fileno(), b"a warning")
    assert (tmp_path / "said").read_bytes() == b""


def test_the_job_is_saved_whatever_ends_the_command(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shut: list[float] = []

    class Started(train.Launcher):
        def start(self, config: Any, *, key: str = "") -> Any:
            raise RuntimeError("something unforeseen after the job began")

        def shutdown(self, timeout_s: float = 30.0) -> bool:
            shut.append(timeout_s)
            return True

    monkeypatch.setattr(train, "Launcher", Started)
    with pytest.raises(RuntimeError, match="unforeseen"):
        main(["train", "--preset", "demo", "--workspace", str(workspace.root)])
    assert shut == [train.SAVING_S]


class _Asked:
    """Takes a run's requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def request(self, request: Request) -> None:
        self.requests.append(request)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_closed_terminal_stops_and_saves_and_is_not_counted_twice() -> None:
    target: Any = _Asked()
    with train._stopping(target):
        # The system and the shell say so, each.
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert target.requests == [Request.STOP]
        signal.raise_signal(signal.SIGTERM)
    assert target.requests == [Request.STOP, Request.STOP_NOW]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_what_was_started_to_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        target: Any = _Asked()
        with train._stopping(target):
            signal.raise_signal(signal.SIGHUP)
        assert target.requests == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("words", [["--lora.rank", "8"], ["--lora.rank", "none at all"], ["--preset", "demo"], ["--config", "my.yaml"]])
def test_settings_beside_a_run_that_has_its_own_are_refused(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    end = ["--workspace", str(workspace.root)]
    assert main(["train", "--resume", "latest", *words, *end]) == 2
    said = capsys.readouterr().err
    assert "A run goes on with its own settings." in said and f"{words[0]} beside --resume would change nothing" in said
    assert main(["script", "--run", "latest", "--out", str(tmp_path / "out"), *words, *end]) == 2
    assert "settings" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_alone_is_not_refused_for_settings(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "latest", "--workspace", str(workspace.root)]) == 2
    assert "settings" not in capsys.readouterr().err
