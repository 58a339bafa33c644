"""The Data tab: the chosen sources, the verdict with its findings, the columns and what they mean."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ui.base.errors import sentences
from qlora_ui.base.units import KIB, format_bytes, format_count, format_duration
from qlora_ui.data.detect import MAP_COLUMNS
from qlora_ui.data.report import DataReport, Finding, SourceReport
from qlora_ui.runs.kept_data import KeptFile
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.settings.source import LABELS
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import end_cut, escape, middle_cut, prose
from qlora_ui.ui.source_list import sources_of
from qlora_ui.ui.views.data_lengths import formats_html, languages_html, lengths_html
from qlora_ui.ui.views.words import TO_TRASH, ago, source_title

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft
    from qlora_ui.ui.inspection import Pending

VERDICTS = {
    "ready": ("Ready", "good", "Every row can be learned from."),
    "look": ("Look at this", "warn", "It can be trained on. Some rows may not do what you expect."),
    "not-trainable": ("Not trainable", "bad", "Something has to change before it can be trained on."),
}
SEVERITIES = {"error": ("■", "Stops training", "bad"), "warning": ("▲", "Worth a look", "warn"), "note": ("●", "Good to know", "note")}
SHOWN_KEPT = 50
ALL_OUT = "Leave out all rows that are named here"
_OF_CONTENT = re.compile("[0-9a-f]{8}")
"""The folder of a file that the workspace keeps, named by its content."""
ROLES = (("", "not used"), ("user", "question"), ("assistant", "answer"), ("system", "system prompt"), ("thinking", "thinking"))


def sources_html(sources: Sequence[Mapping[str, Any]], report: DataReport | None) -> str:
    """The chosen datasets, each with its weight, its slice and a way to take it off."""
    if not sources:
        return '<div class="q-empty"><h2>No dataset yet</h2>Take the built-in one, upload a file, or name a path or a Hub id below.</div>'
    several = len(sources) > 1
    titles = Counter(source_title(str(source.get("id", ""))) for source in sources)
    rows = "".join(_source(number, source, report, several, titles) for number, source in enumerate(sources))
    return f'<ul class="q-sources">{rows}</ul>'


def kept_html(files: Sequence[KeptFile], chosen: Sequence[Mapping[str, Any]]) -> str:
    """The data files of the workspace and downloaded datasets, each with a way to choose it and to delete it."""
    if not files:
        words = "Uploads, pasted rows, corrected versions and downloads are listed here: they are kept until you delete them."
        return f'<p class="q-small">{words}</p>'
    ids = {str(source.get("id", "")) for source in chosen}
    rows = "".join(_kept(file, is_chosen=file.id in ids) for file in files[:SHOWN_KEPT])
    rest = f'<p class="q-small">and {len(files) - SHOWN_KEPT:,} older ones</p>' if len(files) > SHOWN_KEPT else ""
    return f'<ul class="q-sources">{rows}</ul>{rest}'


def verdict_html(draft: Draft) -> str:
    """Whether it can be trained on, why it was read as it was, counts, and the findings with their fixes."""
    report = draft.report
    if report is None:
        return _without_report(draft)
    words, kind, about = VERDICTS[report.verdict]
    tokens = _token_line(draft, report)
    repeated, unusable = _repeated_fixes(report.findings), num_unusable(report.findings)
    findings = "".join(
        _finding(finding, unusable, is_one_of=len(report.sources) > 1, has_fix=number not in repeated)
        for number, finding in enumerate(report.findings)
    )
    is_sliced = draft.config is not None and any(source.rows for source in draft.config.data.sources)
    of_all = '<p class="q-small">What is found is said of whole files, not only of the rows that you chose.</p>' if is_sliced else ""
    at_once = f'<div class="q-finding-do">{act_button(ALL_OUT, "fix-all", echo="Changing …")}</div>' if len(drops(report)) > 1 else ""
    listed = f'{of_all}{at_once}<ul class="q-findings">{findings}</ul>' if findings else ""
    label = option_by_path()["data.format"].meta.choices.get(report.format)
    form = f"in the format “{label}”" if label else "in several formats"
    counted = f"{format_count(report.num_rows)} {'row' if report.num_rows == 1 else 'rows'} {form}."
    return (
        f'<div class="q-verdict"><span class="q-chip q-chip-{kind} q-verdict-pill" role="status" id="q-verdict">{escape(words)}</span>'
        f'<p class="q-sub">{escape(about)}</p><p class="q-small"><strong>{escape(counted)}</strong> '
        f"{prose(report.why)}</p>{tokens}{_problems(draft)}{listed}"
        f"{lengths_html(draft, report)}{languages_html(report, draft.model_id)}{formats_html(report)}</div>"
    )


def columns_html(draft: Draft, mapping: Mapping[str, str]) -> str:
    """The columns of the dataset that is mapped, a value of each, and what each means; a choice changes the mapping."""
    peek = draft.peek.answer if draft.peek is not None and draft.peek.is_done else None
    if peek is None or not peek.columns or draft.mapped is None:
        return '<p class="q-small">The columns of your own dataset are listed here once one is chosen.</p>'
    report, mapped = draft.report, draft.mapped
    form = next((file.format for file in (report.sources if report is not None else ()) if file.source == mapped.id), "columns")
    used = mapping or (peek.guess if form == "columns" else {})
    role_of = {column: role for role, column in used.items()}
    first = peek.rows[0] if peek.rows else {}
    rows = "".join(_column(column, str(first.get(column, "")), role_of.get(column, "")) for column in peek.columns)
    labels = option_by_path()["data.format"].meta.choices
    label, columns = labels.get(form, ""), labels["columns"]
    about = "" if form == "columns" else f"Recognised as {label}: nothing needs mapping. "
    of = f"Columns of {source_title(mapped.id)}. " if draft.has_several else ""
    return (
        '<table class="q-table q-columns"><thead><tr><th>Column</th><th>First value</th><th>Is the</th></tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="q-small">{escape(of + about)}'
        f"Choosing here switches the format to “{columns}”.</p>"
    )


def needs_mapping(draft: Draft) -> bool:
    """Whether nothing but a word on the columns of the user's file is missing."""
    problems = draft.problems_of("data.sources") + draft.problems_of("data.mapping")
    return draft.report is None and draft.peek is not None and any(problem.fix.startswith(MAP_COLUMNS) for problem in problems)


