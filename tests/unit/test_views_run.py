"""What the Train tab says of a run in each of its states."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from qlora_ui.runs.card import Holder
from qlora_ui.runs.events import Failed, PhaseChanged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.views.probes import probes_html
from qlora_ui.ui.views.ready import trained_html
from qlora_ui.ui.views.run import NO_RUN, head_html
from qlora_ui.ui.views.strip import run_chip
from qlora_ui.ui.views.timeline import timeline_html
from qlora_ui.ui.views.train_tiles import tiles_html
from tests.journals import write_run

EVIL = "<img src=x onerror=alert(1)>\"'${1+1}{{x}}`"


def buttons(html: str) -> list[str]:
    return re.findall(r'data-act="([a-z_]+)"', html)


def view_of(workspace: Workspace, **how: object) -> RunView:
    return read_run(write_run(workspace, **how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("live", ["stop", "pause", "save_now", "stop_now"]),
        ("loading", ["stop_now"]),
        ("done", ["copy", "chat", "evaluate", "export"]),
        ("stopped", ["resume", "copy", "chat", "evaluate", "export"]),
        ("paused", ["resume", "copy"]),
        ("crashed", ["resume", "copy"]),
        ("failed", ["resume", "copy", "apply", "apply"]),
    ],
)
def test_each_state_offers_what_can_be_done(workspace: Workspace, end: str, expected: list[str]) -> None:
    assert buttons(head_html(view_of(workspace, end=end, done=41))) == expected


@pytest.mark.parametrize(
    ("end", "state"),
    [("live", "open"), ("done", "done"), ("stopped", "done"), ("paused", "open"), ("crashed", "problem"), ("failed", "problem")],
)
def test_the_train_tab_is_ticked_by_the_run_that_it_shows(workspace: Workspace, end: str, state: str) -> None:
    assert f'data-step="train" data-state="{state}"' in trained_html(view_of(workspace, end=end, done=41))
    assert trained_html(None) == ""


def test_phases_stand_in_the_order_in_which_the_job_enters_them(workspace: Workspace) -> None:
    run = write_run(workspace, end="loading")
    JournalWriter(run.journal_path).write(PhaseChanged(phase="data"))
    html = head_html(read_run(run))
    assert html.index("Prepare rows") < html.index("Load model") and "Load model<span" not in html


def test_destructive_buttons_ask_and_say_what_is_kept(workspace: Workspace) -> None:
    html = head_html(view_of(workspace, end="live", done=41))
    assert "The checkpoint of step 30 stays, the 11 steps since are lost." in html
    assert html.count("data-confirm=") == 2


def test_a_request_is_echoed_on_every_page(workspace: Workspace) -> None:
    run = write_run(workspace, end="live", done=41)
    run.request(Request.STOP)
    assert "Stopping after this step; what was learned is saved." in head_html(read_run(run))


def test_a_failure_says_cause_and_remedy_and_folds_the_traceback(workspace: Workspace) -> None:
    html = head_html(view_of(workspace, end="failed", done=41))
    assert html.index("memory was full") < html.index("12.3 GiB were needed") < html.index("Shorten the longest conversation")
    assert html.index("Technical details") < html.index("Traceback (most recent call last)")
    assert "<details" in html and "<details open" not in html
    assert "Rows at once → 2" in html


def test_a_refused_continuation_offers_a_new_run_from_the_adapter(workspace: Workspace) -> None:
    view = view_of(workspace, end="failed", done=41)
    assert isinstance(view.ended, Failed)
    refused = replace(view, ended=replace(view.ended, code="resume-changed", suggestions=[]))
    assert buttons(head_html(refused)) == ["resume", "copy", "start_from"]


def test_done_has_one_large_next_step(workspace: Workspace) -> None:
    html = head_html(view_of(workspace, end="done"))
    assert html.count("q-button-large") == 1 and "Chat with it" in html


def test_nothing_of_a_user_becomes_markup(workspace: Workspace) -> None:
    run = write_run(workspace, values={"output.name": EVIL}, end="live", done=10)
    view = read_run(run)
    for html in (head_html(view), timeline_html(view), tiles_html(view), probes_html(view)):
        assert "<img" not in html and "${" not in html and "{{" not in html
    assert "&lt;img" in head_html(view)


def test_the_timeline_names_what_happened(workspace: Workspace) -> None:
    html = timeline_html(view_of(workspace, end="stopped", done=90))
    for words in ("Held-back rows: loss", "Checkpoint saved", "Saving took 9 s.", "Rows at once 4 → 2", "Stopped and saved", "earlier"):
        assert words in html


def test_another_run_is_said_to_be_where_it_is(workspace: Workspace) -> None:
    view, other = view_of(workspace), view_of(workspace, end="live")
    assert "is training now." in head_html(view, elsewhere=other)
    assert "is getting ready." in head_html(view, elsewhere=replace(other, status=Status.STARTING))


def test_training_that_goes_on_after_an_answer_is_told_once(workspace: Workspace) -> None:
    view = view_of(workspace)
    began = next(event for event in view.timeline if isinstance(event, PhaseChanged) and event.phase == "train")
    answering = [replace(began, phase=phase, step=step) for step in range(1, 5) for phase in ("probe", "train")]
    again = replace(view, timeline=(*view.timeline, *answering))
    assert timeline_html(again).count("<span>Training</span>") == timeline_html(view).count("<span>Training</span>") == 1


def test_the_probe_strip_begins_before_training(workspace: Workspace) -> None:
    html = probes_html(view_of(workspace))
    assert html.index("Before training") < html.index("Step 60") < html.index("Step 120")
    assert "How do I boil an egg?" in html and "Arr, heave the egg" in html


def test_tiles_compare_prediction_and_measurement(workspace: Workspace) -> None:
    view = view_of(workspace)
    assert view.planned is not None
    assert "in one of 2 processes" in tiles_html(replace(view, planned=replace(view.planned, num_processes=2)))
    html = tiles_html(view)
    assert "processes" not in html
    # A narrow tile keeps a number and its unit together, and says what was measured once.
    assert re.search(r"Peak memory</dt>.*?5\.\d\xa0GiB.*?predicted 5\.3\xa0GiB \(\+\d\xa0%\)", html, re.DOTALL)
    assert "measured" not in html
    # On a processor the app is measured as a whole: a chat that is loaded beside the run is no fault of the prediction.
    shared = write_run(workspace, card=False)
    beside = read_run(shared)
    assert beside.planned is not None and beside.peak_measured_bytes
    planned = replace(beside.planned, predicted_bytes=beside.peak_measured_bytes // 2)
    assert re.search(r"of the whole app; [\d.]+\xa0GiB predicted for the run", tiles_html(replace(beside, planned=planned)))
    assert "tokens/s".lower() in html.lower()


def test_a_run_that_waits_says_whether_it_starts_by_itself(workspace: Workspace) -> None:
    view = replace(view_of(workspace, end="live", done=0), status=Status.QUEUED)
    assert "It starts by itself." in head_html(view, [view])
    held = head_html(view, [view], is_held=True)
    assert "by itself" not in held and "held" in held and "release" in buttons(held)


@pytest.mark.parametrize(
    ("holder", "words", "button"),
    [
        (Holder("chat", "Pirate", 0.0, True, "1"), "It starts when the chat has answered.", "free"),
        (Holder("evaluation", "Pirate", 0.0, False, "1"), "It starts when the evaluation is done.", "evaluate"),
        (Holder("export", "Pirate", 0.0, False, "1"), "It starts when the export is done.", "export"),
    ],
)
def test_a_run_that_waits_for_memory_says_for_whom_and_offers_only_what_can_be_done(
    workspace: Workspace, holder: Holder, words: str, button: str
) -> None:
    view = replace(view_of(workspace, end="live", done=0), status=Status.QUEUED)
    html = head_html(view, [view], blocked_by=holder)
    assert words in html and "by itself" not in html and "has a model in memory (Pirate)" in html
    assert {"free", "evaluate", "export"} & set(buttons(html)) == {button}


def test_without_a_run_it_says_how_to_get_one() -> None:
    assert head_html(None) == NO_RUN and tiles_html(None) == timeline_html(None) == probes_html(None) == ""


def test_the_strip_says_that_it_finishes_once_the_last_step_is_taken(workspace: Workspace) -> None:
    chip = run_chip(view_of(workspace, end="live", num_steps=40, done=30))
    assert "Running" in chip and "75 %" in chip and "left" in chip
    last = run_chip(view_of(workspace, end="live", num_steps=40, done=40))
    assert "Finishing" in last and "Running" not in last and "100 %" not in last and "left" not in last
    run = write_run(workspace, end="live", num_steps=40, done=20)
    JournalWriter(run.journal_path).write(PhaseChanged(phase="finish"))
    assert "Finishing" in run_chip(read_run(run))
    assert run_chip(view_of(workspace, end="done", num_steps=40)) == ""
