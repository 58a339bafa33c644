"""Commands that write settings to a place of the user's choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ui.cli import main
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import read_preset


@pytest.mark.parametrize("words", [["fit", "--device", "12GB", "--write"], ["script", "--format", "settings", "--out"]])
def test_a_place_that_cannot_be_written_is_told_in_words(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "a file").touch()
    place = str(tmp_path / "a file" / "settings.yaml")
    assert main([*words, place, "--preset", "demo", "--workspace", str(workspace.root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(words[-1]) and "cannot be written. " in said and "Give another place." in said


def test_a_place_that_can_is_written(workspace: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "new" / "settings.yaml"
    assert main(["fit", "--device", "12GB", "--write", str(place), "--preset", "demo", "--workspace", str(workspace.root)]) == 0
    assert read_preset(place).config.train.max_steps == 30
