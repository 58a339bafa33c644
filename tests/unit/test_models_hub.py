"""The Hub through a stub: search, sizes, download with cancel and resume, and a message of its own for every refusal."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stub import COMMIT, HubStub, serve
from model_files import model_files, safetensors_bytes
from stub_server import take_for_the_hub

from qlora_ui.base.errors import ModelError
from qlora_ui.base.progress import Cancelled
from qlora_ui.models import hub_download
from qlora_ui.models.catalogue import model_facts, needs_download
from qlora_ui.models.hub import describe, in_words, search
from qlora_ui.models.hub_cache import (
    cache_folder,
    cached_models,
    cached_snapshot,
    download_lock,
    held_bytes,
    is_brought,
    repository_folder,
    stored_bytes,
)
from qlora_ui.models.hub_download import download
from qlora_ui.runs.workspace import Workspace

MODEL = "some-owner/small-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    stub = HubStub()
    stub.repos[MODEL] = model_files() | {"consolidated.safetensors": b"x" * 999, "original/params.json": b"{}", "pytorch_model.bin": b"x"}
    with serve(stub) as address:
        take_for_the_hub(address, tmp_path / "hub cache", monkeypatch)
        yield stub


def test_search_lists_what_can_be_trained(hub: HubStub) -> None:
    hub.repos["other/banana"] = model_files(model_type="banana")
    found = search("small")
    assert [(model.id, model.licence, model.downloads) for model in found] == [(MODEL, "mit", 7)]


def test_sizes_and_shape_without_a_download(hub: HubStub, tmp_path: Path) -> None:
    details = describe(MODEL)
    assert details.commit == COMMIT and details.facts.hidden_size == 16
    assert {file.name for file in details.files} == set(model_files())
    assert details.size_bytes == sum(map(len, model_files().values()))
    assert stored_bytes(MODEL) == len(hub.repos[MODEL]["config.json"])


@pytest.mark.parametrize("config", [b"<html>", b"[]", b"[" * 100_000])
def test_a_config_that_is_none_is_refused_in_words(hub: HubStub, config: bytes) -> None:
    hub.repos[MODEL]["config.json"] = config
    with pytest.raises(ModelError, match=f"The config.json of {MODEL} cannot be read"):
        describe(MODEL)


def test_a_name_that_leads_out_of_its_folder_is_not_fetched(hub: HubStub) -> None:
    hub.repos[MODEL] |= {"a\\..\\..\\startup.json": b"{}", "../startup.json": b"{}"}
    assert {file.name for file in describe(MODEL).files} == set(model_files())


def test_download_brings_a_whole_checked_model_and_does_not_repeat(hub: HubStub) -> None:
    seen: list[tuple[str, float | None]] = []
    folder = download(MODEL, on_progress=lambda what, share: seen.append((what, share)))
    assert folder == cached_snapshot(MODEL) and (folder / "model.safetensors").read_bytes() == hub.repos[MODEL]["model.safetensors"]
    assert not (folder / "pytorch_model.bin").exists() and not (folder / "consolidated.safetensors").exists()
    assert seen[-1][1] == 1.0 and all(share is None or 0 <= share <= 1 for _, share in seen)
    assert [model_id for model_id, _ in cached_models()] == [MODEL]
    size = len(hub.repos[MODEL]["model.safetensors"])
    hub.repos[MODEL]["model.safetensors"] = b"changed on the Hub, same commit: not fetched again".ljust(size)
    del hub.repos[MODEL]["consolidated.safetensors"]
    hub.repos[MODEL] = dict(hub.repos[MODEL])
    assert download(MODEL) == folder


def test_a_download_is_the_apps_and_its_version_may_have_slashes_in_its_name(hub: HubStub) -> None:
    folder = download(MODEL)
    # On Windows the lock goes by itself, and the model is the app's all the same.
    download_lock(MODEL).unlink(missing_ok=True)
    assert is_brought(MODEL)
    repository = repository_folder(MODEL)
    for name in ("refs/pr/1", "feature/x"):
        (repository / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(folder.name)
        assert cached_snapshot(MODEL, name) == folder
    assert not any(cached_snapshot(MODEL, name) for name in ("refs/pr/2", "../refs/main", "a//b", "/refs/main", "refs\\main"))


def test_cancel_keeps_the_half_and_the_next_start_goes_on_there(hub: HubStub) -> None:
    big = safetensors_bytes(weights=(8192, 1024))
    hub.repos[MODEL]["model.safetensors"] = big
    # the library writes in pieces of 10 MB
    hub.cut_at["model.safetensors"] = 12_000_000
    with pytest.raises(Cancelled):
        download(MODEL, is_cancelled=lambda: stored_bytes(MODEL) >= 9_000_000)
    partial = stored_bytes(MODEL) - stored_bytes(MODEL, unfinished=False)
    assert partial >= 9_000_000
    assert cached_snapshot(MODEL) is None or not (cached_snapshot(MODEL) / "model.safetensors").exists()  # type: ignore[operator]
    hub.cut_at.clear()
    hub.release.set()
    folder = download(MODEL)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).digest() == hashlib.sha256(big).digest()
    assert hub.ranges and int(hub.ranges[0].split("bytes=")[1].rstrip("-").split("-")[0]) >= 9_000_000


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with symbolic links, and one without, as Windows has it for most people."""
    if request.param == "no links":
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")


