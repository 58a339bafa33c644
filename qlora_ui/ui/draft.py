"""The settings on a page and everything that follows from them: what is wrong, what fits, how long, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qlora_ui.base.errors import Problem, QloraUiError, SettingsError
from qlora_ui.data.report import DataReport
from qlora_ui.estimate.duration import DurationEstimate, estimate_duration
from qlora_ui.estimate.memory import MemoryEstimate, estimate_memory
from qlora_ui.estimate.workload import DataShape
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection
from qlora_ui.ui.inspection import Inspection

if TYPE_CHECKING:
    from qlora_ui.ui.service import Service

@dataclass(frozen=True, slots=True)
class Draft:
    """What a page would start now. `config` is None while a setting is wrong; estimates are None while facts are missing."""

    values: Mapping[str, Any]
    """Option path to value as the page holds it."""
    config: RunConfig | None
    problems: tuple[Problem, ...]
    """All at once; `where` is an option's path."""
    preset: str
    baseline: RunConfig
    """The preset's settings, from which deltas are counted."""
    device: DeviceProfile
    facts: ModelFacts | None = None
    inspection: Inspection | None = None
    shape: DataShape | None = None
    memory: MemoryEstimate | None = None
    duration: DurationEstimate | None = None

    @property
    def report(self) -> DataReport | None:
        """What is known of the data; None while it is being read."""
        return self.inspection.report if self.inspection is not None else None

    @property
    def num_rows(self) -> int | None:
        """Conversations of one pass, held-back ones included."""
        return self.report.num_rows if self.report is not None else None

    @property
    def is_reading(self) -> bool:
        """Whether the data is still being read."""
        return self.inspection is not None and not self.inspection.is_done

    @property
    def is_ready(self) -> bool:
        """Whether Start would start."""
        return self.config is not None and not self.problems and not self.is_reading

    @property
    def fits(self) -> bool | None:
        """Whether the predicted memory is free on the device; None where it cannot be told."""
        return self.memory.total_bytes <= self.device.free_bytes if self.memory is not None else None

    def problems_of(self, path: str) -> tuple[Problem, ...]:
        """What is wrong with one option."""
        return tuple(problem for problem in self.problems if problem.where == path or problem.where.startswith(path + "."))


def make_draft(service: Service, values: Mapping[str, Any], preset: str, device: DeviceProfile) -> Draft:
    """Check the settings and estimate what they need; never raises for wrong settings, they become `problems`."""
    problems: list[Problem] = []
    config = _checked(values, problems)
    facts = _facts(service, values, problems)
    inspection = _inspection(service, values)
    if inspection is not None and inspection.is_done:
        problems.extend(replace(problem, where="data.sources", what=_with_place(problem)) for problem in inspection.problems)
        if inspection.report is not None:
            stops = [finding.as_problem() for finding in inspection.report.findings if finding.severity == "error"]
            problems.extend(replace(problem, where="data.sources", what=_with_place(problem)) for problem in stops)
    draft = Draft(values, config, tuple(problems), preset, service.preset_config(preset), device, facts, inspection)
    return draft if config is None or facts is None else _estimated(draft, config, facts)


def _checked(values: Mapping[str, Any], problems: list[Problem]) -> RunConfig | None:
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        nested.setdefault(section, {})[name] = value
    try:
        return RunConfig.parse(nested)
    except SettingsError as error:
        problems.extend(error.problems)
        return None


def _facts(service: Service, values: Mapping[str, Any], problems: list[Problem]) -> ModelFacts | None:
    try:
        return service.facts(str(values.get("model.id", "")).strip(), values.get("model.revision") or None)
    except QloraUiError as error:
        problems.extend(replace(problem, where="model.id") for problem in error.problems)
        return None


def _inspection(service: Service, values: Mapping[str, Any]) -> Inspection | None:
    """The look at the data, even while settings of other sections are wrong."""
    section = {path.partition(".")[2]: value for path, value in values.items() if path.startswith("data.")}
    try:
        data = DataSection.model_validate(section)
    except (ValidationError, ValueError):
        return None
    return service.inspector.look(data) if data.sources else None


def _estimated(draft: Draft, config: RunConfig, facts: ModelFacts) -> Draft:
    shape = data_shape(draft.report)
    memory = estimate_memory(facts, config, draft.device, shape)
    duration = estimate_duration(facts, config, draft.device, shape.num_rows, shape.mean_tokens) if shape is not None else None
    return replace(draft, shape=shape, memory=memory, duration=duration)


def data_shape(report: DataReport | None) -> DataShape | None:
    """Rows and lengths as the estimates want them; in tokens where the tokenizer was asked, else rows only."""
    if report is None:
        return None
    tokens = report.tokens or {}
    return DataShape(
        num_rows=report.num_rows,
        mean_tokens=tokens.get("mean"),
        longest_tokens=tokens.get("longest"),
        trained_share=tokens.get("trained_share", 1.0),
    )


def _with_place(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}" if problem.where and not problem.where.startswith("data.") else problem.what
