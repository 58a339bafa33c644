"""What a page's tick costs and when it may show what another page's tick drew."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
import pytest
from gradio.blocks import postprocess_update_dict

from qlora_ui.ui import drawings
from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.drawings import Drawings, Drawn, Seen


def test_pages_that_look_at_the_same_share_a_drawing() -> None:
    drawings = Drawings(kept_s=60)
    calls: list[str] = []

    def draw() -> list[Any]:
        calls.append("drawn")
        return [len(calls)]

    moment, _ = drawings.moment()
    assert drawings.at_hand([("run",)]) is None
    assert [drawings.of(moment, 0, ("run",), draw).values for _ in range(3)] == [[1], [1], [1]]
    assert drawings.of(moment, 0, ("another run",), draw).values == [2]
    assert drawings.of(moment, 1, ("run",), draw).values == [3]
    at_hand = drawings.at_hand([("run",), ("run",)])
    assert at_hand is not None and at_hand.values == [1, 3]
    assert drawings.at_hand([("run",), ("another run",)]) is None


def test_a_page_that_is_answered_takes_nothing_from_the_next_one() -> None:
    drawings, seen = Drawings(kept_s=60), Seen()
    box = gr.Textbox("")
    moment, _ = drawings.moment()
    for session in ("one", "two", "three"):
        drawn = drawings.of(moment, 0, (), lambda: [gr.update(value="drawn", visible=True)])
        _, update = seen.only_new(session, drawn, seen.ticket(), "")
        assert update["value"] == "drawn"
        # What Gradio does with it on the way to the page.
        postprocess_update_dict(box, update, postprocess=True)
        update.clear()


def test_after_an_event_nobody_sees_what_was_drawn_before_it() -> None:
    drawings = Drawings(kept_s=60)
    state = ["before"]

    def drawn_across_an_event() -> list[Any]:
        seen = list(state)
        state[0] = "after"
        drawings.forget()
        return seen

    moment, pictures = drawings.moment()
    pictures["run"] = "before"
    assert drawings.of(moment, 0, (), drawn_across_an_event).values == ["before"]
    later, pictures = drawings.moment()
    assert later > moment and pictures == {}
    assert drawings.at_hand([()]) is None
    assert drawings.of(later, 0, (), lambda: list(state)).values == ["after"]


def test_a_moment_ends_with_all_that_was_drawn_in_it() -> None:
    drawings = Drawings(kept_s=0)
    numbers = []
    for value in (1, 2):
        moment, _ = drawings.moment()
        numbers.append(moment)
        assert drawings.of(moment, 0, (), lambda value=value: [value]).values == [value]
        assert drawings.at_hand([()]) is None
    assert numbers[0] != numbers[1]


def test_a_slower_older_drawing_never_overwrites_a_newer_one() -> None:
    seen = Seen()
    older, newer = seen.ticket(), seen.ticket()
    assert seen.only_new("page", Drawn.of(["new"]), newer, "")[1:] == ["new"]
    assert seen.only_new("page", Drawn.of(["old"]), older, "") == [gr.skip(), gr.skip()]


def test_only_what_is_new_is_sent_and_what_got_lost_is_sent_again() -> None:
    seen = Seen()

    def sent(values: list[Any], receipt: str) -> list[Any]:
        return seen.only_new("page", Drawn.of(values), seen.ticket(), receipt)

    skip = gr.skip()
    first, *values = sent(["a", "b"], "")
    assert values == ["a", "b"]
    assert sent(["a", "b"], first) == [skip, skip, skip]
    second, *values = sent(["a", "c"], first)
    assert values == [skip, "c"]
    # The answer with `second` never came to the page, which asks with the receipt that it has.
    third, *values = sent(["a", "c"], first)
    assert values == ["a", "c"] and third != second
    assert sent(["a", "c"], third) == [skip, skip, skip]


def test_a_page_that_shows_an_answer_older_than_the_last_one_is_found_once_that_had_time_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    first, _ = seen.only_new("page", Drawn.of(["a"]), seen.ticket(), "")
    second, _ = seen.only_new("page", Drawn.of(["b"]), seen.ticket(), first)
    assert not seen.is_behind("page", first)  # the second may be on its way
    monkeypatch.setattr(drawings, "LATE_S", -1.0)
    assert seen.is_behind("page", first) and not seen.is_behind("page", second)
    assert not seen.is_behind("a page of before the app began anew", first)


def test_of_an_update_only_what_changed_is_sent_and_a_value_alone_as_a_value() -> None:
    seen = Seen()

    def sent(value: Any, receipt: str) -> list[Any]:
        return seen.only_new("page", Drawn.of([value]), seen.ticket(), receipt)

    first, value = sent(gr.update(value="a", visible=False), "")
    assert value == {"__type__": "update", "value": "a", "visible": False}
    second, value = sent(gr.update(value="b", visible=False), first)
    assert value == "b"
    third, value = sent(gr.update(value="c", visible=True), second)
    assert value == {"__type__": "update", "value": "c", "visible": True}
    fourth, value = sent(gr.update(value="c", visible=False), third)
    assert value == {"__type__": "update", "visible": False}
    assert sent("c", fourth)[1] == gr.skip()


def test_the_queue_looks_for_work_a_few_times_a_second_not_a_thousand_times() -> None:
    with Blocks() as blocks:
        gr.Textbox()
    stock, ours = gr.Blocks().queue()._queue, blocks.queue()._queue
    # Were Gradio to call them otherwise, setting them would do nothing.
    assert {"sleep_when_free", "progress_update_sleep_when_free"} <= set(vars(stock))
    assert ours.sleep_when_free >= 0.05 and ours.progress_update_sleep_when_free >= 0.1


def test_skipped_outputs_are_left_alone_and_the_others_sent_in_their_places() -> None:
    with Blocks() as blocks:
        state = gr.State(0)
        boxes = [gr.Textbox(label=f"{number}") for number in range(3)]
        button = gr.Button()
        button.click(lambda: None, None, [state, *boxes])
    block_fn = next(iter(blocks.fns.values()))

    def sent(values: list[Any]) -> list[Any]:
        return asyncio.run(blocks.postprocess_data(block_fn, values, None))

    skip = gr.skip()
    assert sent([skip, "a", skip, gr.update(value="c")]) == [None, "a", skip, {"__type__": "update", "value": "c"}]
    assert sent([skip, skip, skip, skip]) == [None, skip, skip, skip]
    assert sent([1, "a", "b", "c"]) == [None, "a", "b", "c"]