def _without_report(draft: Draft) -> str:
    inspection = draft.inspection
    if inspection is not None and not inspection.is_done:
        return f'<div class="q-verdict" aria-busy="true">{_progress(inspection, "q-reading")}</div>'
    if inspection is not None and inspection.is_stopped:
        again = act_button("Read them", "read-again", look="primary", echo="Reading")
        words = "You stopped it. Files that were downloaded whole are kept."
        return (
            '<div class="q-verdict"><span class="q-chip q-verdict-pill" role="status" id="q-verdict">Not read</span>'
            f'<p class="q-small">{words}</p><div class="q-finding-do">{again}</div></div>'
        )
    problems = draft.problems_of("data.sources") or draft.problems_of("data.mapping")
    if problems and sources_of(draft.values.get("data.sources")):
        items = "".join(f"<p>{prose(_sentence(problem.what, problem.why, problem.fix))}</p>" for problem in problems)
        if needs_mapping(draft):
            items += '<p><a class="q-link" href="#q-columns">Say what the columns are</a></p>'
        pill = '<span class="q-chip q-chip-bad q-verdict-pill" role="status" id="q-verdict">Not trainable</span>'
        return f'<div class="q-verdict">{pill}<div class="q-note q-note-bad">{items}</div></div>'
    return '<div class="q-empty"><h2>The verdict comes here</h2>Choose a dataset: its rows are read and checked at once.</div>'


def _progress(pending: Pending[Any], elem_id: str) -> str:
    """What is being done, how far it is, how long it takes still, and the button that stops it."""
    share = pending.share
    bar = (
        f'<div class="q-progress" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div>'
        if share is not None
        else '<div class="q-progress q-progress-open"><i style="width:100%"></i></div>'
    )
    left = pending.seconds_left()
    parts = [pending.what or "Reading", f"{100 * share:.0f} %" if share is not None else ""]
    parts.append(f"about {format_duration(max(left, 1))} left" if left is not None else "")
    words = escape(" · ".join(filter(None, parts)))
    stop = act_button("Cancel", "stop-reading", look="quiet", title="Cancel reading", echo="Stopping")
    return f'<div class="q-getting" id="{elem_id}"><p class="q-small q-num">{words}</p>{bar}{stop}</div>'


