"""The one crossing to the engine: a name, resolved when it is needed, so that the page is served before torch is imported."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
from typing import Any

_EVERYTHING = ("job", "chat")
"""Modules of the engine that between them import every library that it uses."""
_HEAVY = "transformers"
_importing = threading.RLock()
_imported: set[str] = set()


def engine_object(name: str) -> Any:
    """The object `MODULE:NAME` of qlora_ui.engine (`chat:ChatService`); the first call for most modules imports torch and takes seconds.

    The libraries import each other in circles and by need. Two threads that enter such a circle at different places (a run that
    starts while a page counts tokens) each see the other's half-made modules and fail, so threads come one at a time, and the first
    that needs the libraries imports all of them. A command has the main thread to itself and imports what it uses.
    """
    module, _, attribute = name.partition(":")
    full_name = f"qlora_ui.engine.{module}"
    if full_name not in _imported:
        with _importing:
            importlib.import_module(full_name)
            if _HEAVY in sys.modules and threading.current_thread() is not threading.main_thread():
                for needed in _EVERYTHING:
                    importlib.import_module(f"qlora_ui.engine.{needed}")
                _set_aside_what_stays()
            _imported.add(full_name)
    return getattr(sys.modules[full_name], attribute)


@functools.cache
def _set_aside_what_stays() -> None:
    """Keep Python from looking through the libraries' half a million objects whenever garbage is collected.

    Each end of a run and each model that is let go collect twice: 0.3 s each on a slow core, in which no page is answered. Once, when
    there is no model yet: what is set aside is never collected.
    """
    gc.collect()
    gc.freeze()
