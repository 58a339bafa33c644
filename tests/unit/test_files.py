"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from qlora_ui.base import files
from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import move, put_in_place, room_for, take_back, write_text
from qlora_ui.base.trash import throw_away_file
from qlora_ui.ui.views.strip import disk_chip


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for content in ("old", "new"):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "file").write_text(content)
        put_in_place(staged, final)
        assert (final / "file").read_text() == content and [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("held", ["final", "staged"])
def test_a_folder_that_a_program_holds_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    replace = os.replace

    def on_windows(source: Path, target: Path) -> None:
        if Path(source).name == held:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        replace(source, target)

    for name in ("final", "staged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.setattr(os, "replace", on_windows)
    with pytest.raises(PermissionError):
        put_in_place(tmp_path / "staged", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final" and (tmp_path / "staged" / "file").exists()


def test_a_reader_of_a_moment_does_not_keep_a_file_from_being_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, refused = os.replace, [0]

    def on_windows(source: Path, target: Path) -> None:
        if refused[0]:
            refused[0] -= 1
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_windows)
    monkeypatch.setattr(files, "BUSY_S", 0.5)
    write_text(tmp_path / "about.json", "old")
    refused[0] = 3
    write_text(tmp_path / "about.json", "new")
    assert (tmp_path / "about.json").read_text() == "new"
    # A folder that stays open is not copied to the trash, and half of it removed, as `shutil.move` would do.
    (tmp_path / "run").mkdir()
    refused[0] = 1000
    with pytest.raises(PermissionError):
        move(tmp_path / "run", tmp_path / "trash")
    assert (tmp_path / "run").is_dir() and not (tmp_path / "trash").exists()


def test_room_is_kept_until_something_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with room_for(tmp_path / "result.json", 4096):
        assert [path.stat().st_size for path in tmp_path.iterdir()] == [4096]
    assert list(tmp_path.iterdir()) == []

    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"), room_for(tmp_path / "result.json", 4096):
        pytest.fail("there is no room")
    assert list(tmp_path.iterdir()) == []


def test_what_was_moved_aside_by_a_process_that_was_killed_is_back_and_a_replaced_one_is_not(tmp_path: Path) -> None:
    for name in (".old-lost", ".old-replaced", "replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    take_back(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost", "replaced"]
    assert [(tmp_path / name / "file").read_text() for name in ("lost", "replaced")] == [".old-lost", "replaced"]


@pytest.mark.parametrize("is_full", ["", "before", "meanwhile"])
def test_what_is_deleted_goes_whole_to_a_trash_on_another_disk_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: str
) -> None:
    run, trash = tmp_path / "runs" / "one", tmp_path / "trash"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "weights").write_bytes(bytes(1000))
    (run / "link").symlink_to(tmp_path)
    trash.mkdir()
    replace = os.replace

    def across(source: Path, target: Path) -> None:
        if Path(source).is_relative_to(trash) != Path(target).is_relative_to(trash):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    def full(source: str, target: str, **how: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", across)
    if is_full == "before":
        monkeypatch.setattr(files, "free_bytes", lambda folder: 999)
    if is_full == "meanwhile":
        monkeypatch.setattr(shutil, "copy2", full)
    if not is_full:
        held = [True]

        def hold(source: Path, target: Path) -> None:
            if Path(source) == run and Path(target).parent == run.parent and held.pop():
                # A kill here finds the run twice, and not nowhere.
                assert (trash / "one" / "checkpoints" / "weights").is_file()
                raise PermissionError(errno.EACCES, "A program holds it")
            across(source, target)

        monkeypatch.setattr(os, "replace", hold)
        with pytest.raises(PermissionError):
            move(run, trash / "one")
        assert (run / "checkpoints" / "weights").stat().st_size == 1000 and not list(trash.iterdir())
        monkeypatch.setattr(os, "replace", across)
        move(run, trash / "one")
        assert (trash / "one" / "checkpoints" / "weights").stat().st_size == 1000 and (trash / "one" / "link").is_symlink()
        assert not list(run.parent.iterdir()) and [path.name for path in trash.iterdir()] == ["one"]
        return
    with pytest.raises(QloraUiError, match="no room in the trash for one") as caught:
        move(run, trash / "one")
    assert "another disk" in caught.value.problems[0].why and "Empty the trash" in caught.value.problems[0].fix
    assert (run / "checkpoints" / "weights").stat().st_size == 1000 and not list(trash.iterdir())
    with pytest.raises(QloraUiError, match="no room in the trash"):
        throw_away_file(run / "checkpoints" / "weights", run, trash, kind="data", name="weights")
    assert not list(trash.iterdir())


def test_what_is_wrong_with_a_disk_is_known_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "workspace"
    assert files.disk_trouble(folder) == "gone"
    folder.mkdir()
    assert files.disk_trouble(folder) == ""
    for name, found, trouble in (("free_bytes", lambda path: 1000, "full"), ("os.access", lambda path, mode: False, "read-only")):
        with monkeypatch.context() as patch:
            patch.setattr(f"qlora_ui.base.files.{name}", found)
            assert files.disk_trouble(folder) == trouble
            chip = disk_chip(trouble, str(folder))
            assert trouble in chip and str(folder) in chip and disk_chip("", "") == ""
