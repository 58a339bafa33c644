"""What the tabs share: the service, the form, the selected run, one timer, and the two ways in which a page is redrawn.

* `live`: views of runs and of the machine. Drawn at page load, at every tick of the one timer, and after an event that
  `redraw_after` was told of. What has not changed since the same browser tab last saw it is not sent again.
* `on_form`: views of the settings. Drawn at page load and after every edit of a control (the user's, by `.input`, or
  ours, by `refresh_after`).
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import gradio as gr

from qlora_ui.ui.form import Form
from qlora_ui.ui.handler import attempt, handler
from qlora_ui.ui.service import Service

if TYPE_CHECKING:
    from qlora_ui.ui.undo import Undo

TICK_S = 1.0
SHARED_S = 0.6
"""A tick shows what another page's tick drew within this time."""
MAX_TABS = 128

Component = gr.components.Component


@dataclass(frozen=True, slots=True)
class LiveView:
    """`draw(run_id, *values of inputs)` gives one value for each output (a bare value for a single one)."""

    draw: Callable[..., Any]
    outputs: tuple[Any, ...]
    inputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class FormView:
    """`draw(draft, *values of inputs)` gives one value for each output (a bare value for a single one)."""

    draw: Callable[..., Any]
    outputs: tuple[Any, ...]
    inputs: tuple[Any, ...]


@dataclass(slots=True)
class _Sent:
    """What a browser tab was sent of one set of views."""

    receipt: str = ""
    """Given with the last values that were sent; the tab gives it back once it has them."""
    ticket: int = 0
    marks: list[dict[str, int]] = field(default_factory=list)
    """Of each value, a mark of each of its properties."""


class Seen:
    """What each browser tab has, so that a tick sends only what is new; bounded, safe between threads.

    An answer may get lost on its way: the connection breaks, or the page is still being built. So each has a receipt, a hidden
    value on the page that comes back with the next request; where it is not the one that was sent last, all is sent anew.
    """

    def __init__(self) -> None:
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._tickets = itertools.count(1)
        self._lock = threading.Lock()

    def ticket(self) -> int:
        """A number for a drawing that begins; later drawings have higher ones."""
        return next(self._tickets)

    def only_new(self, session: str, values: Sequence[Any], ticket: int, receipt: str) -> list[Any]:
        """The new receipt and `values`, with gr.skip() in place of what this session has already.

        `session` names a tab and one set of its views, `receipt` is the one that the tab holds. All are skipped where a drawing
        that began later was quicker: this one shows settings that are no longer so.
        """
        with self._lock:
            sent = self._sent.setdefault(session, _Sent())
            self._sent.move_to_end(session)
            while len(self._sent) > MAX_TABS:
                self._sent.popitem(last=False)
            if sent.ticket > ticket:
                return [gr.skip() for _ in (None, *values)]
            known = sent.marks if receipt == sent.receipt else []
            marks = [_marks(value) for value in values]
            fresh = [_news(value, mark, old) for value, mark, old in zip(values, marks, known or [{}] * len(values), strict=True)]
            sent.ticket, sent.marks = ticket, marks
            if known == marks:
                return [gr.skip(), *fresh]
            sent.receipt = str(ticket)
            return [sent.receipt, *fresh]


def _marks(value: Any) -> dict[str, int]:
    """A short mark of each property of an update, of a bare value under the name `value`."""
    properties = value if isinstance(value, dict) and value.get("__type__") == "update" else {"value": value}
    return {name: hash(json.dumps(one, default=str, sort_keys=True)) for name, one in properties.items()}


def _news(value: Any, marks: dict[str, int], known: dict[str, int]) -> Any:
    """What a page lacks that knows the properties `known`.

    A bare value where nothing else has changed: for an update of more, Gradio builds the component anew, 1.2 ms each.
    """
    changed = [name for name, mark in marks.items() if known.get(name) != mark]
    if not changed:
        return gr.skip()
    if "__type__" not in marks:
        return value
    return value["value"] if changed == ["value"] else {"__type__": "update", **{name: value[name] for name in changed}}