@pytest.mark.usefixtures("links")
def test_a_damaged_file_is_refused_and_the_next_download_mends_it(hub: HubStub) -> None:
    good = hub.repos[MODEL]["model.safetensors"]
    sha256 = hashlib.sha256(good).hexdigest()
    named = hub.info(MODEL)
    hub.info = lambda repo: named  # type: ignore[method-assign]
    hub.repos[MODEL]["model.safetensors"] = good[:-8] + b"damaged!"
    with pytest.raises(ModelError, match="arrived damaged") as caught:
        download(MODEL)
    assert caught.value.code == "model-corrupt"
    # Nothing has its name or place, so a download that is cancelled before any check leaves nothing that would be taken for whole.
    assert sha256 not in {path.name for path in cache_folder().rglob("*")}
    assert not list(cache_folder().rglob("*.safetensors"))
    hub.repos[MODEL]["model.safetensors"] = good
    assert (download(MODEL) / "model.safetensors").read_bytes() == good


@pytest.mark.usefixtures("links")
def test_a_file_that_was_cut_short_later_is_fetched_anew(hub: HubStub, workspace: Workspace) -> None:
    weights = download(MODEL) / "model.safetensors"
    os.truncate(weights, 100)
    assert needs_download(MODEL, None, workspace)
    facts = model_facts(MODEL, None, workspace)
    assert facts is not None and facts.stored_params is None
    assert (download(MODEL) / "model.safetensors").read_bytes() == hub.repos[MODEL]["model.safetensors"]
    assert not needs_download(MODEL, None, workspace)


@pytest.mark.usefixtures("links")
def test_weights_are_on_the_disk_once_and_read_through_once(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    big = safetensors_bytes(weights=(1024, 1024))
    hub.repos[MODEL]["model.safetensors"] = big
    folder = download(MODEL)
    files = {path.stat().st_ino: path.stat().st_size for path in cache_folder().rglob("*") if path.is_file()}
    assert len(big) < sum(files.values()) < 1.1 * len(big)
    # With what the library notes of the version beside its files.
    assert 0 <= held_bytes(MODEL) - sum(path.stat().st_size for path in folder.iterdir()) < 5000
    begun: list[str] = []
    monkeypatch.setattr(hub_download.subprocess, "Popen", _noting(begun))
    assert download(MODEL) == folder
    assert json.loads(begun[0])["large"] == {}


@pytest.mark.usefixtures("links")
def test_damaged_weights_of_an_earlier_version_are_fetched_anew(hub: HubStub) -> None:
    good = hub.repos[MODEL]["model.safetensors"]
    blob = repository_folder(MODEL) / "blobs" / hashlib.sha256(good).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(good[:-8] + b"damaged!")
    assert (download(MODEL) / "model.safetensors").read_bytes() == good


def test_a_disk_without_any_links_gets_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda folder: False)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    blob, pointer = tmp_path / "blobs" / "one", tmp_path / "snapshots" / "commit" / "model.safetensors"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    hub_download._place(blob, pointer)
    assert pointer.read_bytes() == b"weights" and not blob.exists()


