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
