"""The folders of a workspace that data needs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qlora_ui.base.progress import Folders


class DataFolders(Folders, Protocol):
    """A workspace, for this layer."""

    @property
    def cache(self) -> Path: ...
    @property
    def rows_and_tokens(self) -> tuple[Path, Path]: ...
    @property
    def datasets(self) -> Path: ...
