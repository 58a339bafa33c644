"""The list of runs as a person reads it, and one run's settings, log and notes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from qlora_ui.base.units import format_bytes, format_duration, format_percent
from qlora_ui.runs.listing import RunRow
from qlora_ui.runs.run_dir import Status
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import end_cut, escape, go_link
from qlora_ui.ui.views.ready import data_title
from qlora_ui.ui.views.words import TO_TRASH, ago, fold, model_title, part_words, setting_words, source_words, status_chip

PAGE_ROWS = 25
MOST_PICKED = 4
SHOWN_DIFFERENCES = 3
MOST_ROWS = 200
MOST_LETTERS = 160
_rows: OrderedDict[tuple[RunRow, bool, str, str, str, frozenset[str]], str] = OrderedDict()
_NOT_A_DIFFERENCE = {"model.id", "model.revision", "data.sources", "output.name", "output.notes", "output.tags"}

EMPTY = (
    '<div class="q-empty"><h2>No runs yet</h2><p>Every run that you start is kept here, with its settings, curves and result, '
    "until you delete it.</p></div>"
)


def found(rows: Sequence[RunRow], query: str, state: str) -> list[RunRow]:
    """The rows whose name, model, tags, notes or id hold every word of `query` and that are in `state` (empty: any)."""
    words = query.lower().split()
    kept = []
    for row in rows:
        if state and row.status.value != state and not (state == "live" and row.status.is_live):
            continue
        text = " ".join((row.name, row.model, row.id, row.notes, *row.tags)).lower()
        if all(word in text for word in words):
            kept.append(row)
    return kept


def reading_html(num_unread: int) -> str:
    """That some runs are still missing in the list; empty where none is."""
    return f'<p class="q-small q-num" role="status">Reading earlier runs: {num_unread:,} to go</p>' if num_unread else ""


def picked_html(number: int) -> str:
    """How many runs are ticked and where they are compared: above the list, which is longer than a screen. Empty where none is."""
    if not number:
        return ""
    show = go_link("Show them side by side", "runs", "runs-compare") if number > 1 else "Tick another to lay them side by side."
    clear = act_button("Clear", "clear", look="link")
    return f'<div class="q-picked-bar" role="status"><b class="q-num">{number} ticked</b> {show} {clear}</div>'


def table_html(
    rows: Sequence[RunRow],
    configs: Mapping[str, RunConfig | None],
    picked: Collection[str],
    *,
    page: int,
    num_found: int,
    num_all: int,
    needed_by: Mapping[str, str] | None = None,
) -> str:
    """One page of the list; `rows` are those of the page, `configs` their settings.

    `needed_by` says of a run, by its id, which others need it: it is asked about before that is deleted.
    """
    if not num_all:
        return EMPTY
    if not rows:
        return '<div class="q-empty"><h2>Nothing found</h2><p>No run has these words and this state.</p></div>'
    can_pick = len(picked) < MOST_PICKED
    needed = needed_by or {}
    parting = _parting(configs.get(row.id) for row in rows)
    body = "".join(
        _row(row, configs.get(row.id), ago(row.created), _pick_state(row.id in picked, can_pick), needed.get(row.id, ""), parting)
        for row in rows
    )
    head = "".join(
        f'<th scope="col"{f" class={css}" if css else ""}>{label}</th>'
        for label, css in (
            ('<span class="q-sr">Compare</span>', "q-col-pick"),
            ("Run", ""),
            ("State", ""),
            ("What differs", ""),
            ("Best loss", "q-col-number"),
            ("Memory", "q-col-number"),
            ("Time", "q-col-number"),
            ("Curve", ""),
            ('<span class="q-sr">More</span>', ""),
        )
    )
    table = f'<table class="q-runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f"{table}{picked_html(len(picked))}{_pages(page, num_found)}"


def _pick_state(is_picked: bool, can_pick: bool) -> str:
    """The attribute of a row's check box."""
    return " checked" if is_picked else "" if can_pick else " disabled"


def _row(row: RunRow, config: RunConfig | None, when: str, pick: str, needed: str, parting: frozenset[str]) -> str:  # noqa: PLR0917
    """Kept, since a page asks for the same rows each second, beside a training. The settings of an id never change."""
    key = (row, config is None, when, pick, needed, parting)
    html = _rows.get(key)
    if html is None:
        html = _rows[key] = _row_html(row, config, when, pick, needed, parting)
        if len(_rows) > MOST_ROWS:
            _rows.popitem(last=False)
    return html


