"""Runs side by side: results first, then settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qlora_ui.base.units import format_bytes, format_count, format_duration
from qlora_ui.runs.listing import RunRow, compare
from qlora_ui.settings.run_config import RunConfig, label_of
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.words import STATUS_WORDS, describe_model, setting_words

_LEFT_OUT = {"output.name", "output.notes", "output.tags"}

Reader = Callable[[RunRow], str]
RESULTS: tuple[tuple[str, Reader], ...] = (
    ("State", lambda row: STATUS_WORDS[row.status]),
    ("Model", lambda row: describe_model(row.model, 36)),
    ("Steps", lambda row: f"{row.step:,}" + (f" of {row.num_steps:,}" if row.num_steps else "")),
    ("Best loss on held-back rows", lambda row: f"{row.best_eval_loss:.3g}" if row.best_eval_loss is not None else "–"),
    ("Last training loss", lambda row: f"{row.final_loss:.3g}" if row.final_loss is not None else "–"),
    ("Memory, measured", lambda row: format_bytes(row.measured_bytes) if row.measured_bytes else "–"),
    ("Memory, predicted", lambda row: format_bytes(row.predicted_bytes) if row.predicted_bytes else "–"),
    ("Tokens/s", lambda row: format_count(row.tokens_per_s) if row.tokens_per_s else "–"),
    ("Time", lambda row: format_duration(row.elapsed_s) if row.elapsed_s else "–"),
)


def comparison_html(rows: Sequence[RunRow], configs: Sequence[RunConfig | None], *, only_different: bool) -> str:
    """Results and settings of two to four runs as a table; settings that are equal are left out with `only_different`."""
    heads = "".join(
        f'<th scope="col"><span class="q-run-key q-c{place}">{_line(place)}</span> {escape(row.name)}</th>'
        for place, row in enumerate(rows)
    )
    body = [_line_of(label, [read(row) for row in rows]) for label, read in RESULTS]
    known = [config for config in configs if config is not None]
    settings = compare(known[0], *known[1:], only_different=only_different) if len(known) == len(rows) else []
    lines = []
    for path, values in settings:
        if path not in _LEFT_OUT:
            lines.append(_line_of(label_of(path), [setting_words(value) for value in values]))
    box = (
        f'<label class="q-switcher"><input type="checkbox" data-change="only-different"{" checked" if only_different else ""}> '
        "Differences only</label>"
    )
    none = f'<tr><td colspan="{len(rows) + 1}" class="q-small">The settings are the same.</td></tr>' if not lines else ""
    clear = act_button("Clear the choice", "clear", look="quiet", show="runs-table")
    settings_head = f'<thead><tr><th scope="col" colspan="{len(rows) + 1}">Settings {box}</th></tr></thead>'
    table = (
        f'<table class="q-table" style="--q-runs:{len(rows)}">'
        f'<thead><tr><th scope="col">Result</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"{settings_head}<tbody>{''.join(lines)}{none}</tbody></table>"
    )
    return (
        f'<section class="q-card q-compare"><div class="q-run-top"><h2 class="q-h2">Side by side</h2>{clear}</div>'
        f'<div class="q-scroll" tabindex="0" role="region" aria-label="Comparison">{table}</div></section>'
    )


def _line(place: int) -> str:
    return f'<svg width="22" height="8" aria-hidden="true"><path class="q-line q-line-line q-c{place} q-run{place}" d="M0 4H22"/></svg>'


def _line_of(label: str, values: Sequence[str]) -> str:
    differs = len(set(values)) > 1
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    mark = ' class="q-differs"' if differs else ""
    return f'<tr{mark}><th scope="row">{escape(label)}</th>{cells}</tr>'
