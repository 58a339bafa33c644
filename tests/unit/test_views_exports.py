"""What the Export tab says of a run's exports."""

from __future__ import annotations

import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_files import write_model

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.base.progress import Cancelled, never, silent, stop_if
from qlora_ui.catalog.exports import EXPORT_FORMS, EXPORT_NOTES, SCRIPTS
from qlora_ui.runs.kept_models import delete_export
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import ADAPTER_SIDECAR, RunDir
from qlora_ui.runs.under_way import export_mark, forget_ended, marked
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.background import Background, Progress
from qlora_ui.ui.chosen import run_to_take
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs import export as tab
from qlora_ui.ui.tabs.export import _cards, _draw, _make, _pack
from qlora_ui.ui.tabs.train import _head
from qlora_ui.ui.views.exports import EARLIER, Card, exports_html, packing_key, source_words
from tests.journals import run_with_checkpoint, write_run


def _drawn(run: RunDir) -> list[Card]:
    view: Any = SimpleNamespace(run=run, id=run.id, config=run.config())
    service: Any = None  # asked for plans only, which are all here
    return list(_cards(service, view, {(run.id, form.name): None for form in EXPORT_FORMS}))


@pytest.mark.parametrize("left", ['"x"', "[1]", "null", '{"adapter": 5}', '{"ada'])
def test_damaged_notes_of_exports_cost_their_words_only(left: str, workspace: Workspace) -> None:
    run = create_run(workspace, RunConfig())
    run.exports.mkdir()
    (run.exports / EXPORT_NOTES).write_text(left, encoding="utf-8")
    assert len(_drawn(run)) >= len(EXPORT_FORMS)


def test_a_base_that_is_gone_is_told_before_anything_is_pressed_and_forgotten_when_it_is_back(workspace: Workspace, tmp_path: Path) -> None:
    run = create_run(workspace, RunConfig().changed({"model.id": str(tmp_path / "base")}))
    view: Any = SimpleNamespace(run=run, id=run.id, config=run.config())
    service: Any = SimpleNamespace(workspace=workspace)
    plans: dict[tuple[str, str], Any] = {}
    told = {card.form: card.problem for card in _cards(service, view, plans)}
    assert {form for form, problem in told.items() if "is gone" in problem} == {form.name for form in EXPORT_FORMS} - {"adapter"}
    write_model(tmp_path / "base")
    assert not any(card.problem for card in _cards(service, view, plans))


def test_a_run_that_is_not_over_can_be_taken_away_and_says_what_of_it(workspace: Workspace) -> None:
    done, paused, live = (run_with_checkpoint(workspace, end=end) for end in ("done", "paused", "live"))
    service = Service(workspace)
    told = {}
    for run in (done, paused, live):
        view = run_to_take(service, run.id)
        assert view is not None and view.id == run.id
        told[run.id] = source_words(view)
    assert told[done.id] == "" and paused.adapter_sha256 == "abc"
    assert "no finished adapter" in told[paused.id] and "its last checkpoint" in told[paused.id]
    assert "The run is training" in told[live.id] and "when the run last ended" not in told[live.id]
    # Nobody chose: the newest that has a result.
    newest = run_to_take(service, "")
    assert newest is not None and newest.id == done.id
    assert all(f'value="{run.id}"' in _draw(service, "", Progress(), {}) for run in (done, paused, live))


