"""How lists and mappings are given: as flags, as lines of a text box, as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator

from qlora_ui.settings.source import DataSource


def _words(value: Any) -> Any:
    """Words split by commas, as a flag gives them."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _lines(value: Any) -> Any:
    """One entry a line, as a text box gives them."""
    return tuple(line.strip() for line in value.splitlines() if line.strip()) if isinstance(value, str) else value


def _json_or(value: Any) -> Any:
    """JSON where a flag gives a list or a mapping; a text that is none is one entry."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, DataSource) else value
    return json.loads(value) if value.lstrip().startswith(("[", "{")) else (value,) if value.strip() else ()


def _pairs(value: Any) -> Any:
    """JSON where a flag gives a mapping."""
    made = _json_or(value)
    if made and not isinstance(made, dict):
        raise ValueError('write {"user": "question", "assistant": "answer"}, each with the name of its column')
    return made or {}


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Sources = Annotated[tuple[DataSource, ...], BeforeValidator(_json_or)]
Mapping = Annotated[dict[str, str], BeforeValidator(_pairs)]
