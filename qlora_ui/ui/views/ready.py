"""The Ready card, from the settings on the page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_ui.base.errors import Problem, sentences
from qlora_ui.base.units import format_bytes, format_count, format_duration, format_percent
from qlora_ui.estimate import workload
from qlora_ui.estimate.memory import saved_bytes
from qlora_ui.runs.card import Holder
from qlora_ui.runs.run_dir import Status
from qlora_ui.settings.intervals import num_held_back, warmup_words
from qlora_ui.settings.presets import FIRST_PRESET
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.ui.markup import escape, go_link, middle_cut, prose, sentence_case, with_units
from qlora_ui.ui.source_list import sources_of
from qlora_ui.ui.views.memory_bar import bound_html, prediction_html
from qlora_ui.ui.views.words import model_title, source_title

if TYPE_CHECKING:
    from qlora_ui.runs.read import RunView
    from qlora_ui.ui.draft import Draft

TAB_OF_SECTION = {
    "model": "model",
    "data": "data",
    "quant": "recipe",
    "lora": "recipe",
    "train": "recipe",
    "eval": "recipe",
    "output": "recipe",
    "launch": "recipe",
}
"""The tab on which the options of a section stand."""
TAB_OF_OPTION = {"data.max_length": "recipe", "output.name": ""}
"""Options that stand elsewhere; no tab for those of the card itself."""
STEPS = ("model", "data", "recipe")
ALL_SEEN = 0.95
"""Passes from which on all rows count as seen: packing is estimated."""
MANY_CUT = 0.1
"""Share of the rows from which on answers that lose their end are told beside Start, and not only on the Data tab."""
LONG_RUN_S = 12 * 3600
"""From here on a run is called long."""


def ready_html(draft: Draft | None, lost: str = "") -> str:
    """The card's text; None while nothing is known yet. `lost` says what became of settings that could not be read."""
    if draft is None:
        return '<section class="q-card q-ready" aria-busy="true"><h2 class="q-h2">Looking at your settings</h2></section>'
    told = f'<p class="q-note q-note-warn q-small" id="q-ready-lost">{escape(lost)}</p>' if lost else ""
    facts = (
        _summary(draft),
        _memory(draft),
        _time(draft),
        _unseen(draft),
        _otherwise(draft),
        _beyond(draft),
        _broken_off(draft),
        _warmup(draft),
        _disk(draft),
        _missing(draft),
        _steps(draft),
    )
    # By which CSS knows that the word of welcome is true.
    demo = '<i class="q-is-demo" hidden></i>' if _is_demo(draft) else ""
    parts = (_head(draft), told, *facts, demo)
    return f'<section class="q-card q-ready" aria-label="What will be trained">{"".join(parts)}</section>'


def _is_demo(draft: Draft) -> bool:
    """Whether all but the run's own words is as the demo has it."""
    changed = draft.config.differences(draft.baseline) if draft.config is not None else {"": None}
    return draft.preset == FIRST_PRESET and all(path.startswith("output.") for path in changed)


def start_label(draft: Draft) -> str:
    """The words on the button: Start, or what it waits for."""
    if draft.is_ready:
        return "Start"
    if draft.problems:
        first = draft.problems[0]
        if first.where == "data.sources" and not sources_of(draft.values.get("data.sources")):
            return "Choose a dataset"
        if first.code == "model-missing":
            return "Choose a model"
        return "1 thing to change" if len(draft.problems) == 1 else f"{len(draft.problems)} things to change"
    return "Reading the data"


def waits_html(view: RunView | None, *, is_held: bool = False, holder: Holder | None = None) -> str:
    """What a press of Start would wait for: a queue that is held, another run, or an evaluation or an export that has the card.

    Before the first run a word of welcome; else empty.
    """
    words = ""
    if is_held:
        words = "The queue is held: Start puts this one into it, and “Start the queue” on the Train tab lets it begin."
    elif view is not None and view.status.is_live:
        state = "is getting ready" if view.status is Status.STARTING else "is training"
        words = f"<strong>{escape(middle_cut(view.name, 40))}</strong> {state}. Start puts this one behind it."
    elif holder is not None:
        words = f"{escape(replace(holder, what=middle_cut(holder.what, 40)).sentence())} Start waits until it is done."
    if words:
        return f'<p class="q-small q-ready-wait">{words}</p>'
    return '<p class="q-small q-ready-first">A first try is set up: just press Start.</p>' if view is None else ""


