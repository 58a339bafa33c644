"""Datasets that come in through the page: uploads and pasted rows are kept in the workspace, names become ids."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import write_text
from qlora_ui.data.sources import hub_id
from qlora_ui.runs.workspace import Workspace

_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(1, 10))})


def keep_upload(temporary: str, workspace: Workspace) -> str:
    """Copy an uploaded file from the app's temporary folder to the workspace's datasets; returns its id there."""
    source = Path(temporary).resolve()
    if not source.is_relative_to(workspace.temp.resolve()):
        raise DataError("Only uploaded files can be added this way.", fix="Give the file's path instead", code="DATA-UPLOAD")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    # A folder for each content: the file keeps the name that its owner knows it by.
    target = workspace.datasets / digest / f"{_safe_stem(source.stem)}{source.suffix.lower()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(source, target)
    return str(target)


def keep_pasted(text: str, workspace: Workspace) -> str:
    """Write pasted rows to a file of the workspace's datasets; the kind is told by their first sign. Returns the file's id."""
    body = text.strip()
    if not body:
        raise DataError("Nothing is pasted yet.", fix="Paste rows of JSONL, JSON or CSV", code="DATA-EMPTY")
    suffix = ".json" if body.startswith("[") else ".jsonl" if body.startswith("{") else ".csv"
    digest = hashlib.sha256(body.encode()).hexdigest()[:8]
    target = workspace.datasets / digest / f"pasted-rows{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, body + "\n")
    return str(target)


def named_source(name: str) -> str:
    """The id of a dataset that was typed: a file's absolute path, `builtin:NAME`, or `hub:OWNER/NAME`.

    Raises DataError where it is none of them.
    """
    text = name.strip().strip("\"'")
    if not text:
        raise DataError("No dataset is named.", fix="Give a file's path, or OWNER/NAME of a dataset on the Hub", code="DATA-NONE")
    if text.startswith("builtin:"):
        return text
    path = Path(text).expanduser()
    if path.is_absolute() or path.exists():
        if not path.exists():
            what, why = f"There is no file {path.name} at that place.", f"Looked for {path}"
            raise DataError(what, why=why, fix="Check the path", code="DATA-MISSING")
        return str(path.resolve())
    repo = hub_id(text)
    if repo is None:
        raise DataError(
            f"“{text[:80]}” is neither a file nor a name on the Hub.",
            fix="Give the whole path of a file, or OWNER/NAME",
            code="DATA-MISSING",
        )
    return f"hub:{repo}"


def _safe_stem(stem: str) -> str:
    """A file name that every system takes."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "upload"
    return f"_{word}" if word.lower() in _RESERVED else word
