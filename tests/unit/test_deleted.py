"""The trash: what is listed, that everything comes back as it was, and that nothing is replaced by that."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_ui.base import trash as trash_module
from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.cli import main
from qlora_ui.runs.deleted import deleted, empty_trash, put_back, trash_size
from qlora_ui.runs.kept_data import delete_kept
from qlora_ui.runs.kept_models import delete_export, delete_model
from qlora_ui.runs.listing import RunList
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import delete_checkpoints, delete_run, list_runs
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import delete_preset, save_preset
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.chat_record import Answer
from qlora_ui.ui.new_data import keep_pasted
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.trash import IS_BACK, KINDS, SHOWN, trash_html
from tests.journals import run_with_checkpoint, write_run

KINDS_OF_ALL = ["run", "checkpoints", "export", "model", "data", "preset"]


def tree(workspace: Workspace) -> dict[str, bytes]:
    """Every file of the user's in the workspace, but for what tells lists to look again."""
    folders = (workspace.runs, workspace.models, workspace.datasets, workspace.presets)
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "about.json")
    return {str(path.relative_to(workspace.root)): path.read_bytes() for path in files if not path.name.endswith(".lock")}


def one_of_each(workspace: Workspace) -> dict[str, Callable[[], object]]:
    """Something of each kind, by kind what deletes it."""
    whole, parts = write_run(workspace, num_steps=4), run_with_checkpoint(workspace, num_steps=4)
    whole.write_about(name="Pirate")
    parts.write_about(name="Parts")
    (parts.exports / "gguf-q8_0").mkdir(parents=True)
    (parts.exports / "gguf-q8_0" / "model.gguf").write_bytes(b"weights")
    write_json(parts.exports / "exports.json", {"gguf-q8_0": {"sign": "≈", "note": "near"}})
    (workspace.models / "mine").mkdir()
    (workspace.models / "mine" / "config.json").write_text("{}")
    rows = keep_pasted('{"prompt": "a", "completion": "b"}', workspace)
    save_preset("my-look", "My Look", RunConfig(), workspace.presets)
    return {
        "run": lambda: delete_run(workspace, whole),
        "checkpoints": lambda: delete_checkpoints(workspace, parts),
        "export": lambda: delete_export(workspace, parts, "gguf-q8_0", []),
        "model": lambda: delete_model(workspace, str(workspace.models / "mine"), []),
        "data": lambda: delete_kept(workspace, rows, []),
        "preset": lambda: delete_preset("my-look", workspace.presets, workspace.trash),
    }


@pytest.mark.parametrize("has_notes", [True, False], ids=["noted", "of an earlier version"])
def test_a_run_that_has_lost_its_settings_comes_back(workspace: Workspace, has_notes: bool) -> None:
    run = write_run(workspace, num_steps=4)
    run.config_path.unlink()
    folder = delete_run(workspace, run).name
    if not has_notes:
        for note in workspace.trash.glob(".*.json"):
            note.unlink()
    assert put_back(workspace, folder).run_id == run.id and run.journal_path.is_file()


@pytest.mark.parametrize("has_notes", [True, False], ids=["noted", "of an earlier version"])
def test_everything_that_is_deleted_is_listed_and_comes_back_as_it_was(workspace: Workspace, has_notes: bool) -> None:
    deletes, before = one_of_each(workspace), tree(workspace)
    for delete in deletes.values():
        delete()
    if not has_notes:
        for note in workspace.trash.glob(".*.json"):
            note.unlink()
    lies = deleted(workspace)
    assert sorted(one.kind for one in lies) == sorted(KINDS_OF_ALL) and set(IS_BACK) == set(KINDS) - {"other"} == {
        *KINDS_OF_ALL,
        "conversation",
    }
    names = {one.kind: one.name for one in lies}
    assert names["run"] == "Pirate" and "Parts" in names["checkpoints"] and "Parts" in names["export"]
    if has_notes:
        assert names["preset"] == "My Look" and names["export"] == "GGUF, 8 bits, of Parts"
        assert [one.kind for one in lies] == KINDS_OF_ALL[::-1], "the last deleted first"
    page = trash_html(lies, str(workspace.trash))
    assert page.count(">Put it back<") == 6 and "6 deleted items" in page and str(workspace.trash) not in page
    for one in lies:
        put_back(workspace, one.folder)
    after = tree(workspace)
    if not has_notes:  # all but what the page says of an export, and the folder that a data file was in
        before, after = (
            {Path(name).name if "datasets" in name else name: text for name, text in one.items() if not name.endswith("exports.json")}
            for one in (before, after)
        )
    assert after == before and not deleted(workspace) and not list(workspace.trash.iterdir())