def trained_html(view: RunView | None) -> str:
    """The state of the step that the Train tab is, from the run that it shows: what was learned, or what went wrong."""
    if view is None:
        return ""
    has_result = view.status is Status.DONE or (view.status is Status.STOPPED and view.has_adapter)
    went_wrong = view.status in (Status.FAILED, Status.CRASHED)
    return _step("train", "done" if has_result else "problem" if went_wrong else "open")


def tab_of(path: str) -> str:
    """The id of the tab on which an option stands; empty for none."""
    return TAB_OF_OPTION.get(path, TAB_OF_SECTION.get(path.partition(".")[0], ""))


def data_title(config: RunConfig, length: int = 40) -> str:
    """The datasets of a run in words."""
    names = [source_title(source.id, length) for source in config.data.sources]
    return names[0] if len(names) == 1 else f"{len(names)} datasets"


def _head(draft: Draft) -> str:
    if draft.is_ready and draft.fits is False:
        pill, kind = "Too large", "bad"
    elif draft.is_ready:
        pill, kind = "Ready", "good"
    elif draft.problems:
        pill, kind = "Not ready", "bad"
    else:
        pill, kind = "Reading", "accent"
    summary = ""
    if draft.memory is not None:
        # In the closed bar of a phone, where "at most" would take a second line.
        summary = f"{'≤ ' if draft.is_at_most else ''}{format_bytes(draft.memory.total_bytes)}"
        if draft.duration is not None:
            summary += f" · {format_duration(draft.duration.total_s)}"
    return (
        '<div class="q-ready-head"><h2 class="q-h2">Next run</h2>'
        f'<span class="q-ready-short q-num">{escape(with_units(summary))}</span>'
        f'<span class="q-chip q-chip-{kind}" id="q-ready-state" role="status">{escape(pill)}</span>'
        '<button type="button" class="q-icon-button q-ready-toggle" data-ready-toggle aria-expanded="false" '
        'aria-label="Show what will be trained">▴</button></div>'
    )


def _summary(draft: Draft) -> str:
    config = draft.config
    if config is None:
        return ""
    rows = [("Model", _model_words(draft, config)), ("Learns from", _data_words(draft, config))]
    train = config.train
    num_cards = config.launch.num_processes * config.launch.num_machines
    cards = f" × {num_cards} {'processes' if draft.device.is_cpu else 'cards'}" if num_cards > 1 else ""
    batch = f"{train.batch_size} × {train.accumulation}{cards} = {config.effective_batch}"
    rows.append(("Effective batch", escape(batch)))
    if draft.duration is not None:
        steps = f'<span id="q-ready-steps">{escape(format_count(draft.duration.num_steps))}</span>'
        rows.append(("Steps", f'{steps}<small class="q-beside"> · {escape(_passes_words(draft))}</small>'))
    if draft.memory is not None and draft.facts is not None:
        share = draft.memory.trainable_params / max(draft.facts.num_params, 1)
        rows.append(("Trains", escape(f"{format_count(draft.memory.trainable_params)} numbers ({format_percent(share)})")))
    return '<dl class="q-facts">' + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def _num_seen(draft: Draft) -> int | None:
    """About how many of the training rows the steps reach; None where they reach all, or nothing is known of the rows."""
    if draft.duration is None or draft.num_rows is None or draft.config is None or draft.duration.passes >= ALL_SEEN:
        return None
    return round(draft.duration.passes * (draft.num_rows - num_held_back(draft.num_rows, draft.config.eval.share)))


def _passes_words(draft: Draft) -> str:
    """What the steps mean for the rows."""
    passes = draft.duration.passes if draft.duration is not None else 0
    seen = _num_seen(draft)
    if seen is not None:
        return f"see about {format_count(seen)} rows"
    times = f"{passes:.1f}".removesuffix(".0") if passes < 9.95 else f"{passes:,.0f}"
    return "each row once" if passes < 1.05 else f"each row {times} times"


