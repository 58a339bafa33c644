"""What the Evaluate tab says of a result."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qlora_ui.base.files import read_json, write_json
from qlora_ui.base.progress import Cancelled
from qlora_ui.catalog.metrics import METRICS, label_scores
from qlora_ui.runs.under_way import marked
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.background import Progress
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.evaluate import _draw
from qlora_ui.ui.views.dotplot import dotplot_html, intervals
from qlora_ui.ui.views.evaluation import invitation_html, receipt_html
from tests.journals import run_with_checkpoint


def result_with(**values: Any) -> dict[str, Any]:
    """A result as the engine writes it, cut down to what matters."""
    return {"verdict": {"kind": "unsure", "text": "Text."}, "num_rows": 12, "num_tokens": 120, "time": 1.0, "duration_s": 2.0, **values}


def test_a_measure_without_an_interval_is_drawn() -> None:
    # Rows that are sorted into labels: their F1 is one number of all answers, and the tab fell over it.
    references = ["positive", "negative"] * 6
    sides = {side: label_scores(answers, references) for side, answers in (("base", references[::-1]), ("adapter", references))}
    task = {"metric": "label_f1"} | {side: {"value": scores.pop("f1"), **scores} for side, scores in sides.items()}
    page = receipt_html(result_with(tasks=[task]), "1")
    assert "<td>0 %</td><td>100 %</td>" in page and "The right label <small>F1</small>" in page


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "json_validity"])
def test_shares_are_said_in_percent(metric: str) -> None:
    sides = {"base": {"value": 0.125, "low": 0.0, "high": 0.31}, "adapter": {"value": 0.8, "low": 0.75, "high": 0.934}}
    page = receipt_html(result_with(tasks=[{"metric": metric, **sides}]), "1")
    assert "12 % <small>(0 to 31 %)</small>" in page and "80 % <small>(75 to 93 %)</small>" in page
    assert next(known for known in METRICS if known.name == metric).title in page


def test_too_few_rows_have_no_whiskers() -> None:
    scores = [{"variant": name, "title": name, "loss": loss} for name, loss in (("base-4bit", 2.0), ("adapter-4bit", 1.5))]
    few = {"value": 0.5, "low": None, "high": None}
    assert intervals({"gain": few}, {"base-4bit": 2.0, "adapter-4bit": 1.5}) == {}
    assert "Whiskers" not in receipt_html(result_with(scores=[], gain=few), "1")
    page = receipt_html(result_with(scores=[{**row, "perplexity": 1.0, "accuracy": 0.5} for row in scores], gain=few), "1")
    assert "Whiskers" not in page and "q-whisker" not in page


def test_how_many_rows_are_looked_at_is_said() -> None:
    assert "200 of 1,234 held-back rows." in invitation_html("1", 1234) and "7 held-back rows." in invitation_html("1", 7)
    assert "200 of 1,234 held-back rows, 120 learned tokens" in receipt_html(result_with(num_rows=200, num_held_back=1234), "1")
    assert "12 held-back rows, 120" in receipt_html(result_with(), "1")


def test_an_answer_that_was_cut_is_marked_and_what_it_says_of_measures() -> None:
    answers = [
        {"question": "q", "reference": "a b", "base": "a", "adapter": "a b", "cut": ["base"], "is_measured": True},
        {"question": "long", "reference": "a " * 900, "base": "a", "adapter": "b", "cut": ["base", "adapter"], "is_measured": False},
    ]
    measured = {"value": 1.0, "low": None, "high": None}
    page = receipt_html(result_with(answers=answers, tasks=[{"metric": "rouge_l", "base": measured, "adapter": measured}]), "1")
    assert "a … (cut)" in page and "a b … (cut)" not in page
    assert "1 held-back question; in small" in page and "1 more have answers too long" in page


def test_the_weakest_examples_are_open_and_the_others_folded() -> None:
    answers = [{"question": f"question {n}", "reference": "good", "base": "bad", "adapter": "good" if n else "bad"} for n in range(64)]
    page = receipt_html(result_with(answers=answers), "1")
    assert "48 more" in page and page.index("question 0<") < page.index("question 1<") and page.count("q-asked") == 64
    assert "more-examples" not in receipt_html(result_with(answers=answers[:16]), "1")


def test_numbers_of_another_adapter_are_named() -> None:
    was = result_with(adapter_sha256="a")
    assert "as it was" not in receipt_html(was, "1", "a") + receipt_html(was, "1") + receipt_html(result_with(), "1", "b")
    # A run that was stopped, evaluated, and then continued.
    assert "learned on since" in receipt_html(was, "1", "b")
    of_step = {**was, "checkpoint": "checkpoint-10"}
    assert "numbers of step 10, not of the finished" in receipt_html(of_step, "1", "b")
    assert "step 10" not in receipt_html(of_step, "1", "a")
    # A paused run, before and after it went on.
    assert "q-note-warn" not in receipt_html(of_step, "1", "a", is_finished=False)
    assert "learned on since: these are the numbers of step 10." in receipt_html(of_step, "1", "b", is_finished=False)


def test_a_base_that_was_replaced_is_told_of() -> None:
    told = "The base model in x was replaced."
    assert told in receipt_html(result_with(warning=told), "1") and "q-note-warn" not in receipt_html(result_with(warning=""), "1")


def test_a_paused_run_can_be_evaluated_and_says_which_step_is_judged(workspace: Workspace) -> None:
    done, paused, live = (run_with_checkpoint(workspace, end=end) for end in ("done", "paused", "live"))
    service = Service(workspace)
    pages = {run.id: _draw(service, run.id, Progress()) for run in (done, paused, live)}
    assert "evaluate-source" not in pages[done.id] and "evaluate-now" in pages[done.id]
    assert "learned at step 114, its last checkpoint" in pages[paused.id] and "evaluate-now" in pages[paused.id]
    assert "The run is training" in pages[live.id] and "evaluate-now" not in pages[live.id] and "evaluate-source" not in pages[live.id]
    assert all(f'value="{run.id}"' in pages[done.id] for run in (done, paused, live))


def test_an_evaluation_that_ended_with_the_app_is_told_of_until_the_next(workspace: Workspace) -> None:
    run, other = (run_with_checkpoint(workspace, end="done") for _ in range(2))
    other.write_about(name="Night shift")
    service = Service(workspace)
    with marked(run.evaluating_path, lambda: False):
        assert "evaluate-ended" not in _draw(service, run.id, Progress())
    assert not run.evaluating_path.exists()
    with pytest.raises(Cancelled), marked(run.evaluating_path, lambda: True):
        raise Cancelled
    mark = read_json(run.evaluating_path)
    assert isinstance(mark, dict)
    # As the next app finds it: whoever wrote it is gone.
    write_json(run.evaluating_path, {**mark, "owner": {**mark["owner"], "start": 1.0}})
    page = _draw(service, run.id, Progress())
    assert "evaluate-now" in receipt_html(result_with(), run.id) and "evaluate-now" not in receipt_html(result_with(), run.id, is_busy=True)
    assert "ended with the app before it was done" in page and "evaluate-now" in page
    assert "evaluate-ended" not in _draw(service, run.id, Progress(run.id, is_running=True))
    assert "Evaluating Night shift" in _draw(service, run.id, Progress(other.id, is_running=True))
    write_json(run.evaluation_path, result_with())
    assert "evaluate-ended" not in _draw(service, run.id, Progress())


@pytest.mark.parametrize(("losses", "ticks"), [((2.031, 2.035), ["2.031", "2.033", "2.035"]), ((1.0, 12.0), ["1.00", "6.50", "12.00"])])
def test_the_ends_of_a_scale_differ(losses: tuple[float, float], ticks: list[str]) -> None:
    scores = [{"variant": name, "title": name, "loss": loss} for name, loss in zip(("base-4bit", "adapter-4bit"), losses, strict=True)]
    assert re.findall(r">([\d.]+)</i>", dotplot_html({"scores": scores})) == ticks


@pytest.mark.parametrize(
    ("kind", "first", "missing"), [("better", "export", "copy"), ("worse", "copy", "export"), ("unsure", "chat", "export")]
)
def test_the_verdict_leads_on(kind: str, first: str, missing: str) -> None:
    page = receipt_html(result_with(verdict={"kind": kind, "text": "Text."}), "run-1")
    begin = page.index("q-receipt-next")
    assert page.index(f'data-act="{first}"', begin) < page.index("</p>", begin) and f'data-act="{missing}"' not in page
