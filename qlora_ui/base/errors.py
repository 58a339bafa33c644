"""Every failure that a user is shown: what happened, why, and what to do.

Anything that is not a QloraUiError is a bug of ours and is caught only at the boundaries that CONTRIBUTING.md names, where it is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


def sentences(*parts: str) -> str:
    """What is said in parts, each with its full stop; those that say nothing left out."""
    return " ".join(part if part.endswith(("?", "…")) else part.rstrip(".") + "." for part in parts if part)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in words."""

    where: str
    """An option's path (`lora.rank`), a place in a file (`rows.jsonl line 3`) or empty."""
    what: str
    why: str = ""
    fix: str = ""
    code: str = ""

    def sentence(self) -> str:
        """The problem as one readable paragraph."""
        place = f"{self.where}: " if self.where else ""
        return sentences(f"{place}{self.what}", self.why, self.fix)


class QloraUiError(Exception):
    """Something that the user can understand and act on; shown without a traceback."""

    code = "error"

    def __init__(
        self,
        what: str = "",
        *,
        why: str = "",
        fix: str = "",
        where: str = "",
        code: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        if code is not None:
            self.code = code
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(where, what, why, fix, self.code),)
        super().__init__(" ".join(problem.sentence() for problem in self.problems))

    def as_dict(self) -> dict[str, Any]:
        """The error in the form that every command prints under `--json`."""
        return {"code": self.code, "problems": [asdict(problem) for problem in self.problems]}


class SettingsError(QloraUiError):
    """Settings that cannot be trained with; carries all problems at once."""

    code = "settings"


class DataError(QloraUiError):
    """A dataset that cannot be read or learned from; `where` names file, row and column."""

    code = "data"


class ModelError(QloraUiError):
    """A base model or adapter that is missing, refused or does not fit its partner."""

    code = "model"


class HardwareError(QloraUiError):
    """No card, too little memory, a driver that does not answer."""

    code = "hardware"


class RunError(QloraUiError):
    """A run that cannot start, stop, resume or be read."""

    code = "run"


class MissingExtra(QloraUiError):
    """An optional package is absent; names it and the line that installs it."""

    code = "missing-extra"
