"""The Model tab: cards of what can be chosen, facts of the chosen one, what 4-bit does to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ui.base.units import format_bytes, format_count, format_duration, format_percent
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.quantization import Explanation
from qlora_ui.models.catalogue import ModelEntry
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.hub import HubModel
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.action import act_button
from qlora_ui.ui.downloads import Download
from qlora_ui.ui.handler import problems_html
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.theme import part_colour
from qlora_ui.ui.views.memory_bar import Segment, bar_html, fit_word

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

KINDS = {"builtin": "comes with the app", "folder": "folder", "hub": "downloaded", "known": "on the Hub"}

FOR_A_TRY = "Made for a first try: it is tiny, speaks English only and knows little. For real use pick a larger one below."


def cards_html(draft: Draft, entries: Sequence[ModelEntry]) -> str:
    """A card for each model: name, size, licence, and whether it fits for training with the recipe as it is."""
    chosen = draft.model_id
    cards = "".join(_card(draft, entry, entry.id == chosen) for entry in entries)
    return f'<div class="q-cards" role="radiogroup" aria-label="Models on this computer">{cards}</div>'


def known_html(draft: Draft, models: Sequence[tuple[str, ModelFacts]]) -> str:
    """Models of the Hub whose shape is known without asking, with the same verdict."""
    chosen = draft.model_id
    rows = "".join(
        f'<li{_chosen(model_id == chosen)}><button type="button" class="q-row-button" data-act="choose" data-id="{escape(model_id)}">'
        f'<span class="q-row-name">{escape(model_id)}</span><span class="q-small q-num">{escape(_size_and_time(draft, facts))}</span>'
        f"{fit_chip(draft, facts)}</button></li>"
        for model_id, facts in models
    )
    head = (
        '<h3 class="q-h3">Well-known models</h3><p class="q-small">Parameters, about how long a run takes, and whether it fits: with '
        "recipe and data as they are, on what “Predict for” names. Pick one to see what it needs.</p>"
    )
    return f'{head}<ul class="q-rows">{rows}</ul>' if rows else ""


def found_html(models: Sequence[HubModel], text: str) -> str:
    """What a search of the Hub found."""
    if not models:
        return f'<p class="q-small">Nothing on the Hub that this app can train has “{escape(text)}” in its name.</p>'
    rows = []
    for model in models:
        size = format_count(model.num_params) if model.num_params else ""
        gate = '<span class="q-chip">asks for access</span>' if model.is_gated else ""
        rows.append(
            f'<li><button type="button" class="q-row-button" data-act="choose" data-id="{escape(model.id)}">'
            f'<span class="q-row-name">{escape(model.id)}</span><span class="q-small q-num">{escape(size)}</span>'
            f'<span class="q-small">{escape(model.licence)}</span>{gate}</button></li>'
        )
    return f'<ul class="q-rows">{"".join(rows)}</ul>'


def facts_html(draft: Draft, entry: ModelEntry | None, download: Download | None, *, is_missing: bool, kept: str = "") -> str:
    """What is known of the chosen model, how to get it where it `is_missing` on this computer, and what it takes where it is `kept`."""
    model_id = draft.model_id
    if draft.problems_of("model.id"):
        return ""  # said beside the control
    facts = draft.facts
    getting = _getting(model_id, entry, download) if is_missing else ""
    if facts is None:
        about = '<p class="q-sub">Nothing is known of it yet. Its configuration comes with the download, a few kilobytes first.</p>'
        return f'<div class="q-facts-card"><h3 class="q-h3">{escape(model_id)}</h3>{about}{getting}{kept}</div>'
    head = f'<h3 class="q-h3">{escape(_title(model_id, entry))}</h3>'
    if entry is not None and entry.kind == "builtin":
        head += f'<p class="q-sub">{FOR_A_TRY}</p>'
    return f'<div class="q-facts-card">{head}{_facts_list(facts, entry)}{getting}{kept}</div>'


def download_html(download: Download | None) -> str:
    """Progress of a download with Cancel, or how it ended."""
    if download is None:
        return ""
    if download.state == "failed":
        return f'<div role="alert">{problems_html(download.problems)}</div>'
    if download.state != "running":
        return f'<p class="q-small" role="status">{escape(download.what)}</p>'
    width = f"{100 * download.share:.0f}%" if download.share is not None else "100%"
    kind = "" if download.share is not None else " q-progress-open"
    return (
        f'<div class="q-download"><div class="q-progress{kind}" role="progressbar" aria-label="Download" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{round(100 * (download.share or 0))}"><i style="width:{width}"></i></div>'
        f'<span class="q-small">{escape(download.what)}</span>{act_button("Cancel", "cancel-download")}</div>'
    )


def quantization_html(explanation: Explanation | None) -> str:
    """What 4-bit does to this very model: one bar for each way to keep it."""
    if explanation is None:
        return '<p class="q-small">Shown once the shape of the model is known.</p>'
    whole = max(row.total_bytes for row in explanation.rows)
    rows = []
    for row in explanation.rows:
        segments = [
            Segment("Linear layers", row.layers_bytes, part_colour("weights_4bit"), True),
            Segment("Embeddings, norms", row.rest_bytes, part_colour("weights_16bit"), True),
        ]
        rows.append(
            f'<li><div class="q-quant-head"><strong>{escape(row.name)}</strong>'
            f'<span class="q-small q-num">{row.bits_per_weight:.2f} bits a weight</span>'
            f'<span class="q-num q-quant-size">{escape(format_bytes(row.total_bytes))}</span></div>{bar_html(segments, whole)}'
            f'<p class="q-small">{escape(row.about)}</p></li>'
        )
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in explanation.sentences)
    key = (
        f'<p class="q-key"><span><i class="q-swatch" style="--c:{part_colour("weights_4bit")}"></i> linear layers</span>'
        f'<span><i class="q-swatch" style="--c:{part_colour("weights_16bit")}"></i> embeddings and norms, always 16 bits</span></p>'
    )
    return f'<div class="q-sub">{words}</div>{key}<ul class="q-quant">{"".join(rows)}</ul>'


def fit_chip(draft: Draft, facts: ModelFacts | None) -> str:
    """fits, tight or too large, for training this model with the settings on the page."""
    if facts is None:
        return ""
    config = draft.config or RunConfig()
    size = estimate_memory(facts, config, draft.device, draft.shape).total_bytes
    words, kind = fit_word(size, draft.device)
    title = f"Training needs about {format_bytes(size)} with this recipe; {format_bytes(draft.device.free_bytes)} are free"
    return f'<span class="q-chip q-chip-{kind}" title="{escape(title)}">{escape(words)}</span>'


def _size_and_time(draft: Draft, facts: ModelFacts) -> str:
    """Parameters, and about how long the run would take: what fits the memory of a computer without a card may take it days."""
    size, shape = format_count(facts.num_params), draft.shape
    if draft.config is None or shape is None:
        return size
    duration = estimate_duration(facts, draft.config, draft.device, shape.num_rows, shape.mean_tokens)
    return f"{size} · {format_duration(duration.total_s)}"


def _card(draft: Draft, entry: ModelEntry, is_chosen: bool) -> str:
    size = format_bytes(entry.size_bytes) if entry.size_bytes else ""
    params = f"{format_count(entry.facts.num_params)} parameters" if entry.facts is not None else ""
    licence = entry.facts.licence if entry.facts is not None else ""
    small = " · ".join(part for part in (params, size, licence, KINDS[entry.kind]) if part)
    words = "Not whole: choose it, and a download brings the rest." if entry.is_begun else entry.problem
    problem = f'<span class="q-card-problem">{escape(words)}</span>' if words else ""
    return (
        f'<button type="button" class="q-pick" role="radio" aria-checked="{"true" if is_chosen else "false"}" data-act="choose" '
        f'data-id="{escape(entry.id)}"{" disabled" if entry.problem and not entry.is_begun else ""}>'
        f'<span class="q-pick-name">{escape(middle_cut(entry.title, 44))}</span>'
        f'<span class="q-small q-num">{escape(small)}</span>{problem}<span>{fit_chip(draft, entry.facts)}</span></button>'
    )


def _title(model_id: str, entry: ModelEntry | None) -> str:
    return entry.title if entry is not None else middle_cut(model_id, 60)


def _facts_list(facts: ModelFacts, entry: ModelEntry | None) -> str:
    template = {True: "yes", False: "no: choose one under Advanced", None: "not known yet"}[facts.has_chat_template]
    heads = f"{facts.num_heads}" if facts.num_heads == facts.num_kv_heads else f"{facts.num_heads}, sharing {facts.num_kv_heads} keys"
    quantized = facts.num_quantized_params
    rows = [
        ("Parameters", format_count(facts.num_params)),
        ("Of them in 4 bits", f"{format_count(quantized)} ({format_percent(quantized / facts.num_params)})"),
        ("Layers", f"{facts.num_layers} of width {facts.hidden_size}"),
        ("Attention heads", heads),
        ("Vocabulary", f"{format_count(facts.vocab_size)} tokens"),
        ("Context", f"{format_count(facts.context_tokens)} tokens"),
        ("Chat template", template),
        ("Licence", facts.licence or "not stated"),
        ("Architecture", facts.architecture or facts.model_type),
    ]
    if entry is not None and entry.kind == "folder" and entry.folder is not None:
        rows.append(("Folder", middle_cut(str(entry.folder), 52)))
    return '<dl class="q-facts q-facts-two">' + "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in rows) + "</dl>"


def _getting(model_id: str, entry: ModelEntry | None, download: Download | None) -> str:
    if download is not None and download.model_id == model_id and download.state == "running":
        return ""
    where = "Only a part of it is on this computer" if entry is not None and entry.is_begun else "Not on this computer yet"
    return (
        f'<div class="q-getting"><span class="q-small">{where}. Start downloads it by itself, or do it now.</span>'
        f"{act_button('Download', 'download', model_id)}</div>"
    )


def _chosen(is_chosen: bool) -> str:
    return ' class="q-chosen"' if is_chosen else ""