def _unseen(draft: Draft) -> str:
    """A warning where a number of steps, as the demo's 30, ends the run before all rows were seen."""
    if _num_seen(draft) is None or draft.config is None or draft.config.train.max_steps is None:
        return ""
    option, steps = option_by_path()["train.max_steps"], format_count(draft.config.train.max_steps)
    words = f"“{option.meta.label}” is {steps}: the run ends before it has seen all rows. Empty it to go by the passes."
    link = go_link("Show", tab_of(option.path), option.dom_id)
    return f'<p class="q-note q-note-warn q-small" id="q-ready-unseen">{escape(words)} {link}</p>'


def _model_words(draft: Draft, config: RunConfig) -> str:
    words = escape(model_title(config.model.id) or "no model")
    if draft.facts is not None:
        words += f'<span class="q-small"> {escape(format_count(draft.facts.num_params))}, 4-bit</span>'
        if draft.is_model_missing:
            size = format_bytes(draft.facts.stored_bytes or 2 * draft.facts.num_params)
            words += f'<span class="q-small" id="q-ready-download"> not here yet: Start downloads about {escape(with_units(size))}</span>'
    return words


def _data_words(draft: Draft, config: RunConfig) -> str:
    words = escape(data_title(config))
    if draft.num_rows is not None:
        held = num_held_back(draft.num_rows, config.eval.share)
        kept = f", {format_count(held)} held back" if held else ""
        left_out = draft.report.num_rows - draft.num_rows if draft.report is not None else 0
        kept += f", {format_count(left_out)} left out" if left_out else ""
        count = draft.num_rows - held
        words += f'<span class="q-small"> {escape(format_count(count))} row{"" if count == 1 else "s"}{kept}</span>'
    elif draft.is_reading:
        words += '<span class="q-small"> being read</span>'
    return words


def _memory(draft: Draft) -> str:
    if draft.memory is None:
        if draft.config is None or draft.facts is not None or draft.problems_of("model.id"):
            return ""
        return '<p class="q-small">Memory is predicted once the model\'s configuration is known: download it on the Model tab.</p>'
    if draft.is_at_most and draft.fits is None:
        return bound_html(draft.memory, draft.device, _uncounted(draft))
    return prediction_html(draft.memory, draft.device, is_at_most=draft.is_at_most)


def _uncounted(draft: Draft) -> str:
    """Why more cannot be said than "at most"."""
    if draft.is_counting or draft.is_reading:
        return "Counting tokens: the longest row decides how much it is."
    return "That is for the longest conversation allowed. How long the rows are is not counted yet."


def _time(draft: Draft) -> str:
    if draft.duration is None:
        return ""
    basis = "from earlier runs here" if draft.duration.basis == "measured" else "a first estimate"
    low, high = format_duration(draft.duration.low_s), format_duration(draft.duration.high_s)
    total, spread = format_duration(draft.duration.total_s), f"{low} to {high}"
    is_guess = draft.shape is not None and draft.shape.mean_tokens is None
    how_sure = "a guess until tokens are counted" if is_guess else f'{basis}: <span class="q-num">{escape(spread)}</span>'
    return (
        f'<div class="q-predict-line"><span class="q-big q-num" id="q-ready-time">{escape(total)}</span>'
        f'<span class="q-small">{how_sure}</span></div>'
        f"{_long_words(draft.duration.total_s, is_cpu=draft.device.is_cpu)}"
    )


def _long_words(seconds: float, *, is_cpu: bool) -> str:
    """What to do about a run that is not done by tomorrow morning; empty for others."""
    if seconds < LONG_RUN_S:
        return ""
    card = " A graphics card is many times as fast: “Predict for” shows one." if is_cpu else ""
    return (
        f'<p class="q-small" id="q-ready-long">That is long. Fewer passes, rows or steps take less, and so does a smaller model.{card}</p>'
    )


def beyond_context(draft: Draft) -> str:
    """A sentence where conversations may be longer than the model was made for, and some are or may be; else empty."""
    if draft.config is None or draft.facts is None:
        return ""
    return workload.beyond_context(draft.facts, draft.config, draft.shape)


