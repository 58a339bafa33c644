"""What was drawn lately, for all pages that look at the same, and what each page has of it already."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import orjson

SHARED_S = 0.9
"""A beat shows what another page's beat drew within this time: less than a beat, so that each brings something of its own."""
MAX_TABS = 128
LATE_S = 2.0
"""What a page has not got by then was lost on its way, or an older answer came after it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Values for a page's outputs. Pages share them: whoever sends one makes it anew (`Seen.only_new`)."""

    values: list[Any]
    marks: list[dict[str, int]]
    """Of each value, a mark of each of its properties; counted once, however many pages are sent the value."""

    @classmethod
    def of(cls, values: list[Any]) -> Drawn:
        return cls(values, [_marks(value) for value in values])


class Drawings:
    """What was drawn less than a beat ago, for all pages that look at the same: many open pages cost little more than one.

    All that is drawn within one moment is drawn from the same pictures of the runs (`pictures`), so that no page says in one place
    that a run ended and in another that it runs. A moment lasts SHARED_S, or until something was done (`forget`).
    """

    def __init__(self, kept_s: float = SHARED_S) -> None:
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._moment = 0
        self._began = -math.inf
        self._known: dict[str, Drawn] = {}
        self._pictures: dict[str, Any] = {}

    def moment(self) -> tuple[int, dict[str, Any]]:
        """The number of the present moment, which begins if the last one is over, and the pictures that belong to it."""
        with self._lock:
            if time.monotonic() - self._began >= self._kept_s:
                self._begin()
            return self._moment, self._pictures

    def at_hand(self, calls: Sequence[Sequence[Any]]) -> Drawn | None:
        """All views with these arguments, where the present moment has them; None where one has to be drawn."""
        keys = [_key(view, args) for view, args in enumerate(calls)]
        with self._lock:
            if time.monotonic() - self._began >= self._kept_s:
                return None
            found = [self._known.get(key) for key in keys]
        return joined([drawn for drawn in found if drawn is not None]) if None not in found else None

    def of(self, moment: int, view: int, args: Sequence[Any], draw: Callable[[], list[Any]]) -> Drawn:
        """What `draw` gives, or gave to a page with the same `args` in the same moment."""
        key = _key(view, args)
        with self._lock:
            known = self._known.get(key) if moment == self._moment else None
        if known is not None:
            return known
        drawn = Drawn.of(draw())
        with self._lock:
            if moment == self._moment:
                self._known[key] = drawn
        return drawn

    def forget(self) -> None:
        """An event changed something: nobody is to see what was drawn before it."""
        with self._lock:
            self._begin()

    def _begin(self) -> None:
        self._moment += 1
        self._began = time.monotonic()
        self._known, self._pictures = {}, {}


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Several views as one row of values."""
    return Drawn([value for part in parts for value in part.values], [mark for part in parts for mark in part.marks])


def _key(view: int, args: Sequence[Any]) -> str:
    return f"{view} {json.dumps(args, default=str)}"


@dataclass(slots=True)
class _Sent:
    """What a browser tab was sent of one set of views."""

    receipt: str = ""
    """Given with the last values that were sent; the tab gives it back once it has them."""
    sent_at: float = 0.0
    ticket: int = 0
    marks: list[dict[str, int]] = field(default_factory=list)
    """Of each value, a mark of each of its properties."""


class Seen:
    """What each browser tab has, so that a beat sends only what is new; bounded, safe between threads.

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

    def only_new(self, session: str, drawn: Drawn, ticket: int, receipt: str) -> list[Any]:
        """The new receipt and the drawn values, with gr.skip() in place of what this session has already.

        `session` names a tab and one set of its views, `receipt` is the one that the tab holds. All are skipped where a drawing
        that began later was quicker: this one shows settings that are no longer so.
        """
        with self._lock:
            sent = self._sent.setdefault(session, _Sent())
            self._sent.move_to_end(session)
            while len(self._sent) > MAX_TABS:
                self._sent.popitem(last=False)
            if sent.ticket > ticket:
                return [gr.skip() for _ in (None, *drawn.values)]
            known = sent.marks if receipt == sent.receipt else []
            sent.ticket, sent.marks = ticket, drawn.marks
            if known == drawn.marks:
                return [gr.skip() for _ in (None, *drawn.values)]
            old = known or [{}] * len(drawn.values)
            sent.receipt, sent.sent_at = str(ticket), time.monotonic()
            return [sent.receipt, *map(_news, drawn.values, drawn.marks, old)]

    def is_behind(self, session: str, receipt: str) -> bool:
        """Whether this session shows something else than was sent to it last, though it has had the time to show it."""
        with self._lock:
            sent = self._sent.get(session)
            return sent is not None and sent.receipt != receipt and time.monotonic() - sent.sent_at > LATE_S


def _marks(value: Any) -> dict[str, int]:
    """A short mark of each property of an update, of a bare value under the name `value`."""
    properties = value if isinstance(value, dict) and value.get("__type__") == "update" else {"value": value}
    return {
        name: hash(orjson.dumps(one, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY))
        for name, one in properties.items()
    }


def _news(value: Any, marks: dict[str, int], known: dict[str, int]) -> Any:
    """What a page lacks that knows the properties `known`: an update of its own, since Gradio takes it apart while it answers.

    A bare value where nothing else has changed: for an update of more, Gradio builds the component anew, 1.2 ms each.
    """
    changed = [name for name, mark in marks.items() if known.get(name) != mark]
    if not changed:
        return gr.skip()
    if "__type__" not in marks:
        return value
    return value["value"] if changed == ["value"] else {"__type__": "update", **{name: value[name] for name in changed}}