class Drawings:
    """What was drawn less than a tick ago, for all pages that look at the same: many open pages cost little more than one."""

    def __init__(self, kept_s: float = SHARED_S) -> None:
        self._kept_s = kept_s
        self._known: dict[str, tuple[float, list[Any]]] = {}
        self._events = 0
        self._lock = threading.Lock()

    def of(self, view: int, args: Sequence[Any], draw: Callable[[], list[Any]]) -> list[Any]:
        """What `draw` gives, or gave a moment ago to a page with the same `args`."""
        key = _key(view, args)
        with self._lock:
            drawn_at, values = self._known.get(key, (-math.inf, []))
            events = self._events
        if time.monotonic() - drawn_at < self._kept_s:
            return copy.deepcopy(values)
        began = time.monotonic()
        values = draw()
        with self._lock:
            if events == self._events:
                self._known = {known: old for known, old in self._known.items() if began - old[0] < self._kept_s}
                # Gradio takes the value out of an update while it answers: each page gets a copy of its own.
                self._known[key] = (began, copy.deepcopy(values))
        return values

    def has_all(self, calls: Sequence[Sequence[Any]]) -> bool:
        """Whether `of` would draw nothing anew for these arguments of all views."""
        oldest = time.monotonic() - self._kept_s * 0.9
        with self._lock:
            return all(self._known.get(_key(view, args), (-math.inf,))[0] > oldest for view, args in enumerate(calls))

    def forget(self) -> None:
        """An event changed something: nobody is to see what was drawn before it."""
        with self._lock:
            self._events += 1
            self._known.clear()


def _key(view: int, args: Sequence[Any]) -> str:
    return f"{view} {json.dumps(args, default=str)}"