def _row_html(row: RunRow, config: RunConfig | None, when: str, pick: str, needed: str, parting: frozenset[str]) -> str:  # noqa: PLR0917
    tags = "".join(f'<span class="q-tag">{escape(tag)}</span>' for tag in row.tags)
    is_readable = row.status is not Status.UNREADABLE
    menu = _menu(row, needed) if is_readable else ""
    pick = pick if is_readable else " disabled"
    box = f'<input type="checkbox" data-change="pick" data-id="{escape(row.id)}" aria-label="Compare {escape(row.name)}"{pick}>'
    name = act_button(row.name, "open", row.id, look="link") if is_readable else escape(row.name)
    differs = differences_in_words(config, parting) if is_readable else "–"
    data = f"{data_title(config, 28)} · " if config is not None else ""
    where = f"{f'{model_title(row.model, 30)} · ' if row.model else ''}{data}{when}"
    loss = row.best_eval_loss if row.best_eval_loss is not None else row.final_loss
    kind = "" if row.best_eval_loss is not None or loss is None else '<small title="no rows were held back">training</small>'
    progress = f" {format_percent(row.step / row.num_steps)}" if row.status.is_live and row.num_steps else ""
    return (
        f'<tr class="{"q-picked" if pick == " checked" else ""}"><td class="q-col-pick">{box}</td>'
        f'<td class="q-col-name">{name}{tags}<small>{escape(where if is_readable else row.problem)}</small></td>'
        f'<td data-label="State">{status_chip(row.status)}<small class="q-num">{escape(progress)}</small></td>'
        f'<td data-label="What differs" class="q-col-differs">{escape(differs)}</td>'
        f'<td data-label="Best loss" class="q-col-number q-num">{_number(loss)}{kind}</td>'
        f'<td data-label="Memory" class="q-col-number q-num">{escape(format_bytes(row.measured_bytes)) if row.measured_bytes else "–"}</td>'
        f'<td data-label="Time" class="q-col-number q-num">{escape(format_duration(row.elapsed_s)) if row.elapsed_s else "–"}</td>'
        f'<td data-label="Curve">{sparkline(row.sparkline)}</td><td class="q-col-more">{menu}</td></tr>'
    )


def _menu(row: RunRow, needed: str) -> str:
    run, name = row.id, row.name
    entries = [
        act_button("Settings and log", "details", run, look="menu", show="runs-details"),
        act_button("New run from this one", "copy", run, look="menu"),
        act_button("Rename", "rename", run, look="menu", ask="A name for this run", value=name, yes="Rename"),
        act_button("Notes", "notes", run, look="menu", ask="Notes for this run", value=row.notes, long="1", yes="Keep"),
        act_button("Tags", "tags", run, look="menu", ask="Tags, with commas between them", value=", ".join(row.tags), yes="Keep"),
    ]
    if row.can_resume:
        entries.insert(0, act_button("Continue", "resume", run, look="menu"))
    if row.has_adapter or row.has_checkpoint:
        uses = (("Chat with it", "chat"), ("Evaluate it", "evaluate"), ("Take it with you", "export"))
        entries[:0] = [act_button(label, action, run, look="menu") for label, action in uses]
    if not row.status.is_live and row.status is not Status.QUEUED:
        if row.has_adapter and row.has_checkpoint:
            entries.append(_delete_checkpoints(row))
        words = f"Delete “{name}”? {TO_TRASH} {needed}"
        entries.append(act_button("Delete", "delete", run, look="menu", confirm=words.strip(), yes="Delete", no="Keep it", danger="1"))
    return (
        f'<details class="q-menu" data-menu data-key="menu-{escape(run)}">'
        f'<summary id="more-{escape(run)}" aria-label="More for {escape(name)}" title="More">⋯</summary>'
        f'<div class="q-menu-list">{"".join(entries)}</div></details>'
    )


def _delete_checkpoints(row: RunRow) -> str:
    """They hold the optimizer's state as well, and take several times what the adapter does."""
    after = "it can then be continued from its first step only" if row.can_resume else "earlier steps can then not be laid beside it"
    words = f"Delete the checkpoints of “{row.name}”? Its adapter stays, and {after}. They go to the trash, at the end of this tab."
    confirm = {"confirm": words, "yes": "Delete", "no": "Keep them", "danger": "1"}
    return act_button("Delete its checkpoints", "delete_checkpoints", row.id, look="menu", **confirm)


