"""The settings on a page and everything that follows from them: what is wrong, what fits, how long, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qlora_ui.base.errors import Problem, QloraUiError, SettingsError
from qlora_ui.base.files import free_bytes
from qlora_ui.data.detect import MAP_COLUMNS
from qlora_ui.data.parse import Peek
from qlora_ui.data.report import DataReport
from qlora_ui.data.sources import hub_id
from qlora_ui.estimate.duration import DurationEstimate, estimate_duration
from qlora_ui.estimate.memory import MemoryEstimate, estimate_memory
from qlora_ui.estimate.workload import DataShape, model_problems
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.catalogue import needs_download
from qlora_ui.models.facts import ModelFacts
from qlora_ui.runs.process import has_card
from qlora_ui.runs.start_from import PATH as START_FROM
from qlora_ui.runs.start_from import find_start
from qlora_ui.settings.run_config import RunConfig, in_sections, option_by_path
from qlora_ui.settings.sections import DataSection, pasted_model
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.inspection import Pending

if TYPE_CHECKING:
    from qlora_ui.ui.service import Service

SHORTEST_TOKENS = 16
"""A conversation of a few words."""


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
    edited_at: float | None = None
    """When the page was last edited, or else opened, in monotonic seconds; None is now."""
    facts: ModelFacts | None = None
    inspection: Pending[DataReport] | None = None
    """The look at the data without a tokenizer."""
    peek: Pending[Peek] | None = None
    """Columns of `mapped`, for mapping them; None where they cannot be had."""
    mapped: DataSource | None = None
    """The dataset whose columns are mapped; None where all are built in."""
    look: Pending[DataReport] | None = None
    """The look in tokens; None while the engine rests or the model is not here."""
    shape: DataShape | None = None
    memory: MemoryEstimate | None = None
    """For the longest row, and while tokens are not counted for the longest that is allowed."""
    least: MemoryEstimate | None = None
    """With the shortest rows there can be; the same as `memory` once tokens are counted."""
    duration: DurationEstimate | None = None
    free_disk_bytes: int | None = None
    """Where the workspace lies."""
    is_model_missing: bool = False
    """Whether Start would download the model first."""
    elsewhere: Mapping[str, Any] | None = None
    """Option path to its value on another page that was changed later, where it is another than here."""

    @property
    def model_id(self) -> str:
        """The model that is meant, also while a setting is wrong."""
        return pasted_model(str(self.values.get("model.id", "")))

    @property
    def report(self) -> DataReport | None:
        """What is known of the data, in tokens where they were counted; None while it is being read."""
        for pending in (self.look, self.inspection):
            if pending is not None and pending.is_done and pending.answer is not None:
                return pending.answer
        return None

    @property
    def has_several(self) -> bool:
        """Whether several datasets are mixed."""
        return self.config is not None and len(self.config.data.sources) > 1

    @property
    def num_rows(self) -> int | None:
        """Conversations that the run uses, held-back ones included; without a look in tokens all that were read."""
        shape = data_shape(self.report)
        return shape.num_rows if shape is not None else None

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
        """Whether the predicted memory is free on the device; None where it cannot be told, or not before tokens are counted."""
        if self.memory is None or self.least is None:
            return None
        if self.memory.fits(self.device):
            return True
        return None if self.least.fits(self.device) else False

    @property
    def is_at_most(self) -> bool:
        """Whether the memory is a bound: how long the rows are was not counted yet, and it depends on them."""
        return self.memory is not None and self.least is not None and self.least.total_bytes < self.memory.total_bytes

    @property
    def is_counting(self) -> bool:
        """Whether tokens are being counted."""
        return self.look is not None and not self.look.is_done

    def problems_of(self, path: str) -> tuple[Problem, ...]:
        """What is wrong with one option."""
        return tuple(problem for problem in self.problems if problem.where == path or problem.where.startswith(path + "."))


def make_draft(service: Service, values: Mapping[str, Any], preset: str, device: DeviceProfile, edited_at: float | None = None) -> Draft:
    """Check the settings and estimate what they need; never raises for wrong settings, they become `problems`."""
    problems: list[Problem] = []
    config = _checked(values, problems)
    facts = _facts(service, values, problems)
    if config is not None and facts is not None:
        problems.extend(model_problems(facts, config))
    if config is not None:
        problems.extend(_machine_problems(service, config))
    data = _data_section(values)
    inspection = service.inspect(data, edited_at) if data is not None else None
    mapped = _mapped(data, inspection) if data is not None else None
    peek = service.peek(mapped, edited_at) if mapped is not None and _is_here(mapped, inspection) else None
    # Counting tokens reads the same files: it waits until they are read, or the work would be done twice.
    is_read = inspection is not None and inspection.is_done and inspection.answer is not None
    look = service.look(config, edited_at) if config is not None and facts is not None and is_read else None
    draft = Draft(values, config, (), preset, service.preset_config(preset), device, edited_at, facts, inspection, peek, mapped, look)
    is_missing = config is not None and needs_download(config.model.id, config.model.revision, service.workspace)
    draft = replace(draft, free_disk_bytes=free_bytes(service.workspace.runs), is_model_missing=is_missing)
    draft = replace(draft, problems=(*problems, *(found for found in _data_problems(draft) if not _is_said(found, problems))))
    return draft if config is None or facts is None else _estimated(draft, config, facts)


def _machine_problems(service: Service, config: RunConfig) -> list[Problem]:
    """What is not on this computer: the job would say so after it has read, or loaded, the model."""
    problems, launch = [], config.launch
    # A card that the driver does not answer for here may still be one for torch.
    has_no_card = not service.gpus() and not has_card()
    if launch.device == "cuda" and has_no_card:
        fix = "Choose “Automatic” or “CPU”"
        problems.append(Problem("launch.device", "This computer has no NVIDIA card", "", fix, "no-card"))
    elif launch.device != "cpu" and 0 < len(service.gpus()) < launch.num_processes:
        cards = len(service.gpus())
        what = f"The run wants {launch.num_processes} graphics cards, and this computer has {cards}"
        problems.append(Problem("launch.num_processes", what, "Each process drives one", f"Set “Cards” to {cards}", "too-few-cards"))
    elif launch.sharding == "fsdp" and has_no_card:
        what, fix = "There are no graphics cards to split the base over", "Switch the splitting off, or start the run where they are"
        problems.append(Problem("launch.sharding", what, "", fix, "no-card"))
    try:
        find_start(config, service.workspace)
    except QloraUiError as error:
        # A run that is not over may have saved something when this one has its turn.
        view = service.view(config.lora.start_from.strip()) if error.code == "adapter-missing" else None
        if view is None or view.is_over:
            problems.extend(replace(problem, where=START_FROM) for problem in error.problems)
    return problems


def _mapped(data: DataSection, inspection: Pending[DataReport] | None) -> DataSource | None:
    """The dataset whose columns are to be mapped: one that waits for it, one that is mapped, else the first that is not built in."""
    own = [source for source in data.sources if not source.id.startswith("builtin:")]
    report = inspection.answer if inspection is not None else None
    by_columns = {file.source for file in (report.sources if report is not None else ()) if file.format == "columns"}
    waiting = next((source for source in own if inspection is not None and _waits(source, inspection)), None)
    return waiting or next((source for source in own if source.id in by_columns), next(iter(own), None))


def _waits(source: DataSource, inspection: Pending[DataReport]) -> bool:
    """Whether a dataset was read and only a word on its columns is missing."""
    repo = hub_id(source.id)
    names = [problem.where for problem in inspection.problems if problem.fix.startswith(MAP_COLUMNS)]
    return any(name.startswith(f"{repo}/") if repo is not None else f"/{Path(source.id).as_posix()}".endswith(f"/{name}") for name in names)


def _is_here(source: DataSource, inspection: Pending[DataReport] | None) -> bool:
    """Whether a look at a dataset's columns fetches nothing: one of the Hub was downloaded when it was read."""
    if hub_id(source.id) is None:
        return True
    return inspection is not None and inspection.is_done and (inspection.answer is not None or _waits(source, inspection))


