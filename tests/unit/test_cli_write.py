"""Commands that write settings to a place of the user's choice."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest

from qlora_ui.cli import main, runs
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.script import bundle
from qlora_ui.settings.presets import read_preset
from qlora_ui.settings.run_config import RunConfig


@pytest.mark.parametrize("words", [["fit", "--device", "12GB", "--write"], ["script", "--format", "settings", "--out"]])
def test_a_place_that_cannot_be_written_is_told_in_words(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "a file").touch()
    place = str(tmp_path / "a file" / "settings.yaml")
    assert main([*words, place, "--preset", "demo", "--workspace", str(workspace.root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(words[-1]) and "cannot be written. " in said and "Give another place." in said


def test_the_command_that_is_said_can_be_given(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "my settings"
    assert main(["script", "--format", "settings", "--out", str(place), "--workspace", str(workspace.root)]) == 0
    assert shlex.split(capsys.readouterr().out)[-1] == str(place / "settings.yaml")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("peak_bytes", 3 << 30, "3.0 GiB"), ("elapsed_s", 129.28, "2 min 9 s"), ("final_loss", 2.625532, "2.6255"), ("phase", None, "")],
)
def test_a_run_is_shown_in_units_that_people_read(name: str, value: object, shown: str) -> None:
    assert runs._cell(name, value) == shown


def test_a_place_that_can_is_written(workspace: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "new" / "settings.yaml"
    assert main(["fit", "--device", "12GB", "--write", str(place), "--preset", "demo", "--workspace", str(workspace.root)]) == 0
    assert read_preset(place).config.train.max_steps == 30


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    """A run with rows, as far as a program is written of it."""
    made = create_run(workspace, RunConfig())
    made.data.mkdir()
    for name in ("train.jsonl", "train.tokens.parquet"):
        (made.data / name).touch()
    return made


@pytest.mark.parametrize("words", [["script"], ["export", "--format", "script"], ["export", "--format", "trl-yaml"]])
def test_a_program_is_not_written_over_a_file(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    (tmp_path / "a file").write_text("mine", encoding="utf-8")
    for place in ("a file", "a file/new"):
        end = ["--run", run.id, "--out", str(tmp_path / place), "--workspace", str(run.path.parents[1])]
        assert main([*words, *end]) == 2
        assert capsys.readouterr().err.startswith("--out: ")
    assert (tmp_path / "a file").read_text(encoding="utf-8") == "mine"


def test_a_program_that_is_half_written_is_taken_away(
    workspace: Workspace, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(config: object, facts: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = tmp_path / "new"
    words = ["script", "--run", run.id, "--out", str(place), "--workspace", str(workspace.root)]
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "render_script", full)
        assert main(words) == 2 and list(place.iterdir()) == []
    assert "cannot be written. No space left on device." in capsys.readouterr().err
    assert main(words) == 0 and (place / "train.py").is_file()
    assert main(words) == 2 and "new is not empty" in capsys.readouterr().err


def test_a_program_in_the_runs_own_folder_is_made_anew(workspace: Workspace, run: RunDir) -> None:
    words = ["export", "--format", "script", "--run", run.id, "--workspace", str(workspace.root)]
    assert main(words) == 0 and main(words) == 0
    assert (run.exports / "script" / "train.py").is_file()


@pytest.mark.parametrize(("flag", "value", "says"), [("--format", "zip", "'trl-yaml'"), ("--check", "-3", "give 0 or more")])
def test_a_wrong_wish_for_an_export_names_what_there_is(capsys: pytest.CaptureFixture[str], flag: str, value: str, says: str) -> None:
    assert main(["export", "--format", "adapter", flag, value]) == 2
    assert says in capsys.readouterr().err
