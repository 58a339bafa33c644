"""Comparing answers of a run's base and adapters: what is asked, of whom, how it is started, voted on and saved."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import write_text
from qlora_ui.base.progress import IsCancelled, OnProgress
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.comparison import Comparison, Comparisons, Form, Question, as_text
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.held_back import HeldBack
from qlora_ui.runs.read import RunView
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling
from qlora_ui.ui.service import Service

MOST_QUESTIONS = 100
MOST_BESIDE = 300
"""Other adapters in a list; a run can be looked for by its name on the Runs tab only."""
ADDED_ROWS = 5
LINE_END = " ⏎ "
"""Stands for the end of a line inside a question, since each line is a question."""
TYPED = "comparison-questions.txt"
_FORMS: dict[str, Form] = {"csv": "csv", "jsonl": "jsonl", "md": "md"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked, and how."""

    questions: Sequence[Question]
    beside: str = ""
    """RUN or RUN|CHECKPOINT of another adapter of the same base; empty for none."""
    temperature: float = 0.0
    max_tokens: int = 96
    is_blind: bool = False

    @property
    def words(self) -> str:
        """How answers are chosen."""
        how = f"Temperature {self.temperature:g}, the same random numbers" if self.temperature else "Always the likeliest word"
        system = " With the rows’ system prompt." if any(question.system for question in self.questions) else ""
        return f"{how}, at most {self.max_tokens:,} tokens.{system}"


def questions_of(text: str, rows: Sequence[HeldBack]) -> list[Question]:
    """The lines as questions; a held-back row's brings its system prompt, tools and answer, others the prompt that all rows share.

    Raises QloraUiError where there is none, or too many.
    """
    known = {"\n".join(row.question.strip().splitlines()): row for row in rows}
    shared = {row.system for row in rows}
    system = shared.pop() if len(shared) == 1 else ""
    lines = list(dict.fromkeys(line.strip().replace(LINE_END, "\n") for line in text.splitlines() if line.strip()))
    if not lines:
        raise QloraUiError("There is no question.", fix="Type some, one a line, or add held-back rows.", code="no-questions")
    if len(lines) > MOST_QUESTIONS:
        raise QloraUiError(f"These are {len(lines)} questions.", fix=f"Ask at most {MOST_QUESTIONS} at once.", code="many-questions")
    return [
        Question(row.question.strip(), row.system, row.answer, row.tools)
        if (row := known.get(line)) is not None
        else Question(line, system)
        for line in lines
    ]


def with_rows(text: str, rows: Sequence[HeldBack], *, at_random: bool) -> str:
    """The lines with held-back questions added: some that are not there yet, or one by chance."""
    if not rows:
        raise QloraUiError("This run held no rows back.", fix="Set “Held back for checking” above 0 for the next run.", code="no-rows")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = dict.fromkeys(LINE_END.join(row.question.strip().splitlines()) for row in rows)
    new = [line for line in own if line not in lines]
    if not new:
        raise QloraUiError("All held-back rows are there already.", fix="Press Compare.", code="no-rows")
    return "\n".join([*lines, *([random.choice(new)] if at_random else new[:ADDED_ROWS])])


def keep_typed(service: Service, text: str) -> None:
    """Keep the questions that stand on a page for the next visit."""
    path = service.workspace.root / TYPED
    if text != typed(service):
        write_text(path, text)


def typed(service: Service) -> str:
    """What was typed last; empty where nothing was."""
    try:
        return (service.workspace.root / TYPED).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def target_of(run: RunDir, checkpoint: str = "") -> ChatTarget:
    """What the chat loads for a run's adapter, or for one of its checkpoints; the newest of them where it has no adapter."""
    model = run.config().model
    return ChatTarget(model.id, model.revision, run.id, checkpoint or run.stand_in)


