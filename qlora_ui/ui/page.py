"""What the tabs share: the service, the form, the selected run, one pulse, and the two ways in which a page is redrawn.

* `live`: views of runs and of the machine. Drawn at page load, at every beat of the one pulse, and after an event that
  `redraw_after` was told of. What has not changed since the same browser tab last saw it is not sent again. What has goes past
  Gradio to the view (ui/pulse.py).
* `on_form`: views of the settings. Drawn at page load and after every edit of a control (the user's, by `.input`, or
  ours, by `refresh_after`).
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import gradio as gr
import orjson

from qlora_ui.ui.blocks import Asked, Blocks, is_skip
from qlora_ui.ui.drawings import MAX_TABS, Drawings, Drawn, Seen, joined
from qlora_ui.ui.form import Form
from qlora_ui.ui.handler import QUIET, attempt, handler
from qlora_ui.ui.service import Service

if TYPE_CHECKING:
    from qlora_ui.ui.undo import Undo


@dataclass(frozen=True, slots=True)
class LiveView:
    """`draw(run_id, *values of inputs)` gives one value for each of `ids` (a bare value for a single one)."""

    draw: Callable[..., Any]
    ids: tuple[str, ...]
    """By which the page's script knows what it shows (static/pulse.js)."""
    inputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class FormView:
    """`draw(draft, *values of inputs)` gives one value for each output (a bare value for a single one)."""

    draw: Callable[..., Any]
    outputs: tuple[Any, ...]
    inputs: tuple[Any, ...]


