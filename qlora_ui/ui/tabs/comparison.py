"""Looking closely, below the verdict: own questions answered by base and adapters side by side, and how likely a text is to each."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.progress import IsCancelled, OnProgress, stop_if
from qlora_ui.runs.comparison import Comparisons
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.held_back import held_back_rows
from qlora_ui.runs.read import RunView
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.ui import comparing
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.background import Background
from qlora_ui.ui.chosen import run_to_take
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.markup import whole_letters
from qlora_ui.ui.page import Page
from qlora_ui.ui.saving import save_js
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.background_view import progress_html
from qlora_ui.ui.views.comparison import comparison_html, others_html, scores_html

ABOUT = (
    '<p class="q-small">Base model and adapter get each question with the same random numbers. '
    "The chat’s model answers: where it is not in memory, it is loaded.</p>"
)


def build(page: Page) -> None:
    """Draw the two folds below the verdict."""
    with gr.Accordion("Ask both the same questions", open=False, elem_classes="q-fold", elem_id="q-comparison"):
        _build_comparison(page)
    with gr.Accordion("How likely is a text to each?", open=False, elem_classes="q-fold", elem_id="q-likely"):
        _build_likely(page)


def _build_comparison(page: Page) -> None:
    service, work, kept = page.service, page.service.background("comparison"), Comparisons()
    beside = gr.State("")
    gr.HTML(ABOUT, apply_default_css=False)
    questions = _question_box(page)
    others = live_html("", "comparison-others")
    with gr.Row(elem_id="q-comparison-how"):
        warmth = gr.Number(
            0, label="Temperature: 0 takes the likeliest word", minimum=0, maximum=5, step=0.1, min_width=0, elem_classes="q-labelled"
        )
        most = gr.Number(
            96,
            label="Longest answer, in tokens",
            minimum=1,
            precision=0,
            min_width=0,
            elem_id="q-comparison-longest",
            elem_classes="q-labelled",
        )
    blind = gr.Checkbox(False, label="Hide who says what until I have voted (blind)", container=False, elem_id="q-comparison-blind")
    start = gr.Button("Compare", variant="primary", elem_id="q-comparison-start", scale=0)
    view = live_html("", "comparison-view")
    results = functools.lru_cache(maxsize=8)(functools.partial(_results, kept))
    page.live(lambda run_id, other: _others(service, run_id, other), [others], [beside])
    opened = gr.State(())
    page.live(lambda run_id, words: _draw(service, run_id, work, results, tuple(words)), [view], [opened])

    @handler
    def compare(given: dict[Any, Any]) -> None:
        chosen = _run(service, given[page.run_id])
        run = chosen.run
        typed = whole_letters(str(given[questions] or ""))
        comparing.keep_typed(service, typed)
        asked = comparing.questions_of(typed, held_back_rows(service.workspace, run.id))
        # Chosen beside another run, perhaps, and then the list does not show it.
        other = given[beside] if given[beside] in dict(comparing.others_of(service, chosen)[0]) else ""
        wish = comparing.Wish(asked, other, float(given[warmth] or 0), int(given[most] or 96), bool(given[blind]))

        def job(on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
            comparing.compare(service, kept, run, wish, on_progress=on_progress, is_cancelled=is_cancelled)

        work.press(run.id, job, wish)

    page.redraw_after(start.click(compare, {page.run_id, questions, beside, warmth, most, blind}, None, **QUIET))
    page.redraw_after(others.act(handler(_chosen), None, [beside], trigger_mode="multiple", **QUIET))
    _wire_results(page, view, opened, work, kept)


def _question_box(page: Page) -> gr.Textbox:
    """Where the questions are written, kept for the next visit, with what adds held-back rows to them."""
    service = page.service
    questions = _text("Questions, one a line", "q-comparison-questions", placeholder="How do I boil an egg?")
    with gr.Row(elem_classes="q-buttons"):
        held = gr.Button("Add held-back rows", elem_id="q-comparison-held", elem_classes="q-tool", size="md")
        surprise = gr.Button("Add a random one", elem_id="q-comparison-random", elem_classes="q-tool", size="md")

    @handler
    def keep(text: str) -> None:
        comparing.keep_typed(service, whole_letters(text))

    def adding(*, at_random: bool) -> Callable[[str, str], str]:
        @handler
        def add(run_id: str, text: str) -> str:
            return comparing.with_rows(text, held_back_rows(service.workspace, _run(service, run_id).id), at_random=at_random)

        return add

    questions.blur(keep, [questions], None, **QUIET)
    # A fold draws its fields when it is opened, and only then what the page's load gave them: nothing must not take the place of a word.
    page.on_load(lambda: comparing.typed(service) or gr.skip(), [questions])
    held.click(adding(at_random=False), [page.run_id, questions], [questions], **QUIET)
    surprise.click(adding(at_random=True), [page.run_id, questions], [questions], **QUIET)
    return questions


def _wire_results(page: Page, view: Any, opened: Any, work: Background, kept: Comparisons) -> None:
    service = page.service
    file = gr.DownloadButton("Save", visible=False, elem_id="comparison-file", size="md")
    ready = gr.Textbox(visible="hidden", elem_id="comparison-ready")
    savings = itertools.count(1)

    @handler
    def act(words: tuple[str, ...], event: gr.EventData) -> list[Any]:
        action = Action.of(event)
        if action.name == "cancel":
            work.cancel()
            return [gr.skip()] * 3
        if action.name == "comparison-sure":
            return [gr.skip(), gr.skip(), tuple({*words} ^ {action.data.get("key", "")})]
        run = find_run(service.workspace, action.id)
        if action.name == "comparison-save":
            made = comparing.save(service, kept, run, action.data.get("form", ""))
            return [gr.DownloadButton(f"Save {made.name}", value=str(made), visible=True), f"comparison {next(savings)}", gr.skip()]
        if action.name == "comparison-names":
            kept.show_names(run)
        if action.name == "comparison-vote":
            comparing.vote(kept, run, action.data.get("row", ""), action.data.get("choice", ""))
        return [gr.skip()] * 3

    done = view.act(act, [opened], [file, ready, opened], trigger_mode="multiple", **QUIET)
    done.then(None, [ready], None, js=save_js("comparison-file"), api_visibility="private")
    page.redraw_after(done)


def _build_likely(page: Page) -> None:
    service, work = page.service, page.service.background("measurement")
    text = _text("A text: each token is coloured by how likely it was after the ones before it", "q-likely-text")
    start = gr.Button("Measure", variant="primary", elem_id="q-likely-start", scale=0)
    view = live_html("", "likely-view")

    def draw(run_id: str) -> str:
        progress, chosen = work.progress(), run_to_take(service, run_id)
        if chosen is None or progress.key not in ("", chosen.id):
            return progress_html(progress, "Measuring for another run") if progress.is_running else ""
        shown = progress_html(progress, "Measuring")
        if progress.result:
            names = dict(zip(("base", "adapter"), comparing.names_of(service, chosen.run), strict=True))
            scores, warning = progress.result
            shown += scores_html(scores, names, warning)
        return shown

    page.live(draw, [view])

    @handler
    def measure(run_id: str, words: str) -> None:
        run = _run(service, run_id).run
        words = whole_letters(words)
        if not words.strip():
            raise QloraUiError("There is no text.", fix="Type or paste some.", code="empty-text")

        def job(on_progress: OnProgress, is_cancelled: IsCancelled) -> Any:
            on_progress("Starting the engine", None)
            engine_object("comparison:load_sides")(service.chat, comparing.target_of(run), None, on_progress)
            stop_if(is_cancelled, "The measurement")
            on_progress("Reading the text", None)
            return engine_object("comparison:score_text")(service.chat, words), service.chat.warning

        work.press(run.id, job, words)

    @handler
    def act(event: gr.EventData) -> None:
        if Action.of(event).name == "cancel":
            work.cancel()

    page.redraw_after(start.click(measure, [page.run_id, text], None, **QUIET))
    page.redraw_after(view.act(act, None, None, trigger_mode="multiple", **QUIET))


def _text(label: str, elem_id: str, placeholder: str = "") -> gr.Textbox:
    return gr.Textbox(label=label, lines=4, max_lines=12, elem_id=elem_id, elem_classes="q-labelled", placeholder=placeholder)


def _chosen(event: gr.EventData) -> str:
    return Action.of(event).text


def _run(service: Service, run_id: str) -> RunView:
    view = run_to_take(service, run_id)
    if view is None:
        raise RunError("No run has learned anything yet.", fix="Train one first.", code="no-adapter")
    return view


def _others(service: Service, run_id: str, chosen: str) -> str:
    view = run_to_take(service, run_id)
    if view is None:
        return ""
    others, num_older = comparing.others_of(service, view)
    return others_html(others, chosen, num_older)


def _draw(service: Service, run_id: str, work: Background, results: Any, opened: tuple[str, ...]) -> str:
    view, progress = run_to_take(service, run_id), work.progress()
    if view is None:
        return ""
    is_own = progress.key == view.id
    running = progress_html(progress, "Comparing" if is_own else "Comparing for another run") if is_own or progress.is_running else ""
    try:
        stat = view.run.comparison_path.stat()
    except OSError:
        return running
    # Drawn every second: words are laid against each other once for what is in the file. By the minute, since it says how long ago.
    drawn: str = results(view.run.path, (stat.st_mtime_ns, stat.st_size, int(time.time() // 60)), is_own and progress.is_running, opened)
    return running + drawn


def _results(kept: Comparisons, folder: Path, stamp: tuple[int, int, int], is_running: bool, opened: tuple[str, ...]) -> str:
    run = RunDir(folder)
    known = kept.read(run)
    return comparison_html(known, run.id, is_running=is_running, opened=opened) if known is not None else ""
