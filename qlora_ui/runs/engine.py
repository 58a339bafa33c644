"""The one crossing to the engine: a name, resolved when it is needed, so that the page is served before torch is imported."""

from __future__ import annotations

import importlib
import threading
from typing import Any

_EVERYTHING = ("job", "chat")
"""Modules of the engine that between them import every library that it uses."""
_importing = threading.RLock()


def engine_object(name: str) -> Any:
    """The object `MODULE:NAME` of qlora_ui.engine (`chat:ChatService`); the first call imports torch and takes seconds.

    The libraries import each other in circles and by need. Two threads that enter such a circle at different places (a run that
    starts while a page counts tokens) each see the other's half-made modules and fail, so threads come one at a time, and the first
    imports everything. A command has the main thread to itself and imports what it uses.
    """
    module, _, attribute = name.partition(":")
    with _importing:
        if threading.current_thread() is not threading.main_thread():
            for needed in _EVERYTHING:
                importlib.import_module(f"qlora_ui.engine.{needed}")
        return getattr(importlib.import_module(f"qlora_ui.engine.{module}"), attribute)
