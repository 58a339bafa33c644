"""How long work says how far it is, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from qlora_ui.base.errors import QloraUiError

OnProgress = Callable[[str, float | None], None]
"""Called with what is being done, in words, and the done share (0 to 1) or None where it is not known."""

IsCancelled = Callable[[], bool]
"""Asked between two pieces of work; True ends it with Cancelled."""


class Cancelled(QloraUiError):
    """The user stopped it; nothing half-done is left in place."""

    code = "cancelled"


class Folders(Protocol):
    """The folders of a workspace, for the layers below `runs`."""

    @property
    def models(self) -> Path: ...
    @property
    def temp(self) -> Path: ...


def silent(what: str, share: float | None) -> None:
    """An OnProgress that tells nobody."""


def never() -> bool:
    """An IsCancelled that never stops."""
    return False


def stop_if(is_cancelled: IsCancelled, what: str) -> None:
    """Raise Cancelled where the user asked for it."""
    if is_cancelled():
        raise Cancelled(f"{what} was stopped.", fix="Start it again whenever you like.")