def _parting(configs: Iterable[RunConfig | None]) -> frozenset[str]:
    """The options in which the runs of a list are not all alike."""
    known = [config for config in configs if config is not None]
    return frozenset(path for other in known[1:] for path in known[0].differences(other))


def differences_in_words(config: RunConfig | None, parting: Collection[str] = ()) -> str:
    """What was changed from the defaults: `Adapter size 32, Learning rate 0.001, 2 more`.

    First what the runs of the list part in, which two runs of one preset would hide otherwise, then the settings that people look at first.
    Datasets are named beside the run; here stands what of them was taken, and how they are mixed.
    """
    if config is None:
        return "settings cannot be read"
    options = option_by_path()
    changed = [path for path in config.differences(RunConfig()) if path not in _NOT_A_DIFFERENCE]
    changed.sort(key=lambda path: (path not in parting, options[path].meta.tier != "basic"))
    said = _data_in_words(config.data.sources)
    said += [f"{options[path].meta.label} {setting_words(config.get(path))}" for path in changed[:SHOWN_DIFFERENCES]]
    if len(changed) > SHOWN_DIFFERENCES:
        said.append(f"{len(changed) - SHOWN_DIFFERENCES} more")
    return ", ".join(said) or "nothing, all defaults"


def _data_in_words(sources: Sequence[DataSource]) -> list[str]:
    parts = [source.model_dump() for source in sources]
    if len(parts) > 1:
        return [end_cut("Data " + " + ".join(source_words(source, 20) for source in parts), MOST_LETTERS)]
    return [f"Data {', '.join(told)}" for source in parts if (told := part_words(source))]


def sparkline(values: Sequence[float]) -> str:
    """A curve of a few points without axes, with its first and last value in words."""
    if len(values) < 2:
        return '<span class="q-small">–</span>'
    width, height = 84, 24
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    points = " ".join(
        f"{2 + place * (width - 4) / (len(values) - 1):.1f},{2 + (high - value) / spread * (height - 4):.1f}"
        for place, value in enumerate(values)
    )
    words = f"Loss from {values[0]:.3g} to {values[-1]:.3g}"
    return (
        f'<svg class="q-spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        f'<polyline points="{points}"/></svg>'
    )


def details_html(row: RunRow, config: RunConfig | None, log: str) -> str:
    """Settings as YAML and the end of the log of one run."""
    changed = config.to_yaml(only_changed=True) if config else row.problem or "The settings file cannot be read."
    whole = fold("All settings", f'<pre class="q-code">{escape(config.to_yaml())}</pre>', "all-settings") if config else ""
    notes = f'<p class="q-sub">{escape(row.notes)}</p>' if row.notes else ""
    said = f'<pre class="q-code q-log" tabindex="0">{escape(log)}</pre>' if log else '<p class="q-small">Nothing was logged.</p>'
    copy = f'<button type="button" class="q-button q-button-quiet" data-copy="{escape(changed)}">Copy</button>'
    close = act_button("Close", "details", look="quiet", show=f"more-{row.id}")
    start = act_button("New run from its adapter", "start_from", row.id) if row.has_adapter else ""
    return (
        f'<section class="q-card q-details-card"><div class="q-run-top"><h2 class="q-h2">{escape(row.name)}</h2>'
        f"<span>{start} {act_button('Open', 'open', row.id)} {close}</span></div>{notes}"
        f'<p class="q-small q-mono">{escape(row.id)}</p>'
        f'<div class="q-run-top"><h3 class="q-h3">What differs from the defaults</h3>{copy}</div>'
        f'<pre class="q-code">{escape(changed)}</pre>{whole}<h3 class="q-h3">Log</h3>{said}</section>'
    )


def _pages(page: int, num_found: int) -> str:
    last = max((num_found - 1) // PAGE_ROWS, 0)
    if not last:
        return ""
    newer = act_button("Newer", "page", look="", to=str(page - 1)) if page else ""
    older = act_button("Older", "page", look="", to=str(page + 1)) if page < last else ""
    first = page * PAGE_ROWS + 1
    words = f"{first:,} to {min(first + PAGE_ROWS - 1, num_found):,} of {num_found:,}"
    return f'<div class="q-pages"><span class="q-small q-num">{words}</span>{newer}{older}</div>'


def _number(value: float | None) -> str:
    return f"{value:.3g}" if value is not None else "–"
