"""The Hub's own cache on this disk, read without the network and without importing its library.

The layout (`models--OWNER--NAME/refs`, `snapshots/COMMIT`, `blobs`) is documented and shared with every other program that uses
the Hub, so what they downloaded is found here too.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_MARK = ".qlora-ui"
MODELS, DATASETS = "models", "datasets"
"""Kinds of repositories."""


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of a model's or dataset's name on the Hub, OWNER/NAME; it may be a path as well."""
    return _NAME.fullmatch(text) is not None


def cache_folder() -> Path:
    """The folder of the cache: HF_HUB_CACHE, else `hub` in HF_HOME, else the user's cache."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def repository_folder(hub_id: str, kind: str = MODELS) -> Path:
    """Where the cache keeps all versions of a model or a dataset."""
    return cache_folder() / f"{kind}--{hub_id.replace('/', '--')}"


def cached_snapshot(model_id: str, revision: str | None = None) -> Path | None:
    """The folder of a version of a model in the cache, whole or not; None where there is none."""
    repository = repository_folder(model_id)
    name = revision or "main"
    # Some have slashes (`refs/pr/1`), of which the cache makes folders.
    if "\\" in name or any(part.startswith(".") or not part for part in name.split("/")):
        return None
    try:
        commit = (repository / "refs" / name).read_text(encoding="utf-8").strip()
    except OSError:
        commit = name
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def folder_title(folder: Path) -> str:
    """How a model's folder is called: a version in the cache, named after a commit, by the model's id, any other by its own name."""
    repository = folder.parent.parent.name
    return _id_of(repository) if folder.parent.name == "snapshots" and repository.startswith("models--") else folder.name


def _id_of(repository: str) -> str:
    return repository.partition("--")[2].replace("--", "/", 1)


def cached_models() -> list[tuple[str, Path]]:
    """Ids and folders of the models whose main version is in the cache and holds a config.json."""
    found = []
    for repository in sorted(cache_folder().glob("models--*--*")):
        model_id = _id_of(repository.name)
        folder = cached_snapshot(model_id)
        if folder is not None and (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            found.append((model_id, folder))
    return found


def download_lock(model_id: str) -> Path:
    """The lock under which the app downloads a model."""
    return cache_folder() / ".locks" / repository_folder(model_id).name / "qlora-ui.lock"


def download_mark(hub_id: str, kind: str = MODELS) -> Path:
    """A file that tells what the app brought from what other programs did; it goes with the model or dataset, whoever deletes that."""
    return repository_folder(hub_id, kind) / _MARK


def brought(kind: str = MODELS) -> list[str]:
    """Ids of the models or datasets that the app downloaded, all of them or a part."""
    return sorted(_id_of(mark.parent.name) for mark in cache_folder().glob(f"{kind}--*--*/{_MARK}"))


def is_brought(model_id: str) -> bool:
    """Whether the app downloaded it, all of it or a part."""
    return download_mark(model_id).is_file()


def stored_bytes(model_id: str, *, unfinished: bool = True) -> int:
    """Bytes of a model, in all its versions, that are on this disk; with or without files whose download goes on."""
    total = 0
    for blob in (repository_folder(model_id) / "blobs").glob("*"):
        if not unfinished and blob.name.endswith(".incomplete"):
            continue
        try:
            total += blob.stat().st_size
        except OSError:
            continue
    return total


def held_bytes(hub_id: str, kind: str = MODELS) -> int:
    """Bytes that it takes of the disk; without symbolic links, as on Windows, its files lie in the snapshots, linked hard or alone."""
    held: dict[tuple[int, int], int] = {}
    for path in repository_folder(hub_id, kind).rglob("*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                held[found.st_dev, found.st_ino] = found.st_size
    return sum(held.values())
