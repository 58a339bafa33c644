"""Uploads: the name that a file is kept under."""

from __future__ import annotations

import errno
import shutil
import unicodedata
from pathlib import Path

import pytest

from qlora_ui.base.files import MAX_STEM_BYTES
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.new_data import keep_pasted, keep_upload


def kept(workspace: Workspace, name: str, content: str = "a") -> Path:
    """Where an upload of that name lies; a folder for each, as the server has it."""
    folder = workspace.temp / str(len(list(workspace.temp.iterdir())))
    folder.mkdir()
    (folder / name).write_text(content)
    return Path(keep_upload(str(folder / name), workspace))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("диалоги.jsonl", "диалоги"),
        ("会話 2.jsonl", "会話-2"),
        ("हिन्दी.jsonl", "हिन्दी"),
        (unicodedata.normalize("NFD", "Gespräch.jsonl"), "Gespräch"),
        ("a\u202egpj.jsonl", "agpj"),
        ("a\u200b\x07b<c>'d.jsonl", "ab-c-d"),
        ("..hidden.jsonl", "hidden"),
        ("NUL.jsonl", "_NUL"),
        ("con.tar.jsonl", "_con.tar"),
        ("com¹.jsonl", "_com¹"),
        ("🎉.jsonl", "upload"),
    ],
)
def test_an_upload_keeps_its_name_in_every_script_and_nothing_that_harms(workspace: Workspace, name: str, stem: str) -> None:
    path = kept(workspace, name)
    assert path.name == f"{stem}.jsonl" and path.parent.parent == workspace.datasets and path.read_text() == "a"


def test_a_long_name_fits_the_file_system_and_ends_with_a_whole_letter(workspace: Workspace) -> None:
    stem = kept(workspace, "ы" * 120 + ".jsonl").stem
    assert set(stem) == {"ы"} and MAX_STEM_BYTES - 2 <= len(stem.encode()) <= MAX_STEM_BYTES


def test_two_contents_of_one_name_are_told_apart_and_one_content_is_kept_once(workspace: Workspace) -> None:
    first, second, again = (kept(workspace, "🎉.jsonl", content) for content in "aba")
    assert (first.name, second.name) == ("upload.jsonl", "upload-2.jsonl") and again == first
    assert kept(workspace, "🎉.jsonl", "b") == second
    pasted = [Path(keep_pasted(f'{{"prompt": "{word}", "completion": "b"}}', workspace)).name for word in "xyx"]
    assert pasted == ["pasted-rows.jsonl", "pasted-rows-2.jsonl", "pasted-rows.jsonl"]


ROWS = '{"question": "a", "answer": "b"}', '{"question": "c", "answer": "d"}'


@pytest.mark.parametrize(
    ("name", "reply", "kept_as", "rows"),
    [
        ("a.json", "Here it is:\n\n```json\n[\n{0},\n{1}\n]\n```\nAnything else?", "a.json", "\n\n\n[\n{0},\n{1}\n]\n\n"),
        ("a.txt", "```\n{0}\n```\nAnd more:\n```jsonl\n{1}", "a.jsonl", "\n{0}\n\n\n\n{1}\n"),
        ("a.txt", "json\nCopy code\n{0}\n{1}\nBye.", "a.jsonl", "\n\n{0}\n{1}\n"),
        ("a.md", "# A guide\n" + "Rows are written so: " * 9 + "\n```\n{0}\n```\n", "a.md", None),
        ("a.csv", "prompt,completion\n```\n{0}\n{1}\n```", "a.csv", None),
        ("a.json", "[{0}]\n```", "a.json", None),
    ],
)
def test_words_of_a_chat_around_rows_are_left_out_and_lines_keep_their_numbers(
    workspace: Workspace, name: str, reply: str, kept_as: str, rows: str | None
) -> None:
    reply = reply.replace("{0}", ROWS[0]).replace("{1}", ROWS[1])
    path = kept(workspace, name, reply)
    assert path.name == kept_as and path.read_text() == (reply if rows is None else rows.replace("{0}", ROWS[0]).replace("{1}", ROWS[1]))
    if rows is not None:
        assert Path(keep_pasted(reply, workspace)).read_text() == path.read_text()


def test_pasted_questions_and_answers_are_a_text(workspace: Workspace) -> None:
    assert Path(keep_pasted("Question: Why?\nAnswer: So.", workspace)).suffix == ".txt"


def test_half_an_emoji_at_the_end_of_a_pasted_text_does_no_harm(workspace: Workspace) -> None:
    path = Path(keep_pasted('{"prompt": "a 😀", "completion": "b \ud83d x"}', workspace))
    assert path.read_text(encoding="utf-8") == '{"prompt": "a 😀", "completion": "b � x"}\n'


def test_a_copy_that_was_broken_off_is_not_taken_for_the_upload(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_the_disk(source: Path, target: Path) -> None:
        Path(target).write_text("row 1\n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copyfile", fills_the_disk)
        with pytest.raises(OSError, match="No space"):
            kept(workspace, "rows.jsonl", "row 1\nrow 2\n")
    assert not [path for path in workspace.datasets.rglob("*") if path.is_file()]
    assert kept(workspace, "rows.jsonl", "row 1\nrow 2\n").read_text() == "row 1\nrow 2\n"