@dataclass(slots=True)
class Page:
    """Handed to every tab's `build(page)`."""

    service: Service
    form: Form
    run_id: gr.State
    """Id of the run that the user looks at; empty means the one that runs, else the newest."""
    tabs: gr.Tabs
    """`gr.Tabs(selected="train")` as the value of this output opens a tab; ids are the tab modules' names."""
    timer: gr.Timer
    undo: Undo = field(init=False)
    """Shows and takes back what the app changes in the settings (`page.undo.offer`)."""
    live_views: list[LiveView] = field(default_factory=list)
    form_views: list[FormView] = field(default_factory=list)
    preset: gr.Dropdown | None = None
    """The preset picker of the Recipe tab; deltas are counted from what it shows."""
    device: gr.Dropdown | None = None
    """The card that estimates are for, on a machine without one."""
    _redraw: list[Any] = field(default_factory=list)
    _refresh: list[Any] = field(default_factory=list)
    _loads: list[tuple[Callable[[], Any], list[Any]]] = field(default_factory=list)
    _seen: Seen = field(default_factory=Seen)
    _drawings: Drawings = field(default_factory=Drawings)
    _form_receipt: gr.Textbox | None = None
    _is_restored: gr.Textbox | None = None
    _complete: list[Callable[[], None]] = field(default_factory=list)

    @property
    def pickers(self) -> set[Any]:
        """The pickers of preset and device: inputs of everything that is drawn from the settings."""
        return {picker for picker in (self.preset, self.device) if picker is not None}

    def when_complete(self, wire: Callable[[], None]) -> None:
        """Call `wire` once all tabs are built: for events whose outputs are every control of the form."""
        self._complete.append(wire)

    def live(self, draw: Callable[..., Any], outputs: Sequence[Any], inputs: Sequence[Any] = ()) -> None:
        """Keep `outputs` up to date with `draw(run_id, *inputs)`; cheap when nothing changed (it runs every second).

        Return plain values and `gr.update(...)` dicts, never component instances: they are compared by their JSON.
        """
        self.live_views.append(LiveView(draw, tuple(outputs), tuple(inputs)))

    def on_form(self, draw: Callable[..., Any], outputs: Sequence[Any], inputs: Sequence[Any] = ()) -> None:
        """Keep `outputs` in step with the settings on the page: `draw(draft, *inputs)`, see ui/draft.py."""
        self.form_views.append(FormView(draw, tuple(outputs), tuple(inputs)))

    def on_load(self, function: Callable[[], Any], outputs: Sequence[Any]) -> None:
        """Run once when a page opens, before the settings' views are drawn; one value for each output, a bare value for a single one."""
        self._loads.append((function, list(outputs)))

    def redraw_after(self, event: Any) -> None:
        """Draw the live views anew as soon as `event` (what a listener such as `button.click(...)` returns) is done."""
        self._redraw.append(event)

    def refresh_after(self, event: Any) -> None:
        """Draw the form's views anew as soon as `event`, which put values into controls, is done."""
        self._refresh.append(event)

    def connect(self, blocks: gr.Blocks) -> None:
        """Wire timer, load and edits; ui/app.py calls it once all tabs are built."""
        for wire in self._complete:
            wire()
        live_receipt, form_receipt = (gr.Textbox("", visible="hidden", elem_id=f"q-has-{what}", label="Has") for what in ("live", "form"))
        self._form_receipt = form_receipt
        # Empty until the last visit's settings are in the controls: what a page shows before is nobody's choice.
        self._is_restored = gr.Textbox("", visible="hidden", elem_id="q-is-restored", label="Restored")
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        outputs = [form_receipt, *(out for view in self.form_views for out in view.outputs)]
        others = {needed for view in self.form_views for needed in view.inputs}
        inputs = self.form.inputs | self.pickers | others | {form_receipt, self._is_restored}
        form: dict[str, Any] = {"fn": self._form_changed, "inputs": inputs, "outputs": outputs}
        # A picked preset is no edit: it is drawn once its values are in their controls, else the old ones would be kept under its name.
        edited = dict.fromkeys((*self.form.outputs, *self.pickers, *others))
        edits = [_edited(component) for component in edited if component is not self.preset]
        # What was found out in the background (a dataset that is read now) changes this hidden number, which draws the form's views.
        news = gr.Textbox("0", visible="hidden", elem_id="q-news", label="News")
        self.live(lambda run_id: str(self.service.num_news), [news])
        news.change(**form, **quiet)
        drawn = [live_receipt, *(out for view in self.live_views for out in view.outputs)]
        # Texts in, HTML out: Gradio's conversions would only cost a change of threads each.
        live: dict[str, Any] = {"fn": self._tick, "preprocess": False, "postprocess": False}
        live |= {"inputs": [live_receipt, *self._live_inputs()], "outputs": drawn}
        self.timer.tick(**live, **quiet)
        gr.on(edits, **form, trigger_mode="always_last", **quiet)
        restored = [*(out for _, outputs in self._loads for out in outputs), self._is_restored]
        loaded = blocks.load(handler(self._restore), None, restored, **quiet)
        loaded.then(**live, **quiet)
        loaded.then(**form, **quiet)
        now = live | {"fn": self._draw_now}
        for event in self._redraw:
            event.then(**now, **quiet)
        for event in self._refresh:
            event.then(**form, **quiet)

    def _restore(self) -> list[Any]:
        values: list[Any] = []
        for function, outputs in self._loads:
            given = function()
            values.extend(given if len(outputs) > 1 else [given])
        return [*values, "yes"]

    def _live_inputs(self) -> list[Any]:
        return [self.run_id, *(needed for view in self.live_views for needed in view.inputs)]

    async def _tick(self, request: gr.Request, receipt: str, run_id: str, *values: Any) -> list[Any]:
        """Draw all live views; one that fails is logged and keeps what it shows, the others go on.

        In the server's own thread where another page's tick has just drawn the same: a change of threads beside a training costs
        more than the answer.
        """
        calls = self._calls(run_id, values)
        draw = functools.partial(self._draw_live, f"{request.session_hash} live", receipt, calls)
        return draw() if self._drawings.has_all(calls) else await anyio.to_thread.run_sync(draw)

    def _draw_now(self, request: gr.Request, receipt: str, run_id: str, *values: Any) -> list[Any]:
        """The same after an event, which may have changed what was drawn a moment ago."""
        self._drawings.forget()
        return self._draw_live(f"{request.session_hash} live", receipt, self._calls(run_id, values))

    def _calls(self, run_id: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The arguments of each live view."""
        calls = []
        rest = list(values)
        for view in self.live_views:
            mine, rest = rest[: len(view.inputs)], rest[len(view.inputs) :]
            calls.append((run_id, *mine))
        return calls

    def _draw_live(self, session: str, receipt: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        ticket = self._seen.ticket()
        drawn: list[Any] = []
        for number, (view, args) in enumerate(zip(self.live_views, calls, strict=True)):
            drawn.extend(self._drawings.of(number, args, functools.partial(_draw, view.draw, len(view.outputs), *args)))
        return self._seen.only_new(session, drawn, ticket, receipt)

    def _form_changed(self, request: gr.Request, data: dict[Any, Any]) -> list[Any]:
        """Check the settings and draw every view of them; nothing before the page has them."""
        if not data[self._is_restored]:
            return [gr.skip() for _ in (None, *(out for view in self.form_views for out in view.outputs))]
        ticket = self._seen.ticket()
        preset, device = (str(data.get(extra) or "") if extra is not None else "" for extra in (self.preset, self.device))
        draft = self.service.draft(self.form.values(data), preset=preset, device=device)
        drawn: list[Any] = []
        for view in self.form_views:
            drawn.extend(_draw(view.draw, len(view.outputs), draft, *(data[needed] for needed in view.inputs)))
        return self._seen.only_new(f"{request.session_hash} form", drawn, ticket, str(data[self._form_receipt]))


def _draw(draw: Callable[..., Any], num_outputs: int, *args: Any) -> list[Any]:
    values, problems = attempt(lambda: draw(*args), getattr(draw, "__qualname__", "a view"))
    if problems or values is None:
        # One broken view must not stop the others.
        return [gr.skip()] * num_outputs
    return list(values) if num_outputs > 1 else [values]


def _edited(component: Any) -> Any:
    """The event of an edit. A text box raises `input` for keys only, so pasting needs `change`; drawing views writes no control."""
    return component.change if isinstance(component, gr.Textbox) else component.input
