"""A conversation is shown as it was said."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.chat_record import Answer, TurnNotes
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.chat import turn_end
from qlora_ui.ui.views.chat_view import context_line, said_html, state_line, turn_html
from tests.journals import write_run


@dataclass
class Turn:
    question: str
    answers: dict[str, str] = field(default_factory=dict)


def test_code_is_kept_verbatim() -> None:
    html = said_html("Try:\n```python\ndef f():\n    return {'a': 1}  # <b>\n```\nand `x < 1`, **now**.")
    assert "<pre><code>def f():\n    return &#123;&#x27;a&#x27;: 1&#125;  # &lt;b&gt;\n</code></pre>" in html
    assert "<code>x &lt; 1</code>" in html and "<strong>now</strong>" in html and "python" in html


def test_stars_within_code_and_between_numbers_are_no_bold() -> None:
    assert said_html("`f(**a, **b)`, 2**3 and 4**5") == '<div class="q-prose"><code>f(**a, **b)</code>, 2**3 and 4**5</div>'
    assert "<strong>so <code>x**y</code></strong>" in said_html("**so `x**y`**") and "<strong>重点</strong>" in said_html(
        "这是**重点**内容"
    )


def test_code_in_a_list_and_code_that_holds_a_fence_stand_in_one_box() -> None:
    html = said_html("1. So:\n   ```python\n   def f():\n       return `x`\n   ```\n2. Then")
    assert "<pre><code>def f():\n    return &#96;x&#96;\n</code></pre>" in html and html.count("<figure") == 1
    html = said_html("````md\n```\ninner\n```\n````\nend")
    assert "<pre><code>&#96;&#96;&#96;\ninner\n&#96;&#96;&#96;\n</code></pre>" in html and html.count("<figure") == 1


def test_an_unfinished_fence_is_code_already() -> None:
    assert "<pre><code>for i in\n</code></pre>" in said_html("Look:\n```\nfor i in\n")


def test_markup_of_a_model_stays_text() -> None:
    html = turn_html(0, Turn("<script>1</script>", {"base": "<img src=x onerror=1>"}), TurnNotes(), is_last=True, is_answering=False)
    assert "<script" not in html and "<img" not in html and "&lt;img" in html


def test_both_sides_stand_in_one_order_with_their_numbers() -> None:
    notes = TurnNotes({"adapter": Answer(12, 20.5, 0.4, "length"), "base": Answer(3, 10.0, 0.2, "end")})
    html = turn_html(0, Turn("q", {"adapter": "B", "base": "A"}), notes, is_last=True, is_answering=False)
    assert html.index("Base model") < html.index("With your adapter") and "q-answers-two" in html
    assert "12 tokens · 20.5 tokens/s · first after 0.4 s · cut at the longest answer" in html
    assert 'data-act="retry"' in html and 'data-act="undo"' in html and 'data-act="edit"' in html


def test_the_change_of_an_earlier_question_says_what_it_costs() -> None:
    words = "kept in the trash"
    assert words in turn_html(0, Turn("q", {"base": "A"}), TurnNotes(), is_last=False, is_answering=False)
    assert words not in turn_html(0, Turn("q", {"base": "A"}), TurnNotes(), is_last=True, is_answering=False)


def test_a_side_that_was_stopped_before_its_first_word_is_not_said_to_be_silent() -> None:
    for stopped_by, words in (("stop", "You stopped it before its first word."), ("end", "It said nothing.")):
        notes = TurnNotes({"base": Answer(stopped_by=stopped_by)})
        assert words in turn_html(0, Turn("q", {"base": ""}), notes, is_last=True, is_answering=False)


def test_while_answering_nothing_can_be_changed() -> None:
    html = turn_html(
        0, Turn("q", {"base": "A"}), TurnNotes({"base": Answer(1)}), is_last=True, is_answering=True, waiting=("base", "adapter")
    )
    assert "data-act" not in html and "q-typing" in html


def test_kept_rows_say_so_and_references_are_folded() -> None:
    notes = TurnNotes({"base": Answer(3, is_kept=True)}, reference="The row's answer")
    html = turn_html(0, Turn("q", {"base": "A"}), notes, is_last=True, is_answering=False)
    assert "kept as a row" in html and 'data-act="keep"' not in html and "<details" in html and "The row&#x27;s answer" in html


def test_lines_under_the_conversation() -> None:
    assert state_line("loading", ("Loading the model", 0.4)) == "Loading the model 40 % …" and state_line("answering", ("", None)) == ""
    assert context_line((312, 8192)) == "312 of 8,192 tokens of context used" and context_line((0, 0)) == ""
    tools = [{"type": "function", "function": {"name": name}} for name in "abcde"]
    assert context_line((3, 10), tools) == "3 of 10 tokens of context used · may call a, b, c and 2 more"
    assert context_line((0, 0), [{"type": "function", "function": None}]) == "may call a tool"


def test_where_somebody_else_begins_to_answer_both_are_named(workspace: Workspace) -> None:
    run = write_run(workspace, values={"output.name": "First <try>"}, end="done")
    first, base = f"run|{run.id}|", "model|builtin:smollm2-135m-instruct|"
    words = turn_end(Service(workspace), first, base)
    assert words.startswith("“First <try>” answered up to here, “SmolLM2-135M-Instruct") and not turn_end(Service(workspace), first, first)
    assert "“deleted run gone” from here on" in turn_end(Service(workspace), first, "run|gone|")
    html = turn_html(0, Turn("q", {"base": "A"}), TurnNotes(), is_last=True, is_answering=False, end=words)
    assert "First &lt;try&gt;" in html and "q-turn-end" in html