def _data_problems(draft: Draft) -> list[Problem]:
    """What stops the training on this data, each at the option where it is mended."""
    problems: list[Problem] = []
    for pending in (draft.inspection, draft.look):
        if pending is not None and pending.is_done:
            problems.extend(pending.problems)
    if draft.inspection is not None and draft.inspection.is_stopped and draft.report is None:
        what, fix = "The datasets were not read: you stopped it", "Press “Read them” on the Data tab"
        problems.append(Problem("data.sources", what, fix=fix, code="DATA-STOPPED"))
    if draft.report is not None:
        problems.extend(finding.as_problem() for finding in draft.report.findings if finding.severity == "error")
    return list(dict.fromkeys(map(_placed, problems)))


def _is_said(found: Problem, problems: list[Problem]) -> bool:
    """Whether a file is only refused since the mapping of its columns is not whole, which the settings said."""
    return found.code == "DATA-COLS" and any(problem.where == "data.mapping" for problem in problems)


def _placed(problem: Problem) -> Problem:
    """The problem at an option: one of a row of a file belongs to the datasets."""
    if problem.where in option_by_path():
        return problem
    return replace(problem, where="data.sources", what=f"{problem.where}: {problem.what}" if problem.where else problem.what)


def _checked(values: Mapping[str, Any], problems: list[Problem]) -> RunConfig | None:
    try:
        return RunConfig.parse(in_sections(values))
    except SettingsError as error:
        problems.extend(error.problems)
        return None