def _otherwise(draft: Draft) -> str:
    """What will be otherwise than the settings say."""
    if draft.config is None or draft.facts is None:
        return ""
    said = workload.otherwise(draft.facts, draft.config, draft.device)
    return f'<p class="q-small" id="q-ready-otherwise">{escape(" ".join(said))}</p>' if said else ""


def _beyond(draft: Draft) -> str:
    words = beyond_context(draft)
    if not words:
        return ""
    link = go_link("Show", tab_of("data.max_length"), option_by_path()["data.max_length"].dom_id)
    return f'<p class="q-note q-note-warn q-small" id="q-ready-beyond">{escape(words)} {link}</p>'


def _broken_off(draft: Draft) -> str:
    """A warning where many answers lose their end, as after a longest conversation that was set for speed."""
    tokens = draft.report.tokens if draft.report is not None else None
    num_cut, num_rows = (tokens or {}).get("answers_cut", 0), draft.num_rows or 0
    if not num_rows or num_cut < MANY_CUT * num_rows or draft.config is None or draft.config.data.too_long == "drop":
        return ""
    limit = format_count(draft.config.data.max_length)
    lose = f"{format_count(num_cut)} of {format_count(num_rows)} rows lose their" if num_rows > 1 else "The row loses its"
    words = f"{lose} answer's end at {limit} tokens: the model would learn to break off."
    return f'<p class="q-note q-note-warn q-small" id="q-ready-cut">{escape(words)} {go_link("Show", "data", "q-verdict")}</p>'


def _warmup(draft: Draft) -> str:
    """A warning where the run ends before its learning rate has risen."""
    if draft.config is None or draft.duration is None or not (words := warmup_words(draft.config, draft.duration.num_steps)):
        return ""
    link = go_link("Show", tab_of("train.warmup"), option_by_path()["train.warmup"].dom_id)
    return f'<p class="q-note q-note-warn q-small" id="q-ready-warmup">{escape(words)} {link}</p>'


def _disk(draft: Draft) -> str:
    """A warning where the disk may not hold what the run saves."""
    if draft.memory is None or draft.config is None or draft.free_disk_bytes is None:
        return ""
    needed, free = saved_bytes(draft.memory, draft.config), draft.free_disk_bytes
    if needed <= free:
        return ""
    words = f"This run may need up to {format_bytes(needed)} of the disk, which has {format_bytes(free)} left. Free some space first."
    return f'<p class="q-note q-note-warn q-small" id="q-ready-disk">{escape(words)}</p>'


def _missing(draft: Draft) -> str:
    if draft.problems:
        items = "".join(f"<li>{_problem(problem)}</li>" for problem in draft.problems)
        return f'<ul class="q-problems" id="q-ready-problems">{items}</ul>'
    if draft.fits is False:
        link = go_link("Make it fit", "recipe", "q-make-it-fit")
        present = draft.device.is_present
        what = "It will not fit." if present else f"It would not fit {draft.device.name}."
        why = "Start would end for lack of memory. " if present else ""
        return f'<ul class="q-problems"><li><strong>{escape(what)}</strong> {why}{link}</li></ul>'
    return ""


def _problem(problem: Problem) -> str:
    path = ".".join(problem.where.split(".")[:2])
    option = option_by_path().get(path)
    what = prose(sentence_case(problem.what.rstrip(".")))
    rest = sentences(problem.why, problem.fix)
    link = ""
    if option is not None and tab_of(path):
        link = " " + go_link("Show", tab_of(path), option.dom_id)
    return f"<strong>{what}.</strong> {prose(rest)}{link}"


def _steps(draft: Draft) -> str:
    """State of each tab, from which CSS draws ticks and marks on the tab buttons."""
    marks = []
    for step in STEPS:
        wrong = any(tab_of(".".join(problem.where.split(".")[:2])) == step for problem in draft.problems)
        waits = step == "data" and draft.is_reading
        state = "problem" if wrong else "open" if waits else "done"
        marks.append(_step(step, state))
    return "".join(marks)


def _step(step: str, state: str) -> str:
    return f'<i class="q-step" data-step="{step}" data-state="{state}" hidden></i>'
