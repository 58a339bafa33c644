"""Words and settings that are wrong on the command line: everything at once, and what was meant."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from qlora_ui.cli import _parser, main
from qlora_ui.cli.chat import _talk
from qlora_ui.cli.config_flags import given_settings
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling
from qlora_ui.ui.views.recipe import command_line
from tests.journals import run_with_checkpoint, write_run


def _said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_misspelt_settings_are_named_with_everything_else(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    end = ["--workspace", str(workspace.root)]
    said = _said(["train", "--lora.rnk", "4", "--train.epochs=-1", "--foo.bar", "--lora.rank", "x", *end], capsys).splitlines()
    assert [line.split(":")[0] for line in said] == ["lora.rnk", "foo.bar", "lora.rank", "train.epochs"]
    assert said[0].endswith("Did you mean lora.rank?")


@pytest.mark.parametrize("flag", ["--config", "--preset", "--from"])
def test_a_wrong_file_does_not_hide_wrong_flags(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("base_model: foo/bar\nlora_r: 9999\n" if flag == "--from" else "lora:\n  rank: banana\n", encoding="utf-8")
    place = "there is none" if flag == "--preset" else str(file)
    word = ["script", "--out", str(tmp_path / "out"), "--format", "settings"]
    said = _said([*word, flag, place, "--train.epochs", "-1", "--lora.rnk", "8", "--workspace", str(workspace.root)], capsys)
    assert "preset: " in said or "lora.rank: " in said
    assert "train.epochs: " in said and "lora.rnk: " in said


def test_a_name_that_is_not_in_utf8_is_refused_with_what_to_do(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"/data/caf\xe9.jsonl")
    for words in (["lint", name], ["train", "--data.sources", name], ["estimate", "--model.id", name]):
        said = _said([*words, "--workspace", str(workspace.root)], capsys)
        assert "caf" in said and "Its letters are not in UTF-8. Rename the file or folder, then give its new name." in said
    assert "Write it in UTF-8." in _said(["estimate", "--output.notes", name, "--workspace", str(workspace.root)], capsys)


def test_an_estimate_says_what_to_do_about_settings_that_the_model_cannot_have(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "--lora.targets", "q_proj,W_pack", "--workspace", str(workspace.root)]) == 0
    said = capsys.readouterr().out
    assert "lora.targets: The model has no layer named W_pack." in said and "Choose among them, or all-linear." in said


@pytest.mark.parametrize("line", ["evaluate", "export --format adapter", "chat --prompt x", "serve"])
def test_a_run_without_an_adapter_is_refused_before_the_engine_is_imported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    run = write_run(workspace, num_steps=4, end="paused")
    monkeypatch.setitem(sys.modules, "qlora_ui.engine", None)
    said = _said([*line.split(), "--run", run.id, "--workspace", str(workspace.root)], capsys)
    assert said == f"Run {run.id} has no adapter. It was not trained far enough to save one. Choose another run or checkpoint.\n"


def test_a_run_that_has_only_checkpoints_names_the_newest(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_checkpoint(workspace, num_steps=120, end="paused")
    said = _said(["chat", "--prompt", "x", "--run", run.id, "--workspace", str(workspace.root)], capsys)
    assert "has no finished adapter" in said and "checkpoint-114" in said


def test_a_misspelt_setting_beside_a_run_is_refused_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--lora.rnk beside --resume would change nothing" in _said(["train", "--resume", "latest", "--lora.rnk", "8"], capsys)


def test_flags_before_the_word_are_told_where_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert "“runs” comes first: app.py runs …" in _said(["--workspace", "somewhere", "runs"], capsys)
    assert "“app.py runs --help”" in _said(["runs", "--zonk"], capsys)


@pytest.mark.parametrize(("line", "end"), [("runs", (1, "")), ("train --preset nope --json", (2, "There is no preset “nope”."))])
def test_a_reader_that_left_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workspace: Workspace, line: str, end: tuple[int, str]
) -> None:
    code, told = end
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([*line.split(), "--workspace", str(workspace.root)]) == code
        assert told in capsys.readouterr().err
        stdout.flush()  # as Python does at its end; where that fails, the exit code is 120


def test_words_that_are_no_text_are_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "rename", "latest", "n\udcff"], ["chat", "--prompt", "n\udcff"]):
        assert "is no text in UTF-8" in _said([*words, "--workspace", str(workspace.root)], capsys)


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        (["runs", "delete", "one", "two"], "two would be ignored"),
        (["runs", "list", "one"], "one would be ignored"),
        (["serve", "--checkpoint", "checkpoint-5"], "A checkpoint belongs to a run."),
        (["chat", "--run", "latest", "--revision", "main"], "A version belongs to a model of the Hub."),
        (["estimate", "--preset", "demo", "--device", "0GB"], "There is no card “0GB”"),
    ],
)
def test_nothing_that_is_given_is_ignored(workspace: Workspace, capsys: pytest.CaptureFixture[str], words: list[str], ignored: str) -> None:
    assert ignored in _said([*words, "--workspace", str(workspace.root)], capsys)


def test_a_filter_that_finds_no_option_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No option has “zonk” in its path." in _said(["options", "zonk"], capsys)
    assert main(["options", "rank", "--json"]) == 0 and len(json.loads(capsys.readouterr().out)) == 2


def test_it_is_said_how_lists_are_given_and_they_are_taken_so(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "data.mapping"]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said[said.index("--data.sources '[") :].rstrip(".\n").replace("', --", "' --"))
    config = RunConfig().changed(
        {words[0][2:]: words[1], words[2][2:]: words[3], "data.format": "columns", "lora.targets": "q_proj,v_proj"}
    )
    assert [source.id for source in config.data.sources] == ["a.jsonl", "b.jsonl"]
    assert config.data.mapping == {"user": "q", "assistant": "a"} and config.lora.targets == ("q_proj", "v_proj")
    wrong = _said(["train", "--data.mapping", "user=question", "--workspace", str(workspace.root)], capsys)
    assert 'write {"user": "question", "assistant": "answer"}' in wrong


def test_the_help_says_how_a_setting_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--lora.rank 8" in capsys.readouterr().out


def test_whatever_ctrl_c_becomes_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(arguments: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ModuleNotFoundError("Could not import module 'GenerationMixin'.") from None
        return 0

    monkeypatch.setattr("qlora_ui.cli.options.run", importing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
    try:
        assert main(["options"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_exception_of_our_own_is_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ui.cli.options.run", lambda arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["options"])


def test_the_command_of_the_page_is_taken_by_the_command_line() -> None:
    config = RunConfig().changed({"output.notes": "-x", "output.name": "- a run", "eval.probes": "One?\nTwo, three?"})
    words = shlex.split(command_line(config))
    arguments = _parser("train").parse_args(words[2:])
    assert RunConfig().changed(given_settings(arguments)) == config


def test_a_word_that_the_talk_does_not_know_is_not_sent_to_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/help", "/retyr", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert _talk(None, Namespace(system=""), Sampling(), ("base",), ("base",)) == 0
    said = capsys.readouterr().err
    assert "There is no /help; there is /retry" in said and "There is no /retyr" in said