def compare(service: Service, kept: Comparisons, run: RunDir, wish: Wish, *, on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    """Load the sides, ask them, and keep every row as it comes."""
    on_progress("Starting the engine", None)
    chat, target = service.chat, target_of(run)
    other, _, checkpoint = wish.beside.partition("|")
    beside = target_of(find_run(service.workspace, other), checkpoint) if other else None
    sides: tuple[str, ...] = engine_object("comparison:load_sides")(chat, target, beside, on_progress)
    names = dict(zip(sides, names_of(service, run, wish.beside), strict=False))
    sampling = Sampling(wish.temperature, 0.95 if wish.temperature else 1.0, wish.max_tokens, 0)
    num_asked = len(wish.questions)
    kept.begin(run, Comparison(names, (), wish.is_blind, wish.words, time.time(), num_asked, chat.warning))
    answer = engine_object("comparison:compare_answers")
    for row in answer(chat, target, wish.questions, sampling, sides, on_progress=on_progress, is_cancelled=is_cancelled):
        kept.add(run, row)


def names_of(service: Service, run: RunDir, beside: str = "") -> list[str]:
    """What the sides are called, each otherwise: base, the run's adapter, the one beside."""
    other, _, checkpoint = beside.partition("|")
    sides = [(run, run.stand_in), *([(find_run(service.workspace, other), checkpoint)] if other else [])]
    names = ["Base model"]
    for one, saved in sides:
        name = service.readers.view(one).name + (f", step {saved.removeprefix('checkpoint-')}" if saved else "")
        names.append(f"{name} ({one.id})" if name in names else name)
    return names


def others_of(service: Service, view: RunView) -> tuple[list[tuple[str, str]], int]:
    """What can be laid beside, as (Wish.beside, words): this run's other checkpoints, then the newest other adapters of the same base;
    and how many older ones there are.

    A run that has no finished adapter is there with its newest checkpoint. Those of another base, or of the same one loaded otherwise, are
    left out: one model answers for all.
    """
    own = [step for step in view.run.other_steps() if f"checkpoint-{step}" != view.run.stand_in]
    found = [(f"{view.id}|checkpoint-{step}", f"Step {step:,} of this run") for step in own]
    model = view.config.model.id if view.config else ""
    rows = [row for row in service.run_lists.rows() if row.id != view.id and row.model == model and (row.has_adapter or row.has_checkpoint)]
    num_beside = 0
    for number, row in enumerate(rows):
        if num_beside == MOST_BESIDE:  # the settings of thousands are not read for their number alone
            return found, len(rows) - number
        if _loaded_as(service.run_lists.config(row.id)) != _loaded_as(view.config):
            continue
        saved = None if row.has_adapter else RunDir(service.workspace.runs / row.id).stand_in
        if row.has_adapter:
            found.append((row.id, row.name))
        elif saved:
            found.append((f"{row.id}|{saved}", f"{row.name}, step {saved.removeprefix('checkpoint-')}"))
        num_beside += 1
    return found, 0


def _loaded_as(config: RunConfig | None) -> tuple[Any, ...] | None:
    """What the chat loads a base by."""
    return (config.model, config.quant, config.launch.device) if config is not None else None


def vote(kept: Comparisons, run: RunDir, index: str, choice: str) -> None:
    """Prefer the answer at a place of a blind row (or EQUAL): pages know places only, so that their source does not say who is who."""
    known = kept.read(run)
    number = int(index) if index.isdigit() else -1
    order = known.rows[number].order if known is not None and 0 <= number < len(known.rows) else ()
    kept.vote(run, number, order[int(choice)] if choice.isdigit() and int(choice) < len(order) else choice)


def save(service: Service, kept: Comparisons, run: RunDir, form: str) -> Path:
    """The comparison as a file, in the folder that the page's server may hand out."""
    known = kept.read(run)
    if known is None or form not in _FORMS:
        raise QloraUiError("There is no comparison any more.", fix="Compare again.", code="stale-page")
    path = service.workspace.uploads / "exports" / run.id / f"comparison.{form}"
    # Excel takes a table for Latin letters of Windows unless it begins with this mark.
    write_text(path, ("\ufeff" if form == "csv" else "") + as_text(known, _FORMS[form]))
    return path