def test_exports_are_made_beside_a_training_without_the_card_where_there_is_memory(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def export(run: RunDir, form: str, workspace: Workspace, **how: Any) -> Any:
        asked.append(how)
        return SimpleNamespace(path="made")

    needed = {"memory_bytes": 0}
    engine = {"exports.export:export_run": export, "exports.export:plan": lambda *run_and_form: SimpleNamespace(**needed)}
    monkeypatch.setattr(tab, "engine_object", engine.__getitem__)
    service, run = Service(workspace), write_run(workspace, end="done")
    assert "A training run" not in _draw(service, run.id, Progress(), {})
    with service.card.hold("training", "Pirate"):
        # Said before anything is pressed.
        assert "A training run has a model in memory (Pirate). What is made meanwhile slows it" in _draw(service, run.id, Progress(), {})
        # Not beside an export of our own, which nothing is made beside.
        assert "in memory" not in _draw(service, run.id, Progress(f"{run.id}|adapter", is_running=True), {})
        for form in ("adapter", "merged-original"):
            assert _make(service, run, form, silent, never) == "made"
            assert asked[-1]["on_cpu"] and asked[-1]["num_prompts"] == 0
            assert asked[-1]["why_unchecked"].startswith("a training run has a model in memory (Pirate); make it again")
        needed["memory_bytes"] = 1 << 60
        _make(service, run, "adapter", silent, never)
        with pytest.raises(RunError, match=r"A training run has a model in memory \(Pirate\)\. Beside it this takes"):
            _make(service, run, "merged-original", silent, never)
    _make(service, run, "merged-original", silent, never)
    assert len(asked) == 4 and "num_prompts" not in asked[3]


def test_an_export_of_an_earlier_adapter_says_so(workspace: Workspace) -> None:
    run = create_run(workspace, RunConfig())
    notes = {form: {"sign": "✓", "note": "20 of 20.", "adapter_sha256": mark} for form, mark in (("adapter", "a"), ("gguf-f16", ""))}
    for form in notes:
        (run.exports / form).mkdir(parents=True)
    write_json(run.exports / EXPORT_NOTES, notes | {"ollama": "a note of an earlier version"})
    for now, is_earlier in (("a", False), ("b", True)):
        write_json(run.adapter / ADAPTER_SIDECAR, {"adapter_sha256": now})
        cards = _drawn(run)
        assert {card.form for card in cards if card.is_earlier} == ({"adapter"} if is_earlier else set())
        page = exports_html(cards, run.id, Progress(), "", names={}, workspace="")
        assert (EARLIER in page) == is_earlier and "✓ 20 of 20." in page


def test_exports_that_ended_with_the_app_are_told_of_until_they_are_made(workspace: Workspace) -> None:
    service, run = Service(workspace), write_run(workspace, end="done")
    (run.exports / "gguf-f16").mkdir(parents=True)
    os.utime(run.exports / "gguf-f16", (1.0, 1.0))

    def pages() -> tuple[str, str]:
        return _draw(service, run.id, Progress(), {}), _head(service, service.view(run.id))

    for form, is_app_ending in (("adapter", False), ("gguf-f16", True), ("ollama", True)):
        # What fails or is cancelled says so itself.
        with pytest.raises(Cancelled), marked(export_mark(run, form), lambda: is_app_ending):  # noqa: B023
            assert not any("ended with the app" in page for page in pages())
            raise Cancelled
    with marked(export_mark(run, "script"), lambda: True):
        pass  # done before the app ended
    marks = list(run.exports.glob(".begun-*"))
    assert len(marks) == 2
    for mark in marks:
        found = read_json(mark)
        # As the next app finds it: whoever wrote it is gone.
        write_json(mark, {**found, "owner": {**found["owner"], "start": 1.0}})
    export, train = pages()
    for words in ("“Ollama” that was begun just now ended with the app before it was done. Nothing of it is kept", "make it again"):
        assert words in export and words in train
    assert "“GGUF, 16 bits” that was begun just now ended with the app before it was done. What lies there is the one from before" in export
    assert "ended with the app" not in _draw(service, run.id, Progress(f"{run.id}|ollama", is_running=True), {})
    kept = {mark: read_json(mark) for mark in marks}
    assert 'data-act="forget-ended"' in export
    forget_ended(run)
    assert not any("ended with the app" in page for page in pages())
    for mark, found in kept.items():
        write_json(mark, found)
    delete_export(workspace, run, "gguf-f16", [])
    (run.exports / "ollama").mkdir()
    assert not any("ended with the app" in page for page in pages())


def test_a_command_names_the_file_that_is_in_the_folder(workspace: Workspace, tmp_path: Path) -> None:
    run = create_run(workspace, RunConfig().changed({"model.id": str(tmp_path / "my base")}))
    commands = {card.form: card.command for card in _drawn(run)}
    assert commands.keys() == {form.name for form in EXPORT_FORMS} | SCRIPTS.keys()
    for form, file in (("gguf-q8_0", "q8_0"), ("gguf-f16", "f16"), ("gguf-lora", "lora-f16")):
        assert f'"my base-tuned-{file}.gguf"' in commands[form]


def test_the_upload_finds_its_run_from_any_terminal(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_UI_HOME", str(workspace.root))  # which another terminal has not
    assert Workspace.at().flag == f'--workspace "{workspace.root}"'
    page = exports_html([], "the-run", Progress(), "", names={}, workspace=workspace.flag)
    assert f"push --run the-run --to YOU/NAME --workspace &quot;{workspace.root}&quot;</code>" in page
    monkeypatch.setattr("qlora_ui.runs.workspace.user_data_path", lambda *names, **options: workspace.root)
    assert Workspace.at().flag == ""


def test_an_export_is_packed_whole_and_not_onto_a_disk_without_room(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(workspace, RunConfig())
    (run.exports / "adapter" / "inner").mkdir(parents=True)
    (run.exports / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 4)
    (run.exports / "adapter" / "inner" / "README.md").write_text("words " * 99)
    service: Any = SimpleNamespace(workspace=workspace, readers=SimpleNamespace(view=lambda run: SimpleNamespace(name="A run")))
    seen: list[float | None] = []
    packed = _pack(service, run, "adapter", lambda what, share: seen.append(share))
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None and archive.read("adapter_model.safetensors") == bytes(range(256)) * 4
        assert {entry.filename: entry.compress_type for entry in archive.infolist()} == {
            "adapter_model.safetensors": zipfile.ZIP_STORED,
            "inner/README.md": zipfile.ZIP_DEFLATED,
        }
    assert packed.name == "a-run-adapter.zip" and seen[-1] == 1.0
    # What was packed for an earlier press goes with the next one; a packing that is cancelled leaves what was there.
    old = packed.with_name("old.zip")
    old.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    with pytest.raises(Cancelled):
        _pack(service, run, "adapter", silent, lambda: True)
    assert sorted(path.name for path in packed.parent.iterdir()) == ["a-run-adapter.zip"]

    def delete(what: str, share: float | None) -> None:
        shutil.rmtree(run.exports / "adapter" / "inner", ignore_errors=True)

    with pytest.raises(RunError, match="deleted while it was packed"):
        _pack(service, run, "adapter", delete)
    (run.exports / "adapter" / "inner").mkdir()
    monkeypatch.setattr("qlora_ui.ui.packing.free_bytes", lambda path: 999)
    with pytest.raises(RunError, match="no room to pack") as caught:
        _pack(service, run, "adapter")
    assert str(run.exports / "adapter") in str(caught.value)


def test_who_waits_for_a_packing_gets_it_and_nobody_starts_a_second_one() -> None:
    work, may_end = Background("export"), threading.Event()
    answers: list[Any] = []

    def job(on_progress: Any, is_cancelled: Any) -> str:
        may_end.wait(5)
        stop_if(is_cancelled, "Packing")
        return "packed"

    waiting = threading.Thread(target=lambda: answers.append(work.finish(packing_key("r", "adapter"), job)))
    waiting.start()
    while not work.progress().is_running:
        time.sleep(0.01)
    html = exports_html([Card("adapter", "Adapter", "", "", path="/there")], "r", work.progress(), "", names={}, workspace="")
    assert "Packing: Adapter" in html and ">Download<" not in html
    with pytest.raises(QloraUiError, match="Another export is running"):
        work.finish(packing_key("r", "adapter"), job)
    may_end.set()
    waiting.join()
    assert answers == ["packed"]
    may_end.clear()
    waiting = threading.Thread(target=lambda: answers.append(work.finish(packing_key("r", "adapter"), job)))
    waiting.start()
    while not work.progress().is_running:
        time.sleep(0.01)
    work.cancel()
    may_end.set()
    waiting.join()
    assert answers[1] is None
