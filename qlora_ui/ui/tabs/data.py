"""The Data tab: what the model learns from, whether it can be learned from, and one row as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from qlora_ui.base.errors import DataError, QloraUiError
from qlora_ui.data.fixes import apply_fix
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.controls import make_hidden
from qlora_ui.ui.data_adders import build_adders
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.form import STRUCTURED, as_json
from qlora_ui.ui.handler import QUIET, handler, problems_html
from qlora_ui.ui.hub_data import build_hub_search
from qlora_ui.ui.kept_data import build_kept_data
from qlora_ui.ui.page import Page
from qlora_ui.ui.source_list import changed, edited, parsed, sources_of, with_more
from qlora_ui.ui.undo import Change
from qlora_ui.ui.views import data_report as views
from qlora_ui.ui.views import tokens
from qlora_ui.ui.views.recipe import block_head

STEP_JS = """(row) => {
  const rows = Number(document.querySelector('#q-row [data-rows]')?.dataset.rows) || 1;
  return (Math.min(Math.max(Math.trunc(row) || 1, 1), rows) - 1 + rows + %d) %% rows + 1;
}"""
"""The number of the row before or after, round and round; `_row_html` says how many there are."""


def build(page: Page) -> None:
    """Draw the tab."""
    for path in STRUCTURED:
        page.form.place(path, maker=make_hidden)
    with gr.Column(elem_classes="q-tab"):
        with gr.Row(elem_classes="q-halves"):
            with gr.Column(elem_classes="q-block", min_width=0):
                gr.HTML(block_head("Datasets", "What the model learns from. Several are mixed."), apply_default_css=False)
                sources = live_html("", "q-sources")
                adds = partial(_added, page)
                build_adders(page, adds)
                build_hub_search(page, adds)
                build_kept_data(
                    page,
                    adds,
                    lambda data, gone: _without(page, data, gone),
                    lambda draft: sources_of(draft.values.get("data.sources")),
                )
            with gr.Column(elem_classes="q-block", min_width=0):
                gr.HTML(block_head("Verdict", "Read and checked on this computer; nothing is sent anywhere."), apply_default_css=False)
                verdict = live_html("", "q-verdict-body")
        with gr.Column(elem_classes="q-block"):
            gr.HTML(block_head("One row, as the trainer sees it", "Drawn by the function that training uses."), apply_default_css=False)
            page.form.place("data.train_on", min_width=0)
            picker, row = _row_picker()
            shown = gr.HTML("", elem_id="q-row", apply_default_css=False)
        with gr.Column(elem_classes="q-block"):
            gr.HTML(block_head("Layout", "How a row of a file becomes a conversation."), apply_default_css=False)
            with gr.Accordion("Columns", open=False, elem_classes="q-fold", elem_id="q-columns") as fold:
                columns = live_html("", "q-columns-body")
            with gr.Accordion("Advanced", open=False, elem_classes="q-fold", elem_id="q-advanced-data"), gr.Row(elem_classes="q-grid"):
                for option in page.form.unplaced("data"):
                    page.form.place(option.path, min_width=0)
    _wire_views(page, sources, verdict, columns)
    page.on_form(_columns_fold, [fold])
    page.on_form(lambda draft, number: _row_html(page, draft, number), [shown], [row])
    _wire_actions(page, sources, columns)
    _wire_findings(page, verdict, row)
    _wire_reading(page, verdict)
    _wire_steps(page, picker, row)


def _row_picker() -> tuple[dict[str, gr.Button], gr.Number]:
    with gr.Row(elem_classes="q-steps"):
        back = gr.Button("← Previous", elem_id="q-row-back", elem_classes="q-tool", scale=0)
        row = gr.Number(1, label="Row", elem_id="q-row-number", elem_classes="q-labelled q-number", precision=0, min_width=90, scale=0)
        following = gr.Button("Next →", elem_id="q-row-next", elem_classes="q-tool", scale=0)
        worst = gr.Button("Most troubled", elem_id="q-row-worst", elem_classes="q-tool", scale=0)
    return {"back": back, "next": following, "worst": worst}, row


def _wire_views(page: Page, sources: Any, verdict: Any, columns: Any) -> None:
    def draw(draft: Draft) -> tuple[str, str, str]:
        chosen = sources_of(draft.values.get("data.sources"))
        mapping = parsed(draft.values.get("data.mapping"), {})
        return views.sources_html(chosen, draft.report), views.verdict_html(draft), views.columns_html(draft, mapping)

    page.on_form(draw, [sources, verdict, columns])


def _columns_fold(draft: Draft) -> Any:
    """The fold of the columns opens by itself where only a word on the columns is missing."""
    return gr.update(open=True) if views.needs_mapping(draft) else gr.update()


def _row_html(page: Page, draft: Draft, number: Any) -> str:
    """The row of that number as tokens, or as turns while the tokenizer is not to be had."""
    config, report = draft.config, draft.report
    if config is None or report is None or not report.num_rows:
        return '<div class="q-empty"><h2>A row comes here</h2>once there is a dataset and every setting is right.</div>'
    position = row_in(number, report.num_rows) - 1
    is_other = number is not None and number != position + 1
    count = f'<i hidden data-rows="{report.num_rows}"></i>'
    said = count + (f'<p class="q-small">There are {report.num_rows:,} rows; this is row {position + 1:,}.</p>' if is_other else "")
    try:
        if draft.look is not None and draft.look.is_done and draft.look.answer is not None:
            return said + tokens.row_html(page.service.lens.preview(config, position))
        conversation = page.service.loaded(config.data).conversations[position]
    except QloraUiError as error:
        return count + problems_html(error.problems)
    turns = [(message.role, message.in_words()) for message in conversation.messages] or [("text", conversation.text or "")]
    return said + tokens.plain_html(turns, _why_no_tokens(draft))


def row_in(number: Any, num_rows: int) -> int:
    """The number of a row that there is, from 1, nearest to what the box holds."""
    return min(max(int(number or 1), 1), max(num_rows, 1))


def _why_no_tokens(draft: Draft) -> str:
    if draft.look is not None and draft.look.is_stopped:
        return "You stopped the counting of tokens, so the row is shown as text."
    if draft.look is not None and not draft.look.is_done:
        return "Counting tokens"
    if draft.look is not None:
        return "Its tokens cannot be shown; the verdict above says why."
    return "Its tokens are shown as soon as the model's tokenizer is loaded."


def _added(page: Page, data: dict[Any, Any], sources: Sequence[DataSource], without: str = "") -> list[Any]:
    """The form's updates that add datasets to the chosen ones; those that are chosen already are not added twice.

    The dataset of the id `without` is taken off.
    """
    told = page.form.values(data)["data.sources"]
    new = changed(data[page.form.presses], told, lambda now, shown: with_more(now, sources, without))
    return page.form.show_values({"data.sources": new})


def _without(page: Page, data: dict[Any, Any], source_id: str) -> list[Any]:
    """The form's updates that take a dataset off the chosen ones; none where it is not among them."""
    values = page.form.values(data)
    if all(source["id"] != source_id for source in sources_of(values["data.sources"])):
        return [gr.skip() for _ in page.form.outputs]
    left = changed(
        data[page.form.presses], values["data.sources"], lambda now, shown: [source for source in now if source["id"] != source_id]
    )
    return page.form.show_values(_chosen_now(page, values, left))


