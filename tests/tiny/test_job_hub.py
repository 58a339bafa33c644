"""A run whose model must be downloaded, and a Hub that refuses in every way: a message, nothing lost, and the next press trains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import again, tiny_config, train, write_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from hub_stub import HubStub, serve
from stub_server import take_for_the_hub

from qlora_ui.runs.events import Failed
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

MODEL = "some-owner/tiny"
REFUSALS = {401: "hub-401", 403: "hub-403", 404: "hub-404", 429: "hub-429", 500: "hub-error"}


@pytest.fixture
def hub(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    stub = HubStub()
    stub.repos[MODEL] = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir() if path.is_file()}
    with serve(stub) as address:
        take_for_the_hub(address, tmp_path / "hub", monkeypatch)
        yield stub


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rows = write_rows(tmp_path / "rows.jsonl")
    return tiny_config(Path(MODEL), rows, train__max_steps=2, eval__share=0)


def test_each_answer_is_told_in_its_words_and_the_next_start_trains(hub: HubStub, config: RunConfig, workspace: Workspace) -> None:
    said = {}
    for status, code in REFUSALS.items():
        hub.status = status
        view = train(workspace, config)
        failed = view.ended
        assert isinstance(failed, Failed) and failed.code == code, (status, failed)
        assert failed.what and failed.fix and not failed.traceback
        said[code] = failed.what + failed.why
        assert not view.run.has_owner()
    assert len(set(said.values())) == len(REFUSALS)
    hub.status = 0
    view = again(view.run)
    assert view.status is Status.DONE and view.step == 2


def test_a_connection_that_breaks_halfway(hub: HubStub, config: RunConfig, workspace: Workspace) -> None:
    size = len(hub.repos[MODEL]["model.safetensors"])
    hub.cut_at["model.safetensors"] = size // 2
    # The server closes at once instead of holding the line.
    hub.release.set()
    view = train(workspace, config)
    failed = view.ended
    assert isinstance(failed, Failed) and failed.code.startswith("hub-"), failed
    assert failed.what and failed.fix and not failed.traceback
    hub.cut_at.clear()
    view = again(view.run)
    assert view.status is Status.DONE and view.step == 2


def test_no_network_at_all(hub: HubStub, config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        view = train(workspace, config)
    assert isinstance(view.ended, Failed) and view.ended.code == "hub-offline" and view.ended.fix
    assert again(view.run).status is Status.DONE
