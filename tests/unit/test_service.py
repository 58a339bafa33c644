"""What lives as long as the app: asked by many threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.data import parse
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui import service as module
from qlora_ui.ui.service import Service


def test_pages_are_drawn_while_the_engine_is_loaded_which_is_done_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, made = threading.Event(), threading.Event(), []

    def load(name: str) -> object:
        begun.set()
        assert may_end.wait(10)
        return lambda *given: made.append(name) or object()

    monkeypatch.setattr(module, "engine_object", load)
    service = Service(workspace)
    with ThreadPoolExecutor(3) as threads:
        lenses = [threads.submit(lambda: service.lens) for _ in range(2)]
        assert begun.wait(10)
        threads.submit(lambda: (service.gpus(), service.news(), service.models())).result(timeout=5)
        may_end.set()
        assert lenses[0].result() is lenses[1].result() is service.lens and made == ["lens:Lens"]


def test_two_pages_that_come_first_together_share_one_conversation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    # functools.cached_property has no lock any more from Python 3.12 on.
    def slowly(service: Service) -> object:
        time.sleep(0.05)
        return object()

    monkeypatch.setattr("qlora_ui.ui.chat_desk.ChatDesk", slowly)
    service = Service(workspace)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: service.desk, range(2))
    assert first is second


def test_an_end_that_comes_while_the_engine_is_loaded_leaves_no_chat_behind(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    service = Service(workspace)

    def load(name: str) -> object:
        service.shutdown(1)
        return lambda *given: made.append(name)

    monkeypatch.setattr(module, "engine_object", load)
    with pytest.raises(RunError, match="closing"):
        _ = service.chat
    assert not made and not service.has_chat


def test_rows_are_looked_at_without_reading_their_file_again(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, path = [], tmp_path / "rows.jsonl"
    hashed = parse._hash
    monkeypatch.setattr(parse, "_hash", lambda *given: read.append(given) or hashed(*given))
    path.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    service, data = Service(workspace), DataSection(sources=(DataSource(id=str(path)),))
    assert service.inspect(data).done.wait(20)
    assert [service.loaded(data).conversations[0].messages[1].content for _ in range(3)] == ["b"] * 3 and len(read) == 1
    path.write_text('{"prompt": "a", "completion": "another"}\n', encoding="utf-8")
    assert service.loaded(data).conversations[0].messages[1].content == "another" and len(read) == 2


def test_a_button_that_is_pressed_twice_begins_its_work_once(workspace: Workspace) -> None:
    # "Evaluate again" twice, before the page was drawn anew, said "Another evaluation is running".
    work, may_end, begun = Service(workspace).background("comparison"), threading.Event(), []

    def job(on_progress: object, is_cancelled: object) -> None:
        begun.append(1)
        may_end.wait(5)

    work.press("run", job, "how are you?")
    work.press("run", job, "how are you?")
    for key, asked in (("another run", "how are you?"), ("run", "who are you?")):
        with pytest.raises(QloraUiError, match="Another comparison is running"):
            work.press(key, job, asked)
    work.cancel()
    with pytest.raises(QloraUiError, match="Another"):  # the one that is being cancelled will not give what is asked for
        work.press("run", job, "how are you?")
    may_end.set()
    work.wait(5)
    work.press("run", job, "how are you?")
    work.wait(5)
    assert len(begun) == 2


def test_the_end_of_the_app_ends_an_evaluation_and_waits_for_it(workspace: Workspace) -> None:
    # The process was aborted ("terminate called without an active exception") where torch still computed at its end.
    service = Service(workspace)
    work, ended = service.background("evaluation"), threading.Event()

    def job(on_progress: object, is_cancelled: Callable[[], bool]) -> None:
        while not is_cancelled():
            time.sleep(0.001)
        time.sleep(0.05)
        ended.set()

    work.start("run", job)
    assert list(service.worked_on().values()) == ["evaluation"]
    service.shutdown(10)
    assert ended.is_set() and service.worked_on() == {}
    with pytest.raises(QloraUiError, match="closing"):
        work.start("run", job)
