"""Packed files of rows: unpacked where it is plain which file is meant, else refused with what to do."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from qlora_ui.base import children
from qlora_ui.base.errors import DataError
from qlora_ui.data import parse
from qlora_ui.data.unpack import unpack
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.new_data import keep_uploads, named_source

ROWS = b'{"prompt": "Hello", "completion": "Ahoy"}\n'


def zipped(how: int = zipfile.ZIP_DEFLATED, /, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def changed(content: bytes, place: int, sign: int) -> bytes:
    return content[:place] + bytes([sign]) + content[place + 1 :]


BZIP2 = zipped(zipfile.ZIP_BZIP2, **{"a.csv": b"x,y\n" * 500})
NAMELESS = zipped(**{"a.csv": b"x"})


def uploaded(workspace: Workspace, name: str, content: bytes) -> str:
    path = workspace.temp / name
    path.write_bytes(content)
    return str(path)


def test_what_is_packed_is_kept_under_its_own_name(workspace: Workspace) -> None:
    mac = {"a/../../b/chats.jsonl": ROWS, "__MACOSX/a/._chats.jsonl": b"x", "a/.hidden.csv": b"x", "a/read me.md": b"x"}
    files = [
        uploaded(workspace, "rows.csv.GZ", gzip.compress(b"Question,Answer\nHi,Ahoy\n")),
        uploaded(workspace, "all.zip", zipped(**mac)),
    ]
    kept, problems = keep_uploads(files, workspace)
    assert not problems and [Path(path).name for path in kept] == ["rows.csv", "chats.jsonl"]
    assert Path(kept[1]).read_bytes() == ROWS and Path(kept[1]).parent.parent == workspace.datasets
    assert {path.name for path in workspace.temp.iterdir()} == {"rows.csv.GZ", "all.zip"}


def test_an_archive_that_is_named_by_its_path_is_unpacked_as_an_upload_is(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(ROWS))
    kept = Path(named_source(str(tmp_path / "rows.jsonl.gz"), workspace))
    assert kept.name == "rows.jsonl" and kept.read_bytes() == ROWS and kept.parent.parent == workspace.datasets
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    assert named_source(str(tmp_path / "rows.jsonl"), workspace) == str((tmp_path / "rows.jsonl").resolve())


def test_a_file_that_cannot_be_meant_is_named_and_the_others_are_kept(workspace: Workspace) -> None:
    book = uploaded(workspace, "faq.xlsx", zipped(**{"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}))
    kept, (problem,) = keep_uploads([book, uploaded(workspace, "rows.jsonl", ROWS)], workspace)
    assert len(kept) == 1 and problem.what.startswith("faq.xlsx: This is a file of Excel") and "CSV" in problem.fix
    with pytest.raises(DataError, match=r"^faq\.xlsx: This"):
        keep_uploads([book], workspace)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("two.zip", zipped(**{"a.csv": b"x", "b.csv": b"y"}), "2 data files: a.csv, b.csv."),
        ("none.zip", zipped(**{"a.exe": b"x"}), "no data file"),
        ("cut.jsonl.gz", gzip.compress(ROWS * 999)[:60], "damaged or was cut off"),
        ("cut.zip", zipped(**{"a.csv": b"x" * 999})[:60], "damaged or was cut off"),
        ("broken bzip2.zip", changed(BZIP2, 60, BZIP2[60] ^ 255), "damaged or was cut off"),
        ("nameless.zip", changed(NAMELESS, NAMELESS.rindex(b"a.csv"), 0), "archive"),  # damaged, or from Python 3.12 on empty
        ("late.xlsx", zipped(**{"xl/sheet.xml": bytes(999), "[Content_Types].xml": b"x"}), "file of Excel"),
        ("table.ods", zipped(**{"mimetype": b"application/vnd.oasis", "content.xml": b"x"}), "file of Excel"),
        ("locked.zip", zipped(**{"a.csv": b"x"}).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"), "password"),
        ("bomb.gz", gzip.compress(bytes(2000)), "more than 1 KiB"),
        ("bomb.zip", zipped(**{"a.csv": bytes(2000)}), "more than 1 KiB"),
    ],
    # Archives hold the time, and pytest's workers must name a test alike.
    ids=("two", "none", "cut gz", "cut zip", "bzip2", "nameless", "xlsx", "ods", "locked", "bomb gz", "bomb zip"),
)
def test_what_cannot_be_unpacked_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        unpack({"path": str(tmp_path / name), "name": name, "folder": str(tmp_path), "most_bytes": 1000})
    assert says in str(refused.value) and refused.value.problems[0].fix


def test_the_confined_child_says_the_same_and_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "MOST_UNPACKED_BYTES", 1000)
    ended_with_the_app, child = [], children.child
    monkeypatch.setattr(children, "child", lambda *words, **named: ended_with_the_app.append(named["cwd"]) or child(*words, **named))
    bomb = uploaded(workspace, "bomb.jsonl.gz", gzip.compress(bytes(1_000_000)))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz: .*more than 1 KiB"):
        keep_uploads([bomb], workspace)
    assert [path.name for path in workspace.temp.iterdir()] == ["bomb.jsonl.gz"] and len(ended_with_the_app) == 1


def test_an_archive_in_an_archive_is_not_sent_back_to_be_uploaded_again(workspace: Workspace) -> None:
    with pytest.raises(DataError, match=r"twice\.gz: In the archive is another one.*Unpack it"):
        keep_uploads([uploaded(workspace, "twice.gz", gzip.compress(gzip.compress(ROWS)))], workspace)
