"""How the chat's answers are chosen, as its page holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.engine import engine_object


@dataclass(frozen=True, slots=True)
class Asked:
    """How answers are chosen."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 512
    seed: int | None = None


def sampling_of(asked: Asked) -> Any:
    """The same for the engine; raises SettingsError for numbers that cannot be."""
    return engine_object("sampling:Sampling")(asked.temperature, asked.top_p, asked.max_tokens, asked.seed)


def read_asked(values: Mapping[str, Any]) -> Asked:
    """The same from the fields of a page or a file; raises QloraUiError for what is no number or cannot be."""
    try:
        seed = "" if values.get("seed") is None else str(values["seed"]).strip()
        asked = Asked(
            temperature=float(values.get("temperature", 0.7)),
            top_p=float(values.get("top_p", 0.9)),
            max_tokens=int(float(values.get("max_tokens", 512))),
            seed=int(seed) if seed else None,
        )
    except (TypeError, ValueError, OverflowError):
        raise QloraUiError("Sampling takes numbers.", fix="Look at temperature, top-p, length and seed.", code="sampling") from None
    # Every page draws them from now on: one too large to be sent would leave them all without an answer.
    sampling_of(asked)
    return asked
