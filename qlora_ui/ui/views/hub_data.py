"""Datasets of the Hub before they are downloaded: what a search found, subsets and splits of one, its first rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import format_bytes, format_count
from qlora_ui.data.hub import HubDataset, HubSplits
from qlora_ui.ui.action import act_button
from qlora_ui.ui.handler import refused_html
from qlora_ui.ui.markup import escape, middle_cut

SHOWN_ROWS = 5
SHOWN_COLUMNS = 8
CELL_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class HubLook:
    """A dataset that the user looks at, with the subset and split that are chosen."""

    splits: HubSplits
    subset: str
    split: str
    rows: Sequence[Mapping[str, Any]] = ()
    refusal: DataError | None = None
    """Why its first rows cannot be shown."""


def found_html(datasets: Sequence[HubDataset], text: str) -> str:
    """What a search of the Hub found, each to be looked at with one press."""
    if not datasets:
        return f'<p class="q-small" role="status">No dataset on the Hub has “{escape(text)}” in its name.</p>'
    rows = []
    for found in datasets:
        gate = '<span class="q-chip">asks for access</span>' if found.is_gated else ""
        rows.append(
            f'<li><button type="button" class="q-row-button" data-act="hub-look" data-id="{escape(found.id)}">'
            f'<span class="q-row-name">{escape(found.id)}</span>'
            f'<span class="q-small q-num">{escape(format_count(found.downloads))} downloads</span>'
            f'<span class="q-small">{escape(found.licence)}</span>{gate}</button></li>'
        )
    return f'<ul class="q-rows" aria-label="Datasets found">{"".join(rows)}</ul>'


def look_html(look: HubLook) -> str:
    """One dataset: licence, size, pickers of subset and split, the first rows, and the button that takes it."""
    splits = look.splits
    size = splits.num_bytes(look.subset, look.split)
    about = [splits.licence or "licence not stated", f"{format_bytes(size)} to download" if size else ""]
    if splits.is_gated:
        about.append("its owners ask for access before a download")
    pickers = _picker("Subset", "hub-subset", splits.subsets, look.subset) + _picker(
        "Split", "hub-split", splits.subsets[look.subset], look.split
    )
    use = act_button("Use this dataset", "hub-use", splits.id, look="primary", echo="Adding")
    return (
        f'<section class="q-hub-look" aria-label="{escape(splits.id)}"><h3 class="q-h3">{escape(middle_cut(splits.id, 60))}</h3>'
        f'<p class="q-small">{escape(" · ".join(filter(None, about)))}</p><div class="q-source-mix">{pickers}</div>'
        f'{_rows(look)}<div class="q-buttons">{use}</div></section>'
    )


def _picker(label: str, action: str, names: Iterable[str], chosen: str) -> str:
    options = "".join(f'<option value="{escape(name)}"{" selected" if name == chosen else ""}>{escape(name)}</option>' for name in names)
    return f'<label>{label}<select data-change="{action}">{options}</select></label>'


def _rows(look: HubLook) -> str:
    if look.refusal is not None:
        return refused_html(look.refusal)
    if not look.rows:
        return '<p class="q-small">This split has no rows to show.</p>'
    rows = look.rows[:SHOWN_ROWS]
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    head = "".join(f'<th scope="col">{escape(middle_cut(column, 40))}</th>' for column in columns[:SHOWN_COLUMNS])
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(column))}</td>" for column in columns[:SHOWN_COLUMNS]) + "</tr>" for row in rows)
    more = f", {len(columns) - SHOWN_COLUMNS} more columns" if len(columns) > SHOWN_COLUMNS else ""
    caption = f"The first rows{more}. Nothing is downloaded yet."
    return (
        f'<p class="q-small">{caption}</p><div class="q-hub-rows" tabindex="0" role="region" aria-label="First rows">'
        f'<table class="q-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return escape(text if len(text) <= CELL_CHARACTERS else text[:CELL_CHARACTERS] + "…")