def _facts(service: Service, values: Mapping[str, Any], problems: list[Problem]) -> ModelFacts | None:
    try:
        return service.facts(pasted_model(str(values.get("model.id", ""))), values.get("model.revision") or None)
    except QloraUiError as error:
        problems.extend(replace(problem, where="model.id") for problem in error.problems)
        return None


def _data_section(values: Mapping[str, Any]) -> DataSection | None:
    """The data settings, even while those of other sections are wrong; None where they say nothing."""
    section = {path.partition(".")[2]: value for path, value in values.items() if path.startswith("data.")}
    try:
        data = DataSection.model_validate(section)
    except (ValidationError, ValueError):
        return None
    return data if data.sources else None


def _estimated(draft: Draft, config: RunConfig, facts: ModelFacts) -> Draft:
    shape = data_shape(draft.report)
    memory = estimate_memory(facts, config, draft.device, shape)
    is_counted = shape is not None and shape.longest_tokens is not None
    shortest = replace(shape or DataShape(), longest_tokens=SHORTEST_TOKENS)
    least = memory if is_counted else estimate_memory(facts, config, draft.device, shortest)
    duration = estimate_duration(facts, config, draft.device, shape.num_rows, shape.mean_tokens) if shape is not None else None
    return replace(draft, shape=shape, memory=memory, least=least, duration=duration)


def data_shape(report: DataReport | None) -> DataShape | None:
    """Rows and lengths as the estimates want them; in tokens where the tokenizer was asked, else rows only.

    Rows that the job leaves out, for their length or since cutting takes their answer, do not count.
    """
    if report is None:
        return None
    tokens = report.tokens or {}
    used = tokens.get("usable") or {}
    return DataShape(
        num_rows=used.get("rows", report.num_rows),
        mean_tokens=used.get("mean"),
        longest_tokens=used.get("longest"),
        trained_share=used.get("trained_share", 1.0),
        lengths=tuple(tokens.get("quantiles", ())),
    )
