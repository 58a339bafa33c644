"""How an answer is chosen, checked: one type for the page, the command line and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import Problem, QloraUiError, SettingsError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.7
    """0 always takes the likeliest token; 1 samples from the model's own probabilities; above is wilder."""
    top_p: float = 0.9
    """Only the likeliest tokens that together reach this probability can be chosen; 1 allows all."""
    max_tokens: int = 512
    """Longest answer, in tokens."""
    seed: int | None = None
    """The same seed, prompt and model give the same answer; None draws a new one."""

    def __post_init__(self) -> None:
        wrong = []
        if not 0 <= self.temperature <= 5:
            wrong.append(Problem("temperature", f"the temperature cannot be {self.temperature}", fix="Give a number from 0 to 5"))
        if not 0 < self.top_p <= 1:
            wrong.append(Problem("top_p", f"top-p cannot be {self.top_p}", fix="Give a number above 0, at most 1"))
        if not 1 <= self.max_tokens <= 1_000_000:
            what = f"the longest answer cannot be {self.max_tokens} tokens"
            wrong.append(Problem("max_tokens", what, fix="Give a whole number from 1 to 1,000,000"))
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            wrong.append(Problem("seed", f"the seed cannot be {self.seed}", fix="Give a whole number of at most 18 digits, or none"))
        if wrong:
            raise SettingsError(problems=wrong)


def read_sampling(values: Mapping[str, Any]) -> Sampling:
    """The same from the fields of a page or a file; raises QloraUiError for what is no number, SettingsError for what cannot be."""
    plain = Sampling()
    try:
        seed = "" if values.get("seed") is None else str(values["seed"]).strip()
        temperature, top_p = float(values.get("temperature", plain.temperature)), float(values.get("top_p", plain.top_p))
        most, whole_seed = int(float(values.get("max_tokens", plain.max_tokens))), int(seed) if seed else None
    except (TypeError, ValueError, OverflowError):
        raise QloraUiError("Sampling takes numbers.", fix="Look at temperature, top-p, length and seed.", code="sampling") from None
    return Sampling(temperature, top_p, most, whole_seed)