@dataclass(slots=True)
class Page:
    """Handed to every tab's `build(page)`."""

    service: Service
    form: Form
    run_id: gr.State
    """Id of the run that the user looks at; empty means the one that runs, else the newest."""
    tabs: gr.Tabs
    """`gr.Tabs(selected="train")` as the value of this output opens a tab; ids are the tab modules' names."""
    pulse: gr.HTML
    """Asks each second what is new while the page is in sight (see static/pulse.js)."""
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
    _under_way: dict[str, asyncio.Task[Drawn]] = field(default_factory=dict)
    _edits: dict[str, float] = field(default_factory=dict)
    _answers: list[tuple[Any, str, Callable[[Asked], Awaitable[bytes | None]]]] = field(default_factory=list)
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

        Each output is HTML that listens (`live_html`, `charts`). `draw` gives its value, or `gr.update(value=…, visible=…)`; they are
        compared by their JSON. What puts something into a `gr.State` among `inputs` belongs into `redraw_after`.
        """
        deaf = [output.elem_id for output in outputs if json.dumps(output.elem_id) not in (output.js_on_load or "")]
        if deaf:
            raise ValueError(f"nothing on the page listens for {', '.join(map(str, deaf))}")
        self.live_views.append(LiveView(draw, tuple(output.elem_id for output in outputs), tuple(inputs)))

    def on_form(self, draw: Callable[..., Any], outputs: Sequence[Any], inputs: Sequence[Any] = ()) -> None:
        """Keep `outputs` in step with the settings on the page: `draw(draft, *inputs)`, see ui/draft.py."""
        self.form_views.append(FormView(draw, tuple(outputs), tuple(inputs)))

    def on_load(self, function: Callable[[], Any], outputs: Sequence[Any]) -> None:
        """Run once when a page opens, before the settings' views are drawn; one value for each output, a bare value for a single one."""
        self._loads.append((function, list(outputs)))

    def answer_quickly(self, component: Any, name: str, function: Callable[[Any], bytes | None]) -> None:
        """Let `function` answer for the server function `name` of `component` in the server's own thread (see ui/shortcut.py).

        It is given what the page asks and gives the answer's JSON; None where that would take time, so that the server function
        itself answers.
        """

        async def answer(asked: Asked) -> bytes | None:
            return function(asked.data)

        self._answers.append((component, name, answer))

    def redraw_after(self, event: Any) -> None:
        """Draw the live views anew as soon as `event` (what a listener such as `button.click(...)` returns) is done."""
        self._redraw.append(event)

    def refresh_after(self, event: Any) -> None:
        """Draw the form's views anew as soon as `event`, which put values into controls, is done."""
        self._refresh.append(event)

    def connect(self, blocks: Blocks) -> None:
        """Wire pulse, load and edits; ui/app.py calls it once all tabs are built."""
        for wire in self._complete:
            wire()
        form_receipt = self._form_receipt = gr.Textbox("", visible="hidden", elem_id="q-has-form", label="Has")
        # Empty until the last visit's settings are in the controls: what a page shows before is nobody's choice.
        self._is_restored = gr.Textbox("", visible="hidden", elem_id="q-is-restored", label="Restored")
        quiet = QUIET | {"queue": False}
        outputs = [form_receipt, *(out for view in self.form_views for out in view.outputs)]
        others = {needed for view in self.form_views for needed in view.inputs}
        inputs = self.form.inputs | self.pickers | others | {form_receipt, self._is_restored}
        form: dict[str, Any] = {"fn": self._form_edited, "inputs": inputs, "outputs": outputs}
        untouched = form | {"fn": self._form_drawn}
        # A picked preset is no edit: it is drawn once its values are in their controls, else the old ones would be kept under its name.
        edited = dict.fromkeys((*self.form.outputs, *self.pickers, *others))
        edits = [_edited(component) for component in edited if component is not self.preset and not component.stateful]
        # What was found out in the background (a dataset that is read now) changes this number, which draws the form's views.
        self.live_views.append(LiveView(lambda run_id: str(self.service.num_news), ("q-news",), ()))
        self.pulse.found(**untouched, **quiet)
        gr.on(edits, **form, trigger_mode="always_last", **quiet)
        restored = [*(out for _, outputs in self._loads for out in outputs), self._is_restored]
        loaded = blocks.load(handler(self._restore), None, restored, **quiet)
        loaded.then(**untouched, **quiet)
        fields = [needed for view in self.live_views for needed in view.inputs if not needed.stateful]
        now: dict[str, Any] = {"fn": None, "inputs": fields, "outputs": None, "js": "(...inputs) => { qLive.now(inputs); }"}
        for event in self._redraw:
            event.then(**now, **quiet)
        gr.on([needed.change for needed in fields], **now, **quiet)
        for event in self._refresh:
            # What is pressed before the drawing after the press before it is drawn, too, and by what the controls hold then.
            event.then(**form, trigger_mode="always_last", **quiet)
        answers = [*self._answers, (self.pulse, "news", self.news)]
        blocks.answers = {(component._id, name): answer for component, name, answer in answers}

    def _restore(self) -> list[Any]:
        values: list[Any] = []
        for function, outputs in self._loads:
            given = function()
            values.extend(given if len(outputs) > 1 else [given])
        return [*values, "yes"]

    async def news(self, asked: Asked) -> bytes:
        """What is new for a page: the views that changed since the answer whose receipt it has, and whether those of the settings are
        old (`form` is the receipt that it has of them); null where nothing is.

        In the server's own thread where another page's beat has drawn the same in this moment: a change of threads beside a
        training costs more than the answer. Pages that come while it is being drawn wait for that drawing.
        """
        data = asked.data if isinstance(asked.data, dict) else {}
        if data.get("fresh"):
            # An event may have changed what was drawn a moment ago.
            self._drawings.forget()
            self.service.run_lists.forget()
        ticket = self._seen.ticket()
        calls = self._calls(asked.state, data.get("inputs"))
        drawn = self._drawings.at_hand(calls) or await self._drawn_aside(calls)
        receipt, *values = self._seen.only_new(f"{asked.session} live", drawn, ticket, str(data.get("receipt", "")))
        new: dict[str, Any] = {}
        if not is_skip(receipt):
            ids = [name for view in self.live_views for name in view.ids]
            views = {name: _properties(value) for name, value in zip(ids, values, strict=True) if not is_skip(value)}
            new = {"receipt": receipt, "views": views}
        if self._seen.is_behind(f"{asked.session} form", str(data.get("form", ""))):
            new["form_is_old"] = True
        return orjson.dumps(new or None)

    async def _drawn_aside(self, calls: Sequence[tuple[Any, ...]]) -> Drawn:
        moment, _ = self._drawings.moment()
        key = f"{moment} {json.dumps(calls, default=str)}"
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(anyio.to_thread.run_sync(self._draw_live, calls))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._under_way.pop(key, None))
        # A page that is closed meanwhile takes the drawing from nobody.
        return await asyncio.shield(task)

    def _calls(self, state: Any, fields: Any) -> list[tuple[Any, ...]]:
        """The arguments of each live view. `fields` are the values of what stands on the page, as it was built where it sent none."""
        needed = [field for view in self.live_views for field in view.inputs if not field.stateful]
        is_told = isinstance(fields, list) and len(fields) == len(needed)
        left = iter(fields if is_told else [field.value for field in needed])
        run_id = str(state[self.run_id._id] or "")
        return [(run_id, *(state[one._id] if one.stateful else next(left) for one in view.inputs)) for view in self.live_views]

    def _draw_live(self, calls: Sequence[tuple[Any, ...]]) -> Drawn:
        """All live views; one that fails is logged and keeps what it shows, the others go on."""
        moment, pictures = self._drawings.moment()
        parts = []
        with self.service.readers.in_one_moment(pictures):
            for number, (view, args) in enumerate(zip(self.live_views, calls, strict=True)):
                draw = functools.partial(_draw, view.draw, len(view.ids), *args)
                parts.append(self._drawings.of(moment, number, args, draw))
        return joined(parts)

    def _form_edited(self, request: gr.Request, data: dict[Any, Any]) -> list[Any]:
        """`_form_drawn` after the user or the app may have changed a control: the settings are kept for the next visit."""
        return self._draw_form(request, data, is_edit=True)

    def _form_drawn(self, request: gr.Request, data: dict[Any, Any]) -> list[Any]:
        """Check the settings and draw every view of them; nothing before the page has them."""
        return self._draw_form(request, data, is_edit=False)

    def _draw_form(self, request: gr.Request, data: dict[Any, Any], *, is_edit: bool) -> list[Any]:
        if not data[self._is_restored]:
            return [gr.skip() for _ in (None, *(out for view in self.form_views for out in view.outputs))]
        ticket = self._seen.ticket()
        preset, device = (str(data.get(extra) or "") if extra is not None else "" for extra in (self.preset, self.device))
        tab = str(request.session_hash)
        draft = self.service.draft(self.form.values(data), preset=preset, device=device, edited_at=self._edited_at(tab, is_edit=is_edit))
        self.service.kept_draft.remember(draft, tab, is_edit=is_edit)
        draft = replace(draft, elsewhere=self.service.kept_draft.elsewhere(draft, tab))
        drawn: list[Any] = []
        for view in self.form_views:
            drawn.extend(_draw(view.draw, len(view.outputs), draft, *(data[needed] for needed in view.inputs)))
        return self._seen.only_new(f"{request.session_hash} form", Drawn.of(drawn), ticket, str(data[self._form_receipt]))

    def _edited_at(self, tab: str, *, is_edit: bool) -> float:
        """When a browser tab was last edited, or else opened."""
        if is_edit:
            self._edits.pop(tab, None)
        edited_at = self._edits.setdefault(tab, time.monotonic())
        while len(self._edits) > MAX_TABS:
            del self._edits[next(iter(self._edits))]
        return edited_at


def _draw(draw: Callable[..., Any], num_outputs: int, *args: Any) -> list[Any]:
    values, problems = attempt(lambda: draw(*args), getattr(draw, "__qualname__", "a view"))
    if problems or values is None:
        # One broken view must not stop the others.
        return [gr.skip()] * num_outputs
    return list(values) if num_outputs > 1 else [values]


def _properties(value: Any) -> dict[str, Any]:
    """What changes of a view, by name."""
    is_update = isinstance(value, dict) and value.get("__type__") == "update"
    return {name: one for name, one in value.items() if name != "__type__"} if is_update else {"value": value}


def _edited(component: Any) -> Any:
    """The event of an edit. A text box raises `input` for keys only, so pasting needs `change`; drawing views writes no control."""
    return component.change if isinstance(component, gr.Textbox) else component.input
