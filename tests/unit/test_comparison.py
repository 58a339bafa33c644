"""A comparison of answers: kept with its run, voted on without knowing who said what, taken away as a file."""

from __future__ import annotations

import csv
import io
import json
import re
import threading

import pytest

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.comparison import EQUAL, Compared, Comparison, Comparisons, Question, TokenScore, as_text
from qlora_ui.runs.held_back import HeldBack
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui import comparing
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.background_view import run_picker
from qlora_ui.ui.views.comparison import comparison_html, marked, others_html
from tests.journals import write_run

NAMES = {"base": "Base model", "adapter": "Pirate"}


def row(asked: str, base: str, adapter: str, reference: str = "") -> Compared:
    return Compared(Question(asked, "", reference), {"base": base, "adapter": adapter}, {"base": [TokenScore(base, -0.1, 1, base)]})


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    return create_run(workspace, RunConfig())


def test_it_comes_back_from_the_disk_as_it_was(run: RunDir) -> None:
    kept = Comparisons()
    kept.begin(run, Comparison(NAMES, asked="Always the likeliest word.", time=5.0))
    kept.add(run, row("Where?", "here", "arr, here", "there"))
    known = Comparisons().read(run)
    assert known is not None and known.names == NAMES and known.asked == "Always the likeliest word."
    assert known.rows[0].question == Question("Where?", "", "there") and known.rows[0].answers["adapter"] == "arr, here"
    assert known.rows[0].scores["base"] == [TokenScore("here", -0.1, 1, "here")] and sorted(known.rows[0].order) == ["adapter", "base"]
    (run.path / "comparison.json").write_text("{", encoding="utf-8")
    assert kept.read(run) is None


def test_votes_and_rows_that_come_at_once_are_all_kept(run: RunDir) -> None:
    kept = Comparisons()
    kept.begin(run, Comparison(NAMES, is_blind=True))
    for number in range(20):
        kept.add(run, row(str(number), "a", "b"))
    voting = threading.Thread(target=lambda: [kept.vote(run, number, "adapter") for number in range(20)])
    voting.start()
    for number in range(20, 40):
        kept.add(run, row(str(number), "a", "b"))
    voting.join()
    known = kept.read(run)
    assert known is not None and len(known.rows) == 40 and known.tally() == {"base": 0, "adapter": 20, EQUAL: 0}
    with pytest.raises(QloraUiError):
        kept.vote(run, 40, "adapter")
    with pytest.raises(QloraUiError):
        kept.vote(run, 0, "somebody")


def test_a_deleted_run_is_not_made_again(run: RunDir) -> None:
    kept = Comparisons()
    run.path.rename(run.path.with_name("gone"))
    with pytest.raises(QloraUiError, match="deleted"):
        kept.begin(run, Comparison(NAMES))
    assert not run.path.exists()


def test_a_blind_page_does_not_say_who_is_who_before_the_last_vote(run: RunDir) -> None:
    kept = Comparisons()
    kept.begin(run, Comparison(NAMES, is_blind=True))
    for number in range(3):
        kept.add(run, row(str(number), "plain words", "arr words"))
    for number in range(3):
        known = kept.read(run)
        assert known is not None
        shown = comparison_html(known, run.id, is_running=False)
        assert not re.search("Pirate|Base model|adapter|q-answer-base|preferred", shown) and shown.count("A is better") == 3
        assert "Save as" not in shown  # the file says who is who
        place = known.rows[number].order.index("adapter")
        comparing.vote(kept, run, str(number), EQUAL if number == 2 else str(place))
    known = kept.read(run)
    assert known is not None and known.tally() == {"base": 0, "adapter": 2, EQUAL: 1}
    # A question that was too long for the model is told of, and needs no vote.
    kept.add(run, Compared(Question("long"), {"base": "", "adapter": ""}, problem="Not answered. It has 9,000 tokens."))
    known = kept.read(run)
    assert known is not None and not known.hides_names
    assert "It has 9,000 tokens." in comparison_html(known, run.id, is_running=False)
    # Rows that are still to come are voted on blindly, too.
    assert "Pirate" not in comparison_html(known, run.id, is_running=True)
    shown = comparison_html(known, run.id, is_running=False)
    assert "Preferred: Base model 0 · Pirate 2 · equal 1" in shown and "Pirate · preferred" in shown


