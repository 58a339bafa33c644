"""A window of its own: which program shows it, and what happens where none can."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ui.cli import window
from qlora_ui.runs.workspace import Workspace

URL = "http://127.0.0.1:7860"


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_browser_of_chromes_family_is_found_on_every_system(tmp_path: Path) -> None:
    linux = _program(tmp_path / "bin" / "chromium")
    assert window.find_browser("linux", {"PATH": str(linux.parent)}) == str(linux)
    edge = _program(tmp_path / "Files" / window.WINDOWS_PATHS[0])
    assert window.find_browser("win32", {"PROGRAMFILES(X86)": str(tmp_path / "Files"), "PATH": ""}) == str(edge)
    chrome = _program(tmp_path / "Applications" / "Google Chrome.app" / "Contents" / "MacOS" / "Google Chrome")
    assert window.find_browser("darwin", {"HOME": str(tmp_path), "PATH": ""}) == str(chrome)
    assert window.find_browser("linux", {"PATH": str(tmp_path)}) is None


def test_the_page_is_shown_as_an_app_with_a_profile_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program(tmp_path / "bin" / "google-chrome")
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(window, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.platform", "linux")
    command = window.window_command(URL, tmp_path)
    assert command is not None and command[:2] == [str(program), f"--app={URL}"]
    assert f"--user-data-dir={tmp_path / 'cache' / 'window'}" in command


def test_without_a_display_or_a_program_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(window, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not window.open_window(URL, workspace)
    assert "there is no display" in capsys.readouterr().err
    monkeypatch.setenv("DISPLAY", ":7")
    assert not window.open_window(URL, workspace)
    assert "Chrome, Chromium or Edge" in capsys.readouterr().err