def _problems(draft: Draft) -> str:
    """What the engine says stands in the way (no chat template, no tokenizer) beside what the rows say."""
    pending = draft.look
    if pending is None or not pending.problems:
        return ""
    items = "".join(f"<p>{prose(_sentence(problem.what, problem.why, problem.fix))}</p>" for problem in pending.problems)
    return f'<div class="q-note q-note-bad">{items}</div>'


def _token_line(draft: Draft, report: DataReport) -> str:
    tokens = report.tokens
    if tokens:
        total = f"{format_count(tokens['total'])} tokens in all, " if "total" in tokens else ""
        return (
            f'<p class="q-small q-num">{escape(total)}{format_count(tokens["mean"])} tokens a row on average.</p>'
            if "mean" in tokens
            else ""
        )
    look = draft.look
    if look is not None and look.is_stopped:
        again = act_button("Count them", "read-again", look="link", echo="Counting")
        return f'<p class="q-small" id="q-counting">Tokens were not counted: you stopped it. {again}</p>'
    if look is not None and not look.is_done:
        # Files are read a second time on the way; to the user all of it is the counting of tokens.
        if look.seconds_left() is None:
            return '<p class="q-small" id="q-counting">Counting tokens</p>'
        return _progress(look, "q-counting")
    return ""


def _folder_words(source_id: str) -> str:
    """Where a file lies that has another one's name; what the workspace keeps lies in a folder that says nothing to its owner."""
    folder = Path(source_id).parent.name
    return "kept copy" if _OF_CONTENT.fullmatch(folder) else f"in {middle_cut(folder, 30)}"


def _source(number: int, source: Mapping[str, Any], report: DataReport | None, several: bool, titles: Mapping[str, int]) -> str:
    source_id = str(source.get("id", ""))
    title = source_title(source_id)
    folder = _folder_words(source_id) if titles[title] > 1 and _is_path(source_id) else ""
    about = " · ".join(filter(None, (folder, _part_of(source), _about(source_id, report))))
    weight = (
        f'<label>{LABELS["weight"]}<input type="number" min="0.01" max="1000" step="any" value="{escape(source.get("weight", 1))}" '
        f'data-change="weight" data-id="{number}"></label>'
        if several
        else ""
    )
    rows = (
        f'<label>{LABELS["rows"]}<input type="text" class="q-source-rows" placeholder="all, or first 500" '
        f'value="{escape(source.get("rows", ""))}" data-change="rows" data-id="{number}" title="500, first 500, 100-200 or 20 %"></label>'
    )
    return (
        f'<li class="q-source"><div class="q-source-head"><span class="q-source-name" title="{escape(source_id)}">{escape(title)}</span>'
        f"{act_button('Remove', 'remove', str(number), look='link', title=f'Remove {title}')}</div>"
        f'<span class="q-small">{escape(about)}</span><div class="q-source-mix">{rows}{weight}</div></li>'
    )


def _kept(file: KeptFile, *, is_chosen: bool) -> str:
    name = source_title(file.id)
    words = f"Delete “{name}”? {TO_TRASH}"
    if file.hub_id:
        words = f"Delete “{name}”? It does not go to the trash: you, and other programs that use it, would have to download it again."
    # Of a dataset on the Hub there are subsets and splits to choose from.
    use = "" if is_chosen or file.hub_id else act_button("Use", "use-kept", file.id, look="link", title=f"Use {name}")
    delete = act_button(
        "Delete", "delete-kept", file.id, look="link", title=f"Delete {name}", confirm=words, yes="Delete", no="Keep it", danger="1"
    )
    told = (format_bytes(file.num_bytes), ago(file.kept_at), "from the Hub" if file.hub_id else "", "chosen" if is_chosen else "")
    about = " · ".join(filter(None, told))
    return (
        f'<li class="q-kept-file"><div class="q-source-head"><span class="q-source-name" title="{escape(file.id)}">{escape(name)}</span>'
        f'{use}{delete}</div><span class="q-small q-num">{escape(about)}</span></li>'
    )


def _is_path(source_id: str) -> bool:
    return not source_id.startswith(("hub:", "builtin:"))


def _part_of(source: Mapping[str, Any]) -> str:
    """Subset and split of a dataset on the Hub."""
    if not str(source.get("id", "")).startswith("hub:"):
        return ""
    return ", ".join(filter(None, (str(source.get("config") or ""), str(source.get("split") or ""))))