def _chosen_now(page: Page, values: dict[str, Any], sources: str) -> dict[str, Any]:
    """What changes with the chosen datasets, some of which may be gone."""
    mapped = page.service.draft(values).mapped
    if mapped is None or mapped.id in {source["id"] for source in sources_of(sources)}:
        return {"data.sources": sources}
    # The mapping was made for the columns of this dataset and means nothing for the others.
    return {"data.sources": sources, "data.format": "auto", "data.mapping": {}}


def _wire_actions(page: Page, *components: Any) -> None:
    """Weights, slices and removal in the list of sources; meanings in the table of columns."""

    @handler
    def act(event: gr.EventData, data: dict[Any, Any]) -> list[Any]:
        action = Action.of(event)
        values = page.form.values(data)
        if action.name == "map":
            return page.form.show_values({"data.mapping": _mapping(action), "data.format": "columns"})
        new = changed(data[page.form.presses], values["data.sources"], lambda now, shown: edited(now, shown, action))
        return page.form.show_values(_chosen_now(page, values, new) if action.name == "remove" else {"data.sources": new})

    def wire() -> None:
        for component in components:
            quiet = QUIET | {"queue": False, "trigger_mode": "multiple"}
            event = component.act(act, page.form.inputs, page.form.outputs, **quiet)
            page.refresh_after(event)

    page.when_complete(wire)