@pytest.mark.parametrize("kind", KINDS_OF_ALL)
def test_what_has_come_to_its_place_is_not_replaced(workspace: Workspace, kind: str) -> None:
    one_of_each(workspace)[kind]()
    (found,) = deleted(workspace)
    place = workspace.root / found.place
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("data", "preset"):
        place.write_text("newer")
    else:
        place.mkdir()
        (place / "newer").write_text("newer")
    lies, before = trash_size(workspace), tree(workspace)
    with pytest.raises(RunError, match=r"There is a run|cannot be put back") as caught:
        put_back(workspace, found.folder)
    assert "replaces nothing" in caught.value.problems[0].fix
    assert tree(workspace) == before and trash_size(workspace) == lies and deleted(workspace) == (found,)


@pytest.mark.parametrize("kind", ["data", "model"])
def test_what_comes_to_its_place_in_that_very_moment_is_not_replaced(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    one_of_each(workspace)[kind]()
    (found,) = deleted(workspace)
    place, real = workspace.root / found.place, os.path.lexists

    def late(path: Path) -> bool:
        was_there = real(path)
        if Path(path) == place and not was_there:
            place.mkdir()
            (place / "newer").write_text("newer")
        return was_there

    if kind == "data":
        monkeypatch.setattr(
            trash_module, "_put", lambda source, target, put=trash_module._put: (target.write_text("newer"), put(source, target))
        )
    else:
        monkeypatch.setattr(os.path, "lexists", late)
    with pytest.raises(RunError, match="cannot be put back"):
        put_back(workspace, found.folder)
    newer = place / "newer" if kind == "model" else place
    assert newer.read_text() == "newer" and deleted(workspace) == (found,)


def test_two_who_put_the_same_back_at_once_do_it_once(workspace: Workspace) -> None:
    for kind, delete in one_of_each(workspace).items():
        delete()
        (found,) = deleted(workspace)
        said: list[str] = []
        barrier = threading.Barrier(4)

        def press(folder: str, said: list[str], barrier: threading.Barrier) -> None:
            barrier.wait()
            try:
                put_back(workspace, folder)
                said.append("done")
            except RunError as error:
                said.append(error.problems[0].code)

        pages = [threading.Thread(target=press, args=(found.folder, said, barrier)) for _ in range(4)]
        for page in pages:
            page.start()
        for page in pages:
            page.join()
        assert said.count("done") == 1 and set(said) <= {"done", "trash-missing", "run-there", "trash-taken"}, (kind, said)
        assert not deleted(workspace) and os.path.lexists(workspace.root / found.place)


def test_parts_of_a_run_wait_for_it_and_for_its_job(workspace: Workspace) -> None:
    deletes = one_of_each(workspace)
    deletes["checkpoints"]()
    (found,) = deleted(workspace)
    run = RunDir(workspace.runs / found.run_id)
    of_run = delete_run(workspace, run).name
    with pytest.raises(RunError, match="cannot be put back") as caught:
        put_back(workspace, found.folder)
    assert caught.value.problems[0].fix == "Put the run back first" and not run.path.exists()
    put_back(workspace, of_run)
    run.journal_path.write_text(run.journal_path.read_text().rsplit("\n", 2)[0] + "\n")
    run.claim()
    with pytest.raises(RunError, match="still running"):
        put_back(workspace, found.folder)
    run.release()
    put_back(workspace, found.folder)
    assert run.saved_steps() == [114]


def test_a_note_that_somebody_has_written_leads_nowhere_else(workspace: Workspace, tmp_path: Path) -> None:
    for place in ("../outside", "runs/../../outside", str(tmp_path / "outside"), "cache/x", "", "runs", "runs/a/b"):
        entry = workspace.trash / "strange-0a1b"
        entry.mkdir(exist_ok=True)
        write_json(workspace.trash / ".strange-0a1b.json", {"kind": "run", "name": "x", "place": place, "at": 1.0, "kept": {}})
        deleted.__globals__["_deleted"].cache_clear()
        (found,) = deleted(workspace)
        assert (found.kind, found.place) == ("other", "")
        with pytest.raises(RunError, match="does not know where"):
            put_back(workspace, found.folder)
    page = trash_html(deleted(workspace), str(workspace.trash))
    assert f"{workspace.trash}/strange-0a1b" in page and "Put it back" not in page
    with pytest.raises(RunError, match="not in the trash any more"):
        put_back(workspace, "../runs")


def test_a_full_disk_keeps_nothing_from_being_deleted_and_put_back(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    deletes, before = one_of_each(workspace), tree(workspace)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(trash_module, "write_json", full)
        deletes["run"]()
        deletes["preset"]()
    assert sorted(one.kind for one in deleted(workspace)) == ["preset", "run"]
    for one in deleted(workspace):
        put_back(workspace, one.folder)
    assert tree(workspace) == before


def test_what_was_deleted_to_another_disk_comes_back_whole_or_stays(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    deletes, before = one_of_each(workspace), tree(workspace)
    replace, link = os.replace, os.link

    def across(source: Path, target: Path, move: Callable[..., None] = replace, **how: bool) -> None:
        if Path(source).is_relative_to(workspace.trash) != Path(target).is_relative_to(workspace.trash):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        move(source, target, **how)

    monkeypatch.setattr(os, "replace", across)
    monkeypatch.setattr(os, "link", lambda source, target, **how: across(source, target, link, **how))
    deletes["run"]()
    deletes["data"]()
    with monkeypatch.context() as patch:
        patch.setattr("qlora_ui.base.files.free_bytes", lambda folder: 0)
        for one in deleted(workspace):
            with pytest.raises(QloraUiError, match="There is no room where it was"):
                put_back(workspace, one.folder)
    assert len(deleted(workspace)) == 2
    for one in deleted(workspace):
        put_back(workspace, one.folder)
    assert tree(workspace) == before and not list(workspace.trash.iterdir())


def test_the_trash_is_emptied_notes_and_all_and_what_a_link_leads_to_stays(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trash_size(workspace) == (0, 0) and not trash_html((), "")
    kept, linked = tmp_path / "elsewhere", write_run(workspace, num_steps=4)
    os.rename(linked.path, kept)
    os.symlink(kept, linked.path, target_is_directory=True)
    for run in (write_run(workspace, num_steps=4), linked):
        (run.path / "weights").write_bytes(bytes(5_000_000))
        delete_run(workspace, run)
    number, size = trash_size(workspace)
    assert number == 2 and 5_000_000 < size < 6_000_000
    assert "2 deleted items, 5 MiB" in trash_html(deleted(workspace), "")
    back = next(one for one in deleted(workspace) if one.is_run(linked.id))
    put_back(workspace, back.folder)
    assert linked.path.is_symlink() and read_run(linked).status is Status.DONE
    delete_run(workspace, linked)
    assert main(["runs", "empty-trash", "--workspace", str(workspace.root)]) == 0
    assert "5 MiB are free again" in capsys.readouterr().out
    assert list(workspace.trash.iterdir()) == [] and trash_size(workspace) == (0, 0) and (kept / "weights").is_file()
    assert empty_trash(workspace) == (0, 0)


def test_the_command_lists_the_trash_and_puts_back_by_name(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for delete in one_of_each(workspace).values():
        delete()
    words = ["--workspace", str(workspace.root)]
    (run,) = [one for one in deleted(workspace) if one.kind == "run"]
    main(["runs", "trash", *words])
    said = capsys.readouterr().out
    assert all(one.folder in said and one.name in said for one in deleted(workspace))
    main(["runs", "trash", "--json", *words])
    assert [one["kind"] for one in json.loads(capsys.readouterr().out)] == KINDS_OF_ALL[::-1]
    assert main(["runs", "put-back", *words]) == 0
    assert capsys.readouterr().out == "“My Look” is in presets/my-look.yaml again.\n"
    assert main(["runs", "put-back", run.run_id, *words]) == 0 and f"“Pirate” is in runs/{run.run_id} again" in capsys.readouterr().out
    assert run.run_id in [one.id for one in list_runs(workspace)] and run.run_id in [row.id for row in RunList(workspace).rows()]
    export = next(one for one in deleted(workspace) if one.kind == "export")
    assert main(["runs", "put-back", export.folder, *words]) == 0
    assert read_json(workspace.root / Path(export.place).parent / "exports.json") == {"gguf-q8_0": {"sign": "≈", "note": "near"}}
    assert main(["runs", "put-back", "nothing", *words]) != 0 and "not in the trash any more" in capsys.readouterr().err


def test_a_long_trash_is_folded_and_names_are_no_markup(workspace: Workspace) -> None:
    for number in range(SHOWN + 2):
        run = write_run(workspace, num_steps=2)
        run.write_about(name=f"<b>{number}</b>")
        delete_run(workspace, run)
    page = trash_html(deleted(workspace), "")
    assert "2 more" in page and "<b>" not in page


def test_a_conversation_that_was_cleared_goes_on_as_it_was(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    desk = Service(workspace).desk
    desk.set_up(system="Be brief.")
    for question in ("How do I\nboil an egg?", "And two?"):
        desk.record.ask(question)
        desk.record.history.add("base", f"{question} In water.")
    desk.record.notes[1].answers["base"] = Answer(is_kept=True)
    before = desk.record.said()
    desk.clear()
    assert not desk.record.history.turns and not list(workspace.temp.glob("conversation*"))
    (found,) = deleted(workspace)
    assert (found.kind, found.name) == ("conversation", "How do I boil an egg? (2 questions)")
    assert "Conversation · deleted just now" in trash_html((found,), "") and "Put it back" in trash_html((found,), "")
    # Another process would write what the open app writes over at its next answer.
    assert main(["runs", "put-back", "--workspace", str(workspace.root)]) != 0
    assert "put back on the page only" in capsys.readouterr().err
    desk.record.ask("Another")
    with pytest.raises(QloraUiError, match="There is a conversation on the Chat tab"):
        desk.put_back(workspace.trash / found.folder)
    desk.undo()
    desk.put_back(workspace.trash / found.folder)
    assert desk.record.said() == before == Service(workspace).desk.record.said() and not list(workspace.trash.iterdir())
    with pytest.raises(QloraUiError, match="not in the trash any more"):
        desk.put_back(workspace.trash / found.folder)


def test_no_question_that_somebody_typed_is_lost_and_rows_do_not_fill_the_trash(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Service(workspace).desk
    monkeypatch.setattr(desk, "_work", lambda: None)
    desk.record.ask("What is thunder?", reference="Arrr")
    desk.clear()
    assert not deleted(workspace)
    for question in ("One", "Two", "Three"):
        desk.record.ask(question)
    desk.edit(1, "Two and a half")
    (found,) = deleted(workspace)
    assert (
        "(3 questions)" in found.name
        and "in the trash" in desk.note
        and [turn.question for turn in desk.record.history.turns][1:] == ["Two and a half"]
    )


def test_a_name_as_long_as_the_system_takes_is_deleted_and_put_back(workspace: Workspace) -> None:
    long, old = workspace.models / ("m" * 250), workspace.trash / ("o" * 250)
    for folder in (long, old):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    delete_model(workspace, str(long), [])
    by_name = {one.name: one for one in deleted(workspace)}
    put_back(workspace, by_name[long.name].folder)
    assert (long / "config.json").is_file()
    # By an earlier version, whose names leave no room for a note.
    put_back(workspace, old.name)
    assert (workspace.models / old.name).is_dir() and not list(workspace.trash.iterdir())
