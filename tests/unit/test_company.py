"""A run beside a chat: let in where the estimate fits what is free now, and nowhere else."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from model_files import model_files

from qlora_ui.base.units import GIB, MIB
from qlora_ui.data.report import DataReport
from qlora_ui.hardware import devices
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.runs import company
from qlora_ui.runs import thread as thread_module
from qlora_ui.runs.card import Holder
from qlora_ui.runs.company import fits_beside
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.service import Service

CHAT = Holder("chat", "SmolLM2", time.time(), True)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in model_files().items():
        (folder / name).write_bytes(content)
    return RunConfig().changed({"model.id": str(folder)})


def card(monkeypatch: pytest.MonkeyPatch, free_bytes: int, ours_bytes: int) -> None:
    """One card with so much free, of which this app holds a part already."""
    state = GpuState(0, "GPU-1", "NVIDIA X", 24 * GIB, 24 * GIB - free_bytes, ours_bytes, compute_capability=(8, 9))
    for module in (devices, company):
        monkeypatch.setattr(module, "read_gpus", lambda: [state])


def test_what_is_free_now_decides_and_not_what_the_app_could_free(
    workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, free_bytes=8 * GIB, ours_bytes=2 * GIB)
    assert fits_beside(workspace, config, CHAT)
    # The estimate alone would count the chat's 20 GiB as free.
    card(monkeypatch, free_bytes=300 * MIB, ours_bytes=20 * GIB)
    assert not fits_beside(workspace, config, CHAT)


def test_a_process_of_its_own_needs_a_context_more(workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for free in range(200 * MIB, 4 * GIB, 50 * MIB):
        card(monkeypatch, free_bytes=free, ours_bytes=GIB)
        if fits_beside(workspace, config, CHAT):
            break
    assert not fits_beside(workspace, config.changed({"launch.where": "process"}), CHAT)


@pytest.mark.parametrize("who", ["evaluation", "export", "training"])
def test_only_a_chat_is_company(who: str, workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, free_bytes=20 * GIB, ours_bytes=GIB)
    assert not fits_beside(workspace, config, Holder(who, "x", time.time(), True))


def test_an_unknown_model_waits(workspace: Workspace, config: RunConfig) -> None:
    assert not fits_beside(workspace, config.changed({"model.id": "some-owner/never-seen"}), CHAT)


def test_the_app_lets_a_run_in_beside_its_chat(workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, free_bytes=8 * GIB, ours_bytes=2 * GIB)
    launcher = Service(workspace).launcher
    assert launcher._fits_beside(config, CHAT)


def test_rows_count_as_long_as_they_are_where_they_were_counted(
    workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = workspace.datasets / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    # A packed row is filled up, however long its conversations are.
    large = {"data.max_length": 32_768, "train.batch_size": 64, "train.packing": "off"}
    config = config.changed({**large, "data.sources": [{"id": str(rows)}]})
    service = Service(workspace)
    tokens = {"usable": {"rows": 24, "mean": 100.0, "longest": 200, "trained_share": 0.5}}
    report = DataReport(num_rows=24, sources=(), findings=(), content_hash="", tokens=tokens)
    monkeypatch.setitem(service._made, "lens", SimpleNamespace(report=lambda *asked: report))
    service.allow_engine()
    card(monkeypatch, free_bytes=2 * GIB, ours_bytes=2 * GIB)
    assert not service.launcher._fits_beside(config, CHAT)
    pending = service.look(config)
    assert pending is not None and pending.done.wait(5)
    assert service.launcher._fits_beside(config, CHAT)
    rows.write_text('{"longer": 1}\n', encoding="utf-8")
    assert not service.launcher._fits_beside(config, CHAT)


def test_a_chat_that_nobody_talks_to_gives_way_to_a_run_and_says_so(
    workspace: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, free_bytes=300 * MIB, ours_bytes=20 * GIB)
    service = Service(workspace)
    monkeypatch.setitem(service._made, "chat", SimpleNamespace(loaded=lambda: "a model", unload=lambda: 0, close=lambda: None))
    monkeypatch.setattr(thread_module, "engine_object", lambda name: lambda path, *, turns: None)

    def let_go() -> None:
        chat.give_back()

    chat = service.card.hold("chat", "SmolLM2", release=let_go)
    service.desk.busy = "answering"
    run = service.launcher.start(config)
    assert not service.launcher.wait_until_idle(0.5) and service.launcher.queue() == [run]
    assert service.card.holder() == chat.holder and not service.desk.note
    service.desk.busy = ""
    assert service.launcher.wait_until_idle(10) and "to a training run" in service.desk.note
    service.shutdown(5)
