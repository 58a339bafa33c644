"""Downloading a model from the Hub into the Hub's own cache.

A child process does the work: stopping it is then certain at any moment. Large files are fetched piece after piece into the
cache's `blobs`, and a stopped one goes on where it ended; the Hub's library (2.4) would begin it anew. The library then puts the
small files and the links of the snapshot in place, so that every program finds the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qlora_ui.base.errors import ModelError, Problem
from qlora_ui.base.files import free_bytes, sha256_of
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.models.folder import read_folder
from qlora_ui.models.hub import HubDetails, HubFile, describe, disk_full, endpoint, hub_errors
from qlora_ui.models.hub_cache import cache_folder, cached_snapshot, repository_folder, stored_bytes

ROOM_BYTES = 512 * MIB
"""Left free on the disk after a download."""
POLL_S = 0.25


def download(model_id: str, revision: str | None = None, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The folder of a model of the Hub, downloaded as far as it is not there, checked and whole.

    An interrupted download goes on where it ended. Raises ModelError where the Hub refuses, the disk is too small, a file arrived
    damaged or the model is one that the app refuses, and Cancelled.
    """
    on_progress(f"Asking the Hub for {model_id}", None)
    details = describe(model_id, revision)
    before = _present(details)
    _refuse_without_room(details, before)
    new = [file for file in details.files if file.name not in before]
    _run_child(details, revision, on_progress, is_cancelled)
    folder = cached_snapshot(model_id, details.commit)
    if folder is None:
        raise ModelError(f"{model_id} did not arrive.", fix="Start the download again.", where="model.id", code="hub-error")
    _check(folder, new, on_progress, is_cancelled)
    read_folder(folder)
    on_progress(f"{model_id} is on this computer", 1.0)
    return folder


def _present(details: HubDetails) -> set[str]:
    """Names of the files that are there already."""
    folder = cached_snapshot(details.id, details.commit)
    return {file.name for file in details.files if folder is not None and (folder / file.name).is_file()}


def _refuse_without_room(details: HubDetails, present: set[str]) -> None:
    begun = stored_bytes(details.id) - stored_bytes(details.id, unfinished=False)
    needed = sum(file.num_bytes for file in details.files if file.name not in present) - begun
    free = free_bytes(cache_folder())
    if needed > 0 and needed + ROOM_BYTES > free:
        raise disk_full(details.id, format_bytes(needed), format_bytes(free))


def _run_child(details: HubDetails, revision: str | None, on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    root = str(Path(__file__).resolve().parents[2])
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"}
    environment = {**os.environ, **quiet, "HF_HUB_CACHE": str(cache_folder())}
    request = {
        "model_id": details.id,
        "revision": revision or "main",
        "commit": details.commit,
        "files": [file.name for file in details.files],
        "large": {file.name: (file.sha256, file.num_bytes) for file in details.files if file.sha256},
    }
    start = stored_bytes(details.id, unfinished=False)
    had = sum(file.num_bytes for file in details.files if file.name in _present(details))
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "qlora_ui.models.hub_download", json.dumps(request)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.DEVNULL,
        )
        try:
            while child.poll() is None:
                stop_if(is_cancelled, f"The download of {details.id}")
                done = min(had + stored_bytes(details.id) - start, details.size_bytes)
                words = f"Downloading {details.id}: {format_bytes(done)} of {format_bytes(details.size_bytes)}"
                on_progress(words, 0.97 * done / max(details.size_bytes, 1))
                time.sleep(POLL_S)
        finally:
            _end(child)
        answer.seek(0)
        text = answer.read().decode("utf-8", "replace")
    if child.returncode:
        raise _told(text, details.id)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _told(text: str, model_id: str) -> ModelError:
    """The child's last words as the error that they describe."""
    try:
        said = json.loads(text.strip().splitlines()[-1])
        return ModelError(code=said["code"], problems=[Problem(**problem) for problem in said["problems"]])
    except (ValueError, IndexError, KeyError, TypeError):
        why = "The downloading process ended without a word; the computer may be out of memory."
        return ModelError(f"{model_id} did not arrive.", why=why, fix="Start the download again.", where="model.id", code="hub-error")


def _check(folder: Path, files: list[HubFile], on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    """Compare what was downloaded with the Hub's SHA-256; a damaged file is removed, so that it is fetched again."""
    for number, file in enumerate(files):
        stop_if(is_cancelled, "The check of the download")
        on_progress(f"Checking {file.name}", 0.97 + 0.03 * number / len(files))
        path = folder / file.name
        if file.sha256 and path.is_file() and sha256_of(path) != file.sha256:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise ModelError(
                f"{file.name} arrived damaged.",
                why="Its SHA-256 is not the one that the Hub names.",
                fix="Start the download again; the other files are kept.",
                where="model.id",
                code="model-corrupt",
            )


def _child(request: dict[str, Any]) -> int:
    from filelock import FileLock
    from huggingface_hub import snapshot_download

    model_id, revision = request["model_id"], request["revision"]
    lock = cache_folder() / ".locks" / repository_folder(model_id).name / "qlora-ui.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hub_errors(model_id, revision), FileLock(lock):
            for name, (sha256, num_bytes) in request["large"].items():
                _fetch(model_id, request["commit"], HubFile(name, num_bytes, sha256))
            snapshot_download(
                model_id, revision=revision, allow_patterns=request["files"], endpoint=endpoint(), cache_dir=cache_folder(), max_workers=4
            )
    except ModelError as error:
        print(json.dumps(error.as_dict()))
        return 1
    return 0


def _fetch(model_id: str, commit: str, file: HubFile) -> None:
    """Bring a large file into the cache under its SHA-256, going on after what an earlier start brought."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob = repository_folder(model_id) / "blobs" / file.sha256
    partial = blob.with_name(f"{blob.name}.qlora-ui.incomplete")
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    url, headers = hf_hub_url(model_id, file.name, revision=commit, endpoint=endpoint()), build_hf_headers()
    location = get_hf_file_metadata(url, headers=headers, endpoint=endpoint()).location
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a storage server has no business with the Hub's token
    have = partial.stat().st_size if partial.exists() else 0
    if have > file.num_bytes:
        partial.unlink()
        have = 0
    with partial.open("ab") as stream:
        http_get(location, stream, resume_size=have, headers=headers, expected_size=file.num_bytes)
    os.replace(partial, blob)


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