def test_words_of_answers_are_sent_where_somebody_looks_at_them() -> None:
    # A hundred answers of two sides with 512 words each were 9 MB of page, sent again at each vote.
    rows = [row(str(number), f"here{number}", "arr") for number in range(3)]
    comparison = Comparison(NAMES, rows, time=5.0)
    shown = comparison_html(comparison, "run", is_running=False)
    assert "q-sure-text" not in shown and 'data-key="5-1-0"' in shown and shown.count("How sure it was") == 3
    shown = comparison_html(comparison, "run", is_running=False, opened=("5-1-0",))
    assert shown.count("q-sure-text") == 1 and '90 %, choice 1">here1</i>' in shown and "Hide how sure" in shown


def test_sides_are_called_otherwise_each(workspace: Workspace) -> None:
    runs = [create_run(workspace, RunConfig().changed({"output.name": name})) for name in ("Base model", "Pirate", "Pirate")]
    service = Service(workspace)
    for step in (2, 10):
        (runs[1].checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (runs[1].checkpoints / f"checkpoint-{step}" / "adapter_model.safetensors").touch()
    (runs[1].checkpoints / "checkpoint-12").mkdir()
    assert runs[1].saved_steps() == [10, 2] and runs[0].saved_steps() == []
    assert comparing.names_of(service, runs[0]) == ["Base model", f"Base model ({runs[0].id})"]
    # It has no finished adapter: its newest checkpoint answers.
    assert comparing.names_of(service, runs[1], f"{runs[1].id}|checkpoint-2")[1:] == ["Pirate, step 10", "Pirate, step 2"]
    for run in runs[1:]:
        run.adapter.mkdir()
        (run.adapter / "adapter_model.safetensors").touch()
    assert comparing.names_of(service, runs[1], runs[2].id)[1:] == ["Pirate", f"Pirate ({runs[2].id})"]
    assert comparing.names_of(service, runs[1], f"{runs[1].id}|checkpoint-2")[1:] == ["Pirate", "Pirate, step 2"]


def test_the_checkpoint_that_is_the_adapter_is_not_offered_beside_it(workspace: Workspace) -> None:
    run = create_run(workspace, RunConfig())
    early, late = (run.checkpoints / f"checkpoint-{step}" for step in (10, 20))
    for folder, weights in ((run.adapter, b"after"), (early, b"early"), (late, b"after")):
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(weights)
    service = Service(workspace)
    assert run.saved_steps() == [20, 10]
    assert comparing.others_of(service, service.readers.view(run))[0] == [(f"{run.id}|checkpoint-10", "Step 10 of this run")]
    # Without a result its newest checkpoint answers, and would stand beside itself.
    (run.adapter / "adapter_model.safetensors").unlink()
    assert comparing.others_of(service, service.readers.view(run))[0] == [(f"{run.id}|checkpoint-10", "Step 10 of this run")]


def test_only_adapters_that_one_model_can_answer_with_are_offered_beside(workspace: Workspace) -> None:
    # One of the same base in other 4-bit settings was offered, and refused once the model was loaded.
    chosen, paused, done = (write_run(workspace, end=end) for end in ("done", "paused", "done"))
    other = write_run(workspace, end="done", values={"quant.type": "fp4"})
    for run in (paused, other):
        folder = run.checkpoints / "checkpoint-10"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").touch()
    service = Service(workspace)
    found = [key for key, _ in comparing.others_of(service, service.readers.view(chosen))[0]]
    assert sorted(found) == sorted([done.id, f"{paused.id}|checkpoint-10"])


def test_what_was_typed_outlives_the_page_and_an_end_in_the_middle_is_told(workspace: Workspace) -> None:
    service = Service(workspace)
    assert comparing.typed(service) == ""
    comparing.keep_typed(service, "Where?\nWhy?")
    assert comparing.typed(Service(workspace)) == "Where?\nWhy?"
    comparison = Comparison(NAMES, [row("Where?", "here", "arr")], time=5.0, num_asked=2, warning="told")
    assert "Only 1 of 2 questions were answered." in comparison_html(comparison, "run", is_running=False)
    assert "questions were answered" not in comparison_html(comparison, "run", is_running=True)
    kept, run = Comparisons(), create_run(workspace, RunConfig())
    kept.begin(run, comparison)
    known = kept.read(run)
    assert known is not None and known.num_asked == 2 and known.warning == "told"
    table = comparing.save(service, kept, run, "csv").read_bytes()
    assert table.startswith(b"\xef\xbb\xbfquestion,")  # what Excel needs to see


def test_words_that_differ_are_marked_and_nothing_becomes_markup() -> None:
    assert marked("the red cat", "the blue cat") == "the <mark>red</mark> cat"
    assert marked("<b>x</b>", "x") == "<mark>&lt;</mark><mark>b&gt;</mark>x<mark>&lt;/b&gt;</mark>".replace("</mark><mark>", "")
    assert marked("alone", "") == "alone" and marked("今天很好", "今天不好") == "今天<mark>很</mark>好"
    assert "<mark>" not in marked("word " * 2000, "other " * 2000)


def test_as_a_file() -> None:
    comparison = Comparison(NAMES, [row("a|b", "=cmd", "two\nlines", "ref")])
    (_, cells) = csv.reader(io.StringIO(as_text(comparison, "csv")))
    assert cells == ["a|b", "'=cmd", "two\nlines", "ref", ""]
    (line,) = as_text(comparison, "jsonl").splitlines()
    assert json.loads(line)["answers"] == {"Base model": "=cmd", "Pirate": "two\nlines"}
    assert "| a\\|b | =cmd | two<br>lines | ref |  |" in as_text(comparison, "md")


def test_questions_bring_what_their_rows_have() -> None:
    rows = [HeldBack("Where?", "There.", "Be a pirate."), HeldBack("two\nlines", "yes", "Be a pirate.")]
    text = comparing.with_rows("Where?\nmy own", rows, at_random=False)
    assert text.splitlines() == ["Where?", "my own", "two ⏎ lines"]
    assert comparing.questions_of(text + "\n\nmy own", rows) == [
        Question("Where?", "Be a pirate.", "There."),
        Question("my own", "Be a pirate."),
        Question("two\nlines", "Be a pirate.", "yes"),
    ]
    # Rows of Windows' files, and of those who write other line ends: they lost their answer and their system prompt.
    other = HeldBack("a\r\nb\u2028c", "answer", "system")
    assert comparing.questions_of(comparing.with_rows("", [other], at_random=False), [other]) == [
        Question("a\r\nb\u2028c", "system", "answer")
    ]
    assert comparing.questions_of("x", [*rows, HeldBack("q", "a", "Another.")]) == [Question("x")]
    with pytest.raises(QloraUiError, match="already"):
        comparing.with_rows(text, rows, at_random=True)
    for wrong in ("", "\n".join(map(str, range(101)))):
        with pytest.raises(QloraUiError):
            comparing.questions_of(wrong, rows)


def test_lists_say_that_older_runs_are_not_in_them_and_where_they_are(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ui.ui.comparing.MOST_BESIDE", 1)
    monkeypatch.setattr("qlora_ui.ui.views.background_view.MOST_RUNS", 2)
    service, runs = Service(workspace), [write_run(workspace, end="done") for _ in range(3)]
    others, num_older = comparing.others_of(service, service.readers.view(runs[0]))
    assert [key for key, _ in others if "checkpoint" not in key] == [runs[2].id] and num_older == 1
    assert "1 older one is" in others_html(others, "", num_older) and "older" not in others_html(others, "")
    rows = service.run_lists.rows()
    picker = run_picker(rows, runs[0].id, "Evaluate")
    assert picker.count("<option") == 3 and "The newest 2 of 3." in picker and 'data-act="all-runs"' in picker
    assert "The newest" not in run_picker(rows[:2], runs[2].id, "Evaluate")