def _about(source_id: str, report: DataReport | None) -> str:
    mine = [found for found in (report.sources if report is not None else ()) if found.source == source_id]
    if not mine:
        return "comes with the app" if source_id.startswith("builtin:") else ""
    return ", ".join(filter(None, (_counts(mine), _size(mine), "comes with the app" if source_id.startswith("builtin:") else "")))


def _counts(files: Sequence[SourceReport]) -> str:
    usable, seen = sum(file.num_rows for file in files), sum(file.num_seen for file in files)
    rows = "row" if seen == 1 else "rows"
    return f"{format_count(usable)} {rows}" if usable == seen else f"{format_count(usable)} of {format_count(seen)} {rows} usable"


def _size(files: Sequence[SourceReport]) -> str:
    size = sum(file.num_bytes for file in files)
    return format_bytes(size) if size >= KIB else ""


def _repeated_fixes(findings: Sequence[Finding]) -> set[int]:
    """Places of the findings whose fix sets an option as an earlier one's does: one button of each kind is enough."""
    settings = [json.dumps(found.fix_action) if (found.fix_action or {}).get("action") == "set" else "" for found in findings]
    return {place for place, setting in enumerate(settings) if setting and setting in settings[:place]}


def _finding(finding: Finding, unusable: int, *, is_one_of: bool, has_fix: bool = True) -> str:
    sign, words, kind = SEVERITIES[finding.severity]
    can_show = bool(finding.rows) and finding.is_read
    show = act_button("Show the row", "show-row", str(finding.rows[0]), look="link", source=finding.source) if can_show else ""
    fix = (
        act_button(fix_words(finding, unusable), "fix", finding.code, source=finding.source, echo="Changing …")
        if finding.fix_action and has_fix
        else ""
    )
    rest = sentences(finding.why, finding.fix)
    of = f'<span class="q-finding-rest">{escape(middle_cut(finding.source, 40))}:</span> ' if is_one_of and finding.source else ""
    return (
        f'<li class="q-finding q-finding-{kind}"><span class="q-finding-sign" title="{words}" role="img" aria-label="{words}">{sign}</span>'
        f'<div>{of}<strong>{prose(finding.what.rstrip("."))}.</strong> <span class="q-finding-rest">{prose(rest)}</span>'
        f'<div class="q-finding-do">{fix}{show}</div></div></li>'
    )


def drops(report: DataReport) -> list[Finding]:
    """The findings whose rows can be left out."""
    return [finding for finding in report.findings if (finding.fix_action or {}).get("action") == "drop"]


def num_unusable(findings: Sequence[Finding]) -> int:
    """Rows that became no conversation: a new version of the data cannot hold them, whatever it is made for."""
    return sum(found.count for found in findings if not found.is_read and (found.fix_action or {}).get("action") == "drop")


def fix_words(finding: Finding, unusable: int) -> str:
    """What the button of a fix says, beside so many rows in all that a new version of the data leaves out anyway."""
    action = finding.fix_action or {}
    also = f", and {unusable:,} unusable" if unusable and finding.is_read else ""
    if action.get("action") == "drop":
        if not finding.is_read and unusable > finding.count:
            return f"Leave out all {unusable:,} rows that cannot be used"
        return f"Leave {'these rows' if finding.count != 1 else 'this row'} out{also}"
    if action.get("action") == "mask-email":
        return f"Mask the addresses{also.replace(', and', ', leave out')}"
    option = option_by_path().get(str(action.get("path", "")))
    if option is not None and isinstance(action.get("value"), bool):
        return f"Turn {'on' if action['value'] else 'off'} “{option.meta.label}”"
    if option is not None:
        return f"Set “{option.meta.label}” to {option.meta.choices.get(action.get('value', ''), action.get('value'))}"
    return "Fix it"


def _column(column: str, value: str, role: str) -> str:
    options = "".join(f'<option value="{value}"{" selected" if value == role else ""}>{escape(words)}</option>' for value, words in ROLES)
    cells = f'<td class="q-mono">{escape(middle_cut(column, 40))}</td><td>{escape(end_cut(value, 90))}</td>'
    return (
        f'<tr>{cells}<td><select data-change="map" data-id="{escape(column)}" '
        f'aria-label="{escape(f"Meaning of {column}")}">{options}</select></td></tr>'
    )


def _sentence(*parts: str) -> str:
    # A sentence that begins with the name of a file keeps the name as it is.
    return sentences(*(part if "." in part.split(":")[0] else part[:1].upper() + part[1:] for part in parts))
