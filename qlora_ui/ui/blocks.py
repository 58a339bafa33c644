"""gr.Blocks without the cost of what is not sent."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

SKIP = gr.skip()
LOOK_S = 0.05
PROGRESS_S = 0.2


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page's own script asks for."""

    session: str
    state: Any
    """Gradio's: what each `gr.State` holds for this session, by its id."""
    data: Any
    """From the page, whatever it sent."""


class Blocks(gr.Blocks):  # type: ignore[misc]  # gradio has no types
    """Outputs that are skipped are left alone.

    Gradio 6 builds the component of every output anew that gets an update, and `gr.skip()` is an update without a change: 1.2 ms of
    the interpreter for each. An edit of the form skips most of its outputs, maybe beside a training that needs the interpreter.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.answers: dict[tuple[int, str], Callable[[Asked], Awaitable[bytes | None]]] = {}
        """By component and name of its server function: what may answer in its place, with JSON; None leaves it to the function."""

    def queue(self, *args: Any, **named: Any) -> Blocks:
        """As gr.Blocks does, with a queue that looks for work 20 times a second.

        Gradio's looks 1,000 times, and 100 times for progress: 5 % of a core with no page open, and the interpreter taken from a
        training as often. A click waits 25 ms longer for it; on Windows that is Gradio's own pace.
        """
        super().queue(*args, **named)
        self._queue.sleep_when_free = LOOK_S
        self._queue.progress_update_sleep_when_free = PROGRESS_S
        return self

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As gr.Blocks does, for the outputs that change."""
        stock: list[Any]
        values = [predictions] if len(block_fn.outputs) == 1 else predictions
        if block_fn.batch or not isinstance(values, list | tuple) or len(values) != len(block_fn.outputs):
            stock = await super().postprocess_data(block_fn, predictions, state)
            return stock
        changed = [place for place, value in enumerate(values) if not is_skip(value)]
        if len(changed) == len(values):
            stock = await super().postprocess_data(block_fn, predictions, state)
            return stock
        sent: list[Any] = [dict(SKIP) for _ in values]
        if changed:
            fewer = copy.copy(block_fn)
            fewer.outputs = [block_fn.outputs[place] for place in changed]
            kept = [values[place] for place in changed]
            stock = await super().postprocess_data(fewer, kept if len(kept) > 1 else kept[0], state)
            for place, value in zip(changed, stock, strict=True):
                sent[place] = value
        for place, block in enumerate(block_fn.outputs):
            if block.stateful:
                sent[place] = None
        return sent


def is_skip(value: Any) -> bool:
    """Whether an output stays as it is."""
    return isinstance(value, dict) and value == SKIP
