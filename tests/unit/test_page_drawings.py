"""What a page's tick costs and when it may show what another page's tick drew."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
from gradio.blocks import postprocess_update_dict

from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.page import Drawings, Seen


def test_pages_that_look_at_the_same_share_a_drawing() -> None:
    drawings = Drawings(kept_s=60)
    calls: list[str] = []

    def draw() -> list[Any]:
        calls.append("drawn")
        return [len(calls)]

    assert [drawings.of(0, ("run",), draw) for _ in range(3)] == [[1], [1], [1]]
    assert drawings.of(0, ("another run",), draw) == [2]
    assert drawings.of(1, ("run",), draw) == [3]


def test_a_page_that_is_answered_takes_nothing_from_the_next_one() -> None:
    drawings = Drawings(kept_s=60)
    box = gr.Textbox("")
    for _ in range(3):
        (update,) = drawings.of(0, (), lambda: [gr.update(value="drawn", visible=True)])
        assert update["value"] == "drawn"
        # What Gradio does with it on the way to the page.
        postprocess_update_dict(box, update, postprocess=True)
        assert "value" not in update or update["value"] == "drawn"
        update.clear()


def test_after_an_event_nobody_sees_what_was_drawn_before_it() -> None:
    drawings = Drawings(kept_s=60)
    state = ["before"]

    def drawn_across_an_event() -> list[Any]:
        seen = list(state)
        state[0] = "after"
        drawings.forget()
        return seen

    assert drawings.of(0, (), drawn_across_an_event) == ["before"]
    assert drawings.of(0, (), lambda: list(state)) == ["after"]


def test_a_drawing_is_not_kept_past_its_time() -> None:
    drawings = Drawings(kept_s=0)
    assert [drawings.of(0, (), lambda: [1]), drawings.of(0, (), lambda: [2])] == [[1], [2]]


def test_a_slower_older_drawing_never_overwrites_a_newer_one() -> None:
    seen = Seen()
    older, newer = seen.ticket(), seen.ticket()
    assert seen.only_new("page", ["new"], newer, "")[1:] == ["new"]
    assert seen.only_new("page", ["old"], older, "") == [gr.skip(), gr.skip()]


def test_only_what_is_new_is_sent_and_what_got_lost_is_sent_again() -> None:
    seen = Seen()

    def sent(values: list[Any], receipt: str) -> list[Any]:
        return seen.only_new("page", values, seen.ticket(), receipt)

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


def test_of_an_update_only_what_changed_is_sent_and_a_value_alone_as_a_value() -> None:
    seen = Seen()

    def sent(value: Any, receipt: str) -> list[Any]:
        return seen.only_new("page", [value], seen.ticket(), receipt)

    first, value = sent(gr.update(value="a", visible=False), "")
    assert value == {"__type__": "update", "value": "a", "visible": False}
    second, value = sent(gr.update(value="b", visible=False), first)
    assert value == "b"
    third, value = sent(gr.update(value="c", visible=True), second)
    assert value == {"__type__": "update", "value": "c", "visible": True}
    fourth, value = sent(gr.update(value="c", visible=False), third)
    assert value == {"__type__": "update", "visible": False}
    assert sent("c", fourth)[1] == gr.skip()


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
