"""Where a source's files are: built in, on this machine, or on the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import typed_path
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent
from qlora_ui.data.folders import DataFolders
from qlora_ui.models.hub_cache import is_hub_name
from qlora_ui.settings.source import DataSource

BUILTIN_FOLDER = Path(__file__).parent / "builtin"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    path: Path
    name: str
    """What messages call it."""


def hub_id(source_id: str) -> str | None:
    """The Hub's id of a source: `hub:OWNER/NAME`, or a bare `OWNER/NAME` that is no file; None for everything else."""
    if source_id.startswith("hub:"):
        return source_id.removeprefix("hub:")
    return source_id if is_hub_name(source_id) and not os.path.exists(typed_path(source_id)) else None


def files_of(
    source: DataSource, workspace: DataFolders, *, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never
) -> list[SourceFile]:
    """The files of a source, on this machine; those of the Hub are fetched.

    Raises DataError where there are none.
    """
    if source.id.startswith("builtin:"):
        return [_builtin(source.id.removeprefix("builtin:"))]
    repo = hub_id(source.id)
    if repo is not None:
        from qlora_ui.data.hub import download

        paths = download(repo, source.config, source.split, workspace, on_progress=on_progress, is_cancelled=is_cancelled)
        return [SourceFile(path, f"{repo}/{path.name}") for path in paths]
    path = typed_path(source.id)
    return [SourceFile(path, path.name)]


def builtin_names() -> list[str]:
    """Names of the built-in datasets."""
    return sorted(path.stem for path in BUILTIN_FOLDER.glob("*.jsonl"))


def _builtin(name: str) -> SourceFile:
    path = BUILTIN_FOLDER / f"{name}.jsonl"
    if name not in builtin_names():
        raise DataError(
            f"There is no built-in dataset “{name[:60]}”.", where="data.sources", fix=f"There is: {', '.join(builtin_names())}.",
            code="DATA-MISSING",
        )  # fmt: skip
    return SourceFile(path, name)
