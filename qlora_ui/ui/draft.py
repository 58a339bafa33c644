"""The settings on a page and everything that follows from them: what is wrong, what fits, how long, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qlora_ui.base.errors import Problem, QloraUiError, SettingsError
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig

if TYPE_CHECKING:
    from qlora_ui.data.load import DataReport
    from qlora_ui.estimate.duration import DurationEstimate
    from qlora_ui.estimate.memory import MemoryEstimate
    from qlora_ui.hardware.devices import DeviceProfile
    from qlora_ui.ui.service import Service


@dataclass(frozen=True, slots=True)
class Draft:
    """What a page would start now. `config` is None while a setting is wrong; estimates are None while facts are missing."""

    values: Mapping[str, Any]
    config: RunConfig | None
    problems: tuple[Problem, ...]
    preset: str
    baseline: RunConfig
    """The preset's settings, from which deltas are counted."""
    device: DeviceProfile | None
    facts: ModelFacts | None = None
    report: DataReport | None = None
    memory: MemoryEstimate | None = None
    duration: DurationEstimate | None = None
    num_steps: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_ready(self) -> bool:
        """Whether Start would start."""
        return self.config is not None and not self.problems

    def problems_of(self, path: str) -> tuple[Problem, ...]:
        """What is wrong with one option."""
        return tuple(problem for problem in self.problems if problem.where == path or problem.where.startswith(path + "."))


def make_draft(service: Service, values: Mapping[str, Any], preset: str) -> Draft:
    """Check the settings and estimate what they need; never raises for wrong settings, they become `problems`."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        nested.setdefault(section, {})[name] = value
    problems: list[Problem] = []
    config: RunConfig | None = None
    try:
        config = RunConfig.parse(nested)
    except SettingsError as error:
        problems.extend(error.problems)
    facts: ModelFacts | None = None
    try:
        facts = service.facts(str(values["model.id"]), values.get("model.revision") or None)
    except QloraUiError as error:
        problems.extend(replace(problem, where="model.id") for problem in error.problems)
    except ImportError:
        facts = None
    return Draft(values, config, tuple(problems), preset, service.preset_config(preset), None, facts)
