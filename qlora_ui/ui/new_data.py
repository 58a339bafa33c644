"""Datasets that come in through the page: uploads and pasted rows are kept in the workspace, names become ids."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError, Problem
from qlora_ui.base.files import safe_stem, typed_path, write_text, written_aside
from qlora_ui.base.units import MIB
from qlora_ui.data.collect import kept_rows
from qlora_ui.data.parse import unpacked
from qlora_ui.data.reply import rows_in_reply, suffix_of
from qlora_ui.data.sniff import refuse_foreign
from qlora_ui.data.sources import hub_id
from qlora_ui.data.unpack import is_packed
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.markup import whole_letters

KEPT_ROWS_WORDS = "Answers kept in the chat"
"""What the button says that adds them."""
_REPLIES = (".json", ".jsonl", ".txt", ".md", "")
_LONGEST_REPLY_BYTES = MIB


def keep_uploads(temporary: Any, workspace: Workspace) -> tuple[list[str], tuple[Problem, ...]]:
    """Keep the files of an upload; returns their ids, and what stood in the way of the others. Raises DataError where none can be kept."""
    kept: list[str] = []
    problems: list[Problem] = []
    for file in temporary if isinstance(temporary, list) else [temporary] if temporary else []:
        try:
            kept.append(keep_upload(str(file), workspace))
        except DataError as error:
            problems += [replace(problem, where="", what=f"{problem.where}: {problem.what}") for problem in error.problems]
    if problems and not kept:
        raise DataError(problems=problems)
    return kept, tuple(problems)


def keep_upload(temporary: str, workspace: Workspace) -> str:
    """Copy an uploaded file, or the data file that is packed in it, from the app's temporary folder to the workspace's datasets.

    Returns its id there; raises DataError for what holds no rows by its first bytes.
    """
    source = Path(temporary).resolve()
    if not source.is_relative_to(workspace.temp.resolve()):
        raise DataError("Only uploaded files can be added this way.", fix="Give the file's path instead", code="DATA-UPLOAD")
    return _keep(source, workspace)


def _keep(source: Path, workspace: Workspace) -> str:
    with unpacked(source, workspace) as path:
        refuse_foreign(path)
        rows = _rows_in_reply(path)
        if rows:
            return _keep_rows(rows, safe_stem(path.stem) or "upload", workspace)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        target = _place(workspace, digest, safe_stem(path.stem) or "upload", re.sub(r"[^.a-z0-9]", "", path.suffix.lower())[:12])
        if not target.exists():
            # What has the name counts as whole: half a copy would be learned from at the next upload of the same file.
            with written_aside(target) as aside:
                shutil.copyfile(path, aside)
    return str(target)


def keep_pasted(text: str, workspace: Workspace) -> str:
    """Write pasted rows to a file of the workspace's datasets; the kind is told by their first sign. Returns the file's id."""
    body = whole_letters(text.strip())
    if not body:
        raise DataError("Nothing is pasted yet.", fix="Paste rows of JSONL, JSON or CSV, or questions and answers", code="DATA-EMPTY")
    return _keep_rows(rows_in_reply(body), "pasted-rows", workspace)


def _keep_rows(rows: str, stem: str, workspace: Workspace) -> str:
    target = _place(workspace, hashlib.sha256(rows.encode()).hexdigest()[:8], stem, suffix_of(rows))
    write_text(target, rows + "\n")
    return str(target)


def _rows_in_reply(path: Path) -> str:
    """The rows in a small text file that is a chat's reply with words around them; empty for any other file."""
    if path.suffix.lower() not in _REPLIES or path.stat().st_size > _LONGEST_REPLY_BYTES:
        return ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return ""
    rows = rows_in_reply(text)
    return rows if rows != text else ""


def kept_source(workspace: Workspace) -> str:
    """The id of the rows that were kept in the Chat tab; raises DataError before the first one."""
    path = kept_rows(workspace)
    if not path.is_file():
        raise DataError("No answer was kept yet.", fix="Press “Good: keep as a row” under an answer in the Chat tab", code="DATA-NONE")
    return str(path)


def named_source(name: str, workspace: Workspace) -> str:
    """The id of a dataset that was typed: a file's absolute path, `builtin:NAME`, or `hub:OWNER/NAME`.

    What is packed in a file is kept as that of an upload is. Raises DataError where it is none of them.
    """
    text = name.strip().strip("\"'")
    if not text:
        raise DataError("No dataset is named.", fix="Give a file's path, or OWNER/NAME of a dataset on the Hub", code="DATA-NONE")
    if text.startswith("builtin:"):
        return text
    path = typed_path(text)
    is_there = os.path.exists(path)
    if path.is_absolute() or is_there:
        if not is_there:
            what, why = f"There is no file {path.name} at that place.", f"Looked for {path}"
            raise DataError(what, why=why, fix="Check the path", code="DATA-MISSING")
        return _keep(path.resolve(), workspace) if _is_archive(path) else str(path.resolve())
    repo = hub_id(text)
    if repo is None:
        raise DataError(
            f"“{text[:80]}” is neither a file nor a name on the Hub.",
            fix="Give the whole path of a file, or OWNER/NAME",
            code="DATA-MISSING",
        )
    return f"hub:{repo}"


def _is_archive(path: Path) -> bool:
    try:
        return path.is_file() and is_packed(path)
    except OSError:  # what cannot be opened is told of where it is read
        return False


def _place(workspace: Workspace, digest: str, stem: str, suffix: str) -> Path:
    """Where a file of that content is kept: in a folder for each content, under the name that its owner knows it by.

    Another content that has the name already makes it `name-2`: in lists and pickers the two are to be told apart.
    """
    mine = workspace.datasets / digest
    mine.mkdir(parents=True, exist_ok=True)
    others = [folder for folder in workspace.datasets.iterdir() if folder.is_dir() and folder != mine]
    names = (f"{stem}{f'-{number}' if number > 1 else ''}{suffix}" for number in count(1))
    return mine / next(name for name in names if not any((other / name).exists() for other in others))
