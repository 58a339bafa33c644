"""The one crossing to the engine: a name, resolved when it is needed, so that the page is served before torch is imported."""

from __future__ import annotations

import importlib
from typing import Any


def engine_object(name: str) -> Any:
    """The object `MODULE:NAME` of qlora_ui.engine (`chat:ChatService`); the first call imports torch and takes seconds."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"qlora_ui.engine.{module}"), attribute)
