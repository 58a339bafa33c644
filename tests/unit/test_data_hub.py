"""Datasets of the Hub through a stub: search, subsets and splits, first rows, download, and a message for every refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_hub_stub import COMMIT, DatasetHub, serve
from stub_server import take_for_the_hub

from qlora_ui.base.errors import DataError
from qlora_ui.base.progress import Cancelled
from qlora_ui.data.hub import ROOM_BYTES, download, first_rows, search, splits_of
from qlora_ui.data.load import load_conversations
from qlora_ui.data.sources import hub_id
from qlora_ui.models.hub_cache import DATASETS, download_mark
from qlora_ui.runs.kept_data import delete_downloaded, downloaded
from qlora_ui.runs.listing import RunList
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.storage import measure
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.views.data_report import kept_html

REPO = "some-owner/chats"


def lines(start: int, stop: int) -> bytes:
    rows = [
        {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
        for n in range(start, stop)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    stub = DatasetHub()
    stub.repos[REPO] = {
        "README.md": b"# Chats", "data/train-00000-of-00002.jsonl": lines(0, 20), "data/train-00001-of-00002.jsonl": lines(20, 30),
        "data/test.jsonl": lines(30, 35), "load.py": b"import os", "dataset_infos.json": b"{}",
    }  # fmt: skip
    with serve(stub) as address:
        take_for_the_hub(address, tmp_path / "hub cache", monkeypatch)
        monkeypatch.setenv("HF_DATASETS_SERVER", address)
        yield stub


def test_search(hub: DatasetHub) -> None:
    assert [(found.id, found.downloads, found.licence) for found in search("chats")] == [(REPO, 5, "mit")]


def test_splits_by_names_of_files(hub: DatasetHub, workspace: Workspace) -> None:
    splits = splits_of(REPO, workspace)
    assert splits.commit == COMMIT and set(splits.subsets["default"]) == {"train", "test"}
    assert splits.files(None, "train") == ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    assert splits.num_bytes(None, "test") == len(hub.repos[REPO]["data/test.jsonl"])


def test_splits_as_the_card_declares_them(hub: DatasetHub, workspace: Workspace) -> None:
    hub.cards[REPO] = {
        "configs": [
            {"config_name": "short", "data_files": [{"split": "train", "path": "data/test*.jsonl"}]},
            {"config_name": "outside", "data_files": "../secret.txt"},
            {"config_name": "all", "data_files": "data/*.jsonl"},
        ]
    }
    splits = splits_of(REPO, workspace)
    assert set(splits.subsets) == {"short", "all"}
    assert splits.files("short", "train") == ("data/test.jsonl",)


def test_a_dataset_made_by_a_program_is_read_from_the_parquet_copy(hub: DatasetHub, workspace: Workspace) -> None:
    hub.repos[REPO] = {"load.py": b"import os"}
    with pytest.raises(DataError) as refused:
        splits_of(REPO, workspace)
    assert refused.value.code == "hub-404"
    hub.converted[REPO] = {"en/train/0000.parquet": b"PAR1", "en/partial-test/0000.parquet": b"PAR1"}
    assert splits_of(REPO, workspace).subsets == {"en": {"train": ("en/train/0000.parquet",), "test": ("en/partial-test/0000.parquet",)}}


def test_a_split_becomes_conversations_and_stays_without_a_network(hub: DatasetHub, workspace: Workspace) -> None:
    data = DataSection(sources=(DataSource(id=f"hub:{REPO}", rows="first 25"),))
    loaded = load_conversations(data, workspace)
    assert len(loaded.conversations) == 25
    assert loaded.conversations[24].messages[1].content == "Answer 24."
    hub.status = 500
    with pytest.raises(DataError):
        load_conversations(DataSection(sources=("hub:other/one",)), workspace)


def test_offline_the_remembered_listing_is_used(hub: DatasetHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = download(REPO, None, "test", workspace)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download(REPO, None, "test", workspace) == paths
    with pytest.raises(DataError) as refused:
        splits_of("never/seen", workspace)
    assert refused.value.code == "hub-offline"


def test_first_rows_come_without_a_download(hub: DatasetHub, workspace: Workspace) -> None:
    hub.repos[REPO]["data/train-00000-of-00002.jsonl"] = lines(0, 20_000)
    rows = first_rows(REPO, None, "train", workspace, 3)
    assert [row["messages"][0]["content"] for row in rows] == ["Question 0?", "Question 1?", "Question 2?"]
    assert hub.asked[-1].endswith("bytes=0-524287")
    hub.repos[REPO] = {"train.parquet": b"PAR1"}
    hub.first_rows = [{"text": "a"}, {"text": "b"}]
    assert first_rows(REPO, None, "train", workspace) == hub.first_rows


def test_cancel_stops_a_download(hub: DatasetHub, workspace: Workspace) -> None:
    with pytest.raises(Cancelled):
        download(REPO, None, "train", workspace, is_cancelled=lambda: True)


@pytest.mark.parametrize(
    ("status", "code", "words"), [(401, "hub-401", "strangers"), (403, "hub-403", "may not"), (429, "hub-429", "slow down")]
)
def test_each_refusal_has_its_words(hub: DatasetHub, workspace: Workspace, status: int, code: str, words: str) -> None:
    hub.status = status
    with pytest.raises(DataError) as refused:
        splits_of(REPO, workspace)
    problem = refused.value.problems[0]
    assert problem.code == code and words in problem.what and problem.where == "data.sources"
    assert "model" not in problem.what


def test_missing_names_list_what_there_is(hub: DatasetHub, workspace: Workspace) -> None:
    splits = splits_of(REPO, workspace)
    with pytest.raises(DataError, match="train"):
        splits.files(None, "validation")
    with pytest.raises(DataError, match="default"):
        splits.files("german", "train")
    with pytest.raises(DataError) as missing:
        splits_of("some-owner/absent", workspace)
    assert missing.value.code == "hub-404"


def test_what_is_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("hub:a/b") == "a/b" and hub_id("a/b") == "a/b"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x", encoding="utf-8")
    assert hub_id("a/b") is None and hub_id("/a/b.jsonl") is None and hub_id("rows.jsonl") is None


def test_a_refused_preview_has_its_words_too(hub: DatasetHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = splits_of(REPO, workspace)
    monkeypatch.setattr("qlora_ui.data.hub.splits_of", lambda repo, workspace: splits)
    hub.status = 429
    with pytest.raises(DataError, match="slow down") as refused:
        first_rows(REPO, None, "train", workspace)
    assert refused.value.code == "hub-429"


def test_room_is_asked_for_what_is_missing_and_not_for_what_is_here(
    hub: DatasetHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = splits_of(REPO, workspace).files(None, "train")
    num_bytes = {name: len(hub.repos[REPO][name]) for name in (first, second)}
    monkeypatch.setattr("qlora_ui.data.hub.free_bytes", lambda folder: ROOM_BYTES + num_bytes[first])
    with pytest.raises(DataError, match="not enough space") as caught:
        download(REPO, None, "train", workspace)
    assert "256 MiB stay free" in caught.value.problems[0].why
    monkeypatch.setattr("qlora_ui.data.hub.free_bytes", lambda folder: 1 << 40)
    paths = download(REPO, None, "train", workspace)
    monkeypatch.setattr("qlora_ui.data.hub.free_bytes", lambda folder: 0)
    assert download(REPO, None, "train", workspace) == paths
    paths[1].unlink()
    monkeypatch.setattr("qlora_ui.data.hub.free_bytes", lambda folder: ROOM_BYTES + num_bytes[second])
    assert download(REPO, None, "train", workspace) == paths


def test_what_the_app_downloaded_is_counted_and_can_be_deleted_but_not_what_others_did(hub: DatasetHub, workspace: Workspace) -> None:
    paths = download(REPO, None, "test", workspace)
    mark = download_mark(REPO, DATASETS)
    mark.unlink()
    # As another program left it: asked for again it is found and stays that program's.
    assert download(REPO, None, "test", workspace) == paths and not downloaded()
    download(REPO, None, "train", workspace)
    (kept,) = downloaded()
    rows = sum(len(data) for name, data in hub.repos[REPO].items() if name.endswith(".jsonl"))
    assert kept.id == f"hub:{REPO}" and 0 <= kept.num_bytes - rows < 5000 and measure(workspace).hub_data_bytes == kept.num_bytes
    page = kept_html([kept], [])
    assert "from the Hub" in page and "does not go to the trash" in page and "use-kept" not in page
    run = create_run(workspace, RunConfig().changed({"data.sources": [{"id": REPO, "split": "train"}], "output.name": "mine"}))
    row = replace(RunList(workspace).rows()[0], status=Status.RUNNING)
    assert row.id == run.id
    with pytest.raises(DataError, match="needed by the run mine"):
        delete_downloaded(workspace, kept.id, [row])
    # One that waits brings it again.
    delete_downloaded(workspace, kept.id, RunList(workspace).rows())
    assert not downloaded() and not kept.path.exists()
    with pytest.raises(DataError, match="not kept here any more"):
        delete_downloaded(workspace, kept.id, [])
    assert len(download(REPO, None, "train", workspace)) == 2
