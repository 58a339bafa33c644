"""Downloading a model from the Hub into the Hub's own cache.

A child process does the work: stopping it is then certain at any moment. Large files are fetched piece after piece into the
cache's `blobs`, and a stopped one goes on where it ended; the Hub's library (2.4) would begin it anew. Only what has the SHA-256 that
the Hub names gets its name there and its place in the snapshot, so what has a place is never read through again. The library then
brings the small files and notes the version, so that every program finds the model.
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

from qlora_ui.base import children
from qlora_ui.base.errors import ModelError, Problem
from qlora_ui.base.files import free_bytes, sha256_of
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.models.folder import read_folder
from qlora_ui.models.hub import HubDetails, HubFile, describe, disk_full, endpoint, hub_errors
from qlora_ui.models.hub_cache import cache_folder, cached_snapshot, download_lock, download_mark, repository_folder, stored_bytes

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
    _run_child(details, revision, on_progress, is_cancelled)
    folder = cached_snapshot(model_id, details.commit)
    if folder is None:
        raise ModelError(f"{model_id} did not arrive.", fix="Start the download again.", where="model.id", code="hub-error")
    read_folder(folder)
    on_progress(f"{model_id} is on this computer", 1.0)
    return folder


def _present(details: HubDetails) -> set[str]:
    """Names of the files that are there already, in their full size: one that was cut short is fetched anew."""
    folder = cached_snapshot(details.id, details.commit)
    return {file.name for file in details.files if folder is not None and _size(folder / file.name) == file.num_bytes}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _refuse_without_room(details: HubDetails, present: set[str]) -> None:
    begun = stored_bytes(details.id) - stored_bytes(details.id, unfinished=False)
    blobs = repository_folder(details.id) / "blobs"
    missing = [file for file in details.files if file.name not in present and not (file.sha256 and (blobs / file.sha256).exists())]
    needed = sum(file.num_bytes for file in missing) - begun
    free = free_bytes(cache_folder())
    if needed > 0 and needed + ROOM_BYTES > free:
        room = f"It needs {format_bytes(needed)}, and {format_bytes(ROOM_BYTES)} stay free for the work; {format_bytes(free)} are free."
        raise disk_full(details.id, room)


def _run_child(details: HubDetails, revision: str | None, on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    root = str(Path(__file__).resolve().parents[2])
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"}
    environment = {**os.environ, **quiet, "HF_HUB_CACHE": str(cache_folder())}
    present = _present(details)
    request = {
        "model_id": details.id,
        "revision": revision or "main",
        "commit": details.commit,
        "files": [file.name for file in details.files],
        "large": {file.name: (file.sha256, file.num_bytes) for file in details.files if file.sha256 and file.name not in present},
    }
    start = stored_bytes(details.id, unfinished=False)
    had = sum(file.num_bytes for file in details.files if file.name in present)
    with tempfile.TemporaryFile() as answer:
        command = [sys.executable, "-P", "-m", "qlora_ui.models.hub_download", json.dumps(request)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": answer, "stderr": subprocess.DEVNULL}
        with children.child(command, env=environment, **streams) as child:
            while child.poll() is None:
                stop_if(is_cancelled, f"The download of {details.id}")
                done = min(had + stored_bytes(details.id) - start, details.size_bytes)
                words = f"Downloading {details.id}: {format_bytes(done)} of {format_bytes(details.size_bytes)}"
                on_progress(words if done < details.size_bytes else f"Checking {details.id}", 0.97 * done / max(details.size_bytes, 1))
                time.sleep(POLL_S)
        answer.seek(0)
        text = answer.read().decode("utf-8", "replace")
    if child.returncode:
        raise _told(text, details.id)


def _told(text: str, model_id: str) -> ModelError:
    """The child's last words as the error that they describe."""
    try:
        said = json.loads(text.strip().splitlines()[-1])
        return ModelError(code=said["code"], problems=[Problem(**problem) for problem in said["problems"]])
    except (ValueError, IndexError, KeyError, TypeError):
        why = "The downloading process ended without a word; the computer may be out of memory."
        return ModelError(f"{model_id} did not arrive.", why=why, fix="Start the download again.", where="model.id", code="hub-error")


def _child(request: dict[str, Any]) -> int:
    from filelock import FileLock
    from huggingface_hub import snapshot_download

    model_id, revision = request["model_id"], request["revision"]
    lock = download_lock(model_id)
    try:
        with hub_errors(model_id, revision):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                download_mark(model_id).parent.mkdir(exist_ok=True)
                download_mark(model_id).touch()
                for name, (sha256, num_bytes) in request["large"].items():
                    _fetch(model_id, request["commit"], HubFile(name, num_bytes, sha256))
                files, cache = request["files"], cache_folder()
                snapshot_download(model_id, revision=revision, allow_patterns=files, endpoint=endpoint(), cache_dir=cache, max_workers=4)
    except ModelError as error:
        print(json.dumps(error.as_dict()))
        return 1
    return 0


def _fetch(model_id: str, commit: str, file: HubFile) -> None:
    """Bring a large file into the cache and its place in the snapshot; raises ModelError where it arrived damaged."""
    repository = repository_folder(model_id)
    blob = repository / "blobs" / file.sha256
    if blob.exists() and sha256_of(blob) != file.sha256:
        blob.unlink()  # another program's, or of a version of the app that looked too late
    if not blob.exists():
        partial = blob.with_name(f"{blob.name}.qlora-ui.incomplete")
        _bring(model_id, commit, file, partial)
        if sha256_of(partial) != file.sha256:
            partial.unlink()
            raise ModelError(
                f"{file.name} arrived damaged.",
                why="Its SHA-256 is not the one that the Hub names.",
                fix="Start the download again; the other files are kept.",
                where="model.id",
                code="model-corrupt",
            )
        os.replace(partial, blob)
    _place(blob, repository / "snapshots" / commit / file.name)


def _bring(model_id: str, commit: str, file: HubFile, partial: Path) -> None:
    """Download a file, going on after what an earlier start brought."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    partial.parent.mkdir(parents=True, exist_ok=True)
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


def _place(blob: Path, pointer: Path) -> None:
    """Let a file of a snapshot be the blob. Without links as on Windows the Hub's library would write it a second time."""
    from huggingface_hub.file_download import are_symlinks_supported

    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    if are_symlinks_supported(blob.parents[1]):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        return
    try:
        pointer.hardlink_to(blob)
    except OSError:
        os.replace(blob, pointer)  # a disk without links of any kind, as exFAT


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