def _wire_findings(page: Page, verdict: Any, row: gr.Number) -> None:
    """A finding's buttons: fix it (which can be taken back), or show its first row."""

    def propose(data: dict[Any, Any], action: Action) -> Change | None:
        if action.name == "set-length" and action.id.isdigit():
            return Change("Longest conversation as the data proposes", {"data.max_length": int(action.id)})
        if action.name not in ("fix", "fix-all"):
            return None
        draft = page.service.draft(page.form.values(data))
        if action.name == "fix-all" and draft.config is not None and draft.report is not None and (dropped := views.drops(draft.report)):
            every = [{**(finding.fix_action or {}), "source": finding.source} for finding in dropped]
            return Change(
                "All rows that the verdict named are left out", _fixed(page, draft, draft.config, {"action": "drop-all", "of": every})
            )
        meant = (action.id, action.data.get("source", ""))
        known = draft.report.findings if draft.report is not None else ()
        finding = next((found for found in known if (found.code, found.source) == meant), None)
        if draft.config is None or finding is None or not finding.fix_action:
            raise DataError("This finding is gone by now.", why="The data was read anew", fix="Look at the list again", code="DATA-FIX")
        fix = {**finding.fix_action, "source": finding.source}
        return Change(views.fix_words(finding, views.num_unusable(known)), _fixed(page, draft, draft.config, fix))

    def row_number(data: dict[Any, Any], event: Action) -> list[Any]:
        if event.name != "show-row" or not event.id.isdigit():
            return [gr.skip()]
        config = page.form.read(data)
        position = _position(page, config, int(event.id), event.data.get("source", ""))
        return [gr.update(value=position + 1)]

    page.undo.offer(verdict.act, propose, extra_outputs=[row], extra_values=row_number)


def _fixed(page: Page, draft: Draft, config: RunConfig, fix: Mapping[str, Any]) -> dict[str, Any]:
    if draft.look is not None and draft.look.is_done:
        values: dict[str, Any] = page.service.lens.fix(config, fix)
        return values
    return apply_fix(config.data, page.service.workspace, fix)


def _wire_reading(page: Page, verdict: Any) -> None:
    """Stopping a read, a download or a count, and beginning it again."""

    @handler
    def act(event: gr.EventData) -> None:
        match Action.of(event).name:
            case "stop-reading":
                page.service.stop_reading()
            case "read-again":
                page.service.read_again()

    quiet = QUIET | {"queue": False, "trigger_mode": "multiple"}
    event = verdict.act(act, None, None, **quiet)
    page.refresh_after(event)


def _position(page: Page, config: RunConfig, row: int, source: str) -> int:
    """Where a row of a file stands among the conversations; raises DataError where it is not among the usable ones."""
    position = page.service.loaded(config.data).conversations.position_of(row, source)
    if position is None:
        raise DataError(
            f"Row {row} cannot be shown.", why="It is not among the rows that are chosen and can be read", fix="Look at it in your file"
        )
    return position


def _wire_steps(page: Page, picker: dict[str, gr.Button], row: gr.Number) -> None:
    @handler
    def worst(data: dict[Any, Any]) -> int:
        page.service.allow_engine()
        order = page.service.lens.worst(page.form.read(data))
        if not order:
            gr.Info("No row stands out.", duration=4)
            return int(data[row] or 1)
        now = int(data[row] or 1) - 1
        place = order.index(now) + 1 if now in order else 0
        return int(order[place % len(order)]) + 1

    def wire() -> None:
        inputs = page.form.inputs | {row}
        # In the browser: a press counts from what the one before it has set, also while the app is busy.
        page.refresh_after(picker["back"].click(None, [row], [row], js=STEP_JS % -1, **QUIET))
        page.refresh_after(picker["next"].click(None, [row], [row], js=STEP_JS % 1, **QUIET))
        page.refresh_after(picker["worst"].click(worst, inputs, [row], **QUIET))

    page.when_complete(wire)


def _mapping(action: Action) -> str:
    """The mapping of roles to columns as the table shows it after a choice for one column; a role has one column."""
    meanings = parsed(action.data.get("all", ""), {})
    mapping = {str(role): str(column) for column, role in meanings.items() if role and column != action.id and role != action.text}
    if action.text:
        mapping[action.text] = action.id
    return as_json("data.mapping", mapping)