def _noting(begun: list[str]) -> Any:
    """Popen that notes the last word of its command."""
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        begun.append(command[-1])
        return popen(command, **options)

    return start


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (401, {}, "hub-401"),
        (401, {"X-Error-Code": "GatedRepo"}, "hub-401"),
        (403, {"X-Error-Code": "GatedRepo"}, "hub-403"),
        (404, {"X-Error-Code": "RepoNotFound"}, "hub-404"),
        (429, {}, "hub-429"),
        (500, {}, "hub-error"),
    ],
)
def test_every_refusal_has_words_of_its_own(hub: HubStub, status: int, headers: dict[str, str], code: str) -> None:
    hub.status, hub.headers = status, headers
    with pytest.raises(ModelError) as caught:
        download(MODEL)
    assert caught.value.code == code and caught.value.problems[0].fix


def test_the_six_messages_differ(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = {}
    for status in (401, 403, 404, 429):
        hub.status = status
        with pytest.raises(ModelError) as caught:
            describe(MODEL)
        messages[caught.value.code] = str(caught.value)
    hub.status = 0
    monkeypatch.setattr(hub_download, "free_bytes", lambda path: 10)
    with pytest.raises(ModelError) as caught:
        download(MODEL)
    messages[caught.value.code] = str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as caught:
        describe(MODEL)
    messages[caught.value.code] = str(caught.value)
    assert set(messages) == {"hub-401", "hub-403", "hub-404", "hub-429", "hub-disk", "hub-offline"}
    assert len(set(messages.values())) == 6


def test_offline_mode_is_told_apart_from_nothing(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for action in (lambda: search("x"), lambda: describe(MODEL)):
        with pytest.raises(ModelError) as caught:
            action()
        assert caught.value.code == "hub-offline"


def test_a_search_without_a_network_is_refused_at_once(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    # Left alone, the Hub's library asks six times within 24 s.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        search("x")
    assert caught.value.code == "hub-offline" and time.monotonic() - began < 8


def test_a_refusal_halfway_comes_back_from_the_child(hub: HubStub) -> None:
    details = describe(MODEL)
    hub.status = 429
    with pytest.raises(ModelError) as caught:
        hub_download._run_child(details, None, lambda what, share: None, lambda: False)
    assert caught.value.code == "hub-429"


def test_unknown_versions_and_names(hub: HubStub) -> None:
    with pytest.raises(ModelError, match="no version"):
        describe(MODEL, "v9")
    with pytest.raises(ModelError, match="OWNER/NAME"):
        describe("a/b/c")


def test_models_without_safetensors_or_with_code_are_refused_before_any_download(hub: HubStub) -> None:
    hub.repos["x/pickles"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    hub.repos["x/code"] = model_files(auto_map={"AutoConfig": "a.B"})
    hub.repos["x/adapter"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    for name, code in (("x/pickles", "model-pickle"), ("x/code", "model-code"), ("x/adapter", "model-weights")):
        with pytest.raises(ModelError) as caught:
            download(name)
        assert caught.value.code == code
        assert stored_bytes(name) < 10_000


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.EACCES, "hub-folder", "belongs to another user"),
        (errno.EPERM, "hub-folder", "belongs to another user"),
        (errno.EROFS, "hub-folder", "can only be read"),
        (errno.ENOTDIR, "hub-folder", "Not a directory"),
        (errno.ENOSPC, "hub-disk", "filled up"),
        (errno.ECONNREFUSED, "hub-offline", "offline"),
    ],
)
def test_what_the_disk_refuses_is_not_told_as_a_lack_of_network(number: int, code: str, says: str) -> None:
    folder = None if number == errno.ECONNREFUSED else str(repository_folder(MODEL))
    error = in_words(OSError(number, os.strerror(number), folder), MODEL)
    assert error.code == code and says in str(error)
    if code != "hub-offline":
        assert str(cache_folder()) in str(error) and "HF_HOME" in error.problems[0].fix


def test_a_cache_that_cannot_be_made_comes_back_from_the_child_in_words(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = describe(MODEL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(ModelError, match="cannot be written") as caught:
        hub_download._run_child(details, None, lambda what, share: None, lambda: False)
    assert caught.value.code == "hub-folder" and str(tmp_path / "file") in str(caught.value)
