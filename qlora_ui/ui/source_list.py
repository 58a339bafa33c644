"""The list of datasets as a page holds it, and what presses make of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from qlora_ui.settings.sections import BUILTIN_DATA
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.action import Action

Sources = list[dict[str, Any]]
LATE_S = 5.0
"""A press that tells of a list which was replaced so long ago at most was made before the answer was on the page."""
_MOST_REPLACED = 16
_LOCK = threading.Lock()


def sources_of(text: Any) -> Sources:
    """The sources as the hidden control holds them."""
    found = parsed(text, [])
    return [source if isinstance(source, dict) else DataSource(id=str(source)).model_dump() for source in found]


def parsed(text: Any, otherwise: Any) -> Any:
    """What a hidden control holds as JSON, or as the thing itself; `otherwise` where it cannot be read."""
    if isinstance(text, str):
        try:
            return json.loads(text)
        except ValueError:
            return otherwise
    if isinstance(text, tuple | list):
        return [item.model_dump() if isinstance(item, BaseModel) else item for item in text]
    return text if text is not None else otherwise


def changed(presses: dict[str, Any], text: Any, change: Callable[[Sources, Sources], Sources]) -> str:
    """The list, as its control holds it, after `change(now, shown)`.

    `text` is what the page held at the press, and `shown` is that list. `presses` remembers what presses on that page have made of
    which list: two that are made faster than they are answered both tell of the list before the first. Then `now` is what the
    first has made of it, which would be lost otherwise.
    """
    shown = sources_of(text)
    told = _words(shown)
    with _LOCK:
        is_late = told in presses.get("replaced", ()) and time.monotonic() - presses["at"] < LATE_S
        now = sources_of(presses["now"]) if is_late else shown
        new = _words(change([dict(source) for source in now], shown))
        replaced = [*presses.get("replaced", ()), told, _words(now)] if is_late else [told]
        presses.update(now=new, at=time.monotonic(), replaced=[old for old in replaced if old != new][-_MOST_REPLACED:])
    return new


def with_more(chosen: Sources, sources: Sequence[DataSource], without: str = "") -> Sources:
    """The chosen datasets and `sources`, those that are chosen already not twice; the dataset of the id `without` is taken off."""
    chosen = [source for source in chosen if source["id"] != without]
    # The built-in set is there for a first look: the user's own data takes its place.
    if {str(source["id"]) for source in chosen} == {BUILTIN_DATA} and any(source.id != BUILTIN_DATA for source in sources):
        chosen = []
    known = {_key(source) for source in chosen}
    return chosen + [source.model_dump() for source in sources if (source.id, source.config, source.split) not in known]


def edited(now: Sources, shown: Sources, action: Action) -> Sources:
    """The sources after an edit of one in the list that was shown; a value that cannot be read is kept as typed, the check reports it."""
    place = int(action.id) if action.id.isdigit() else -1
    if not 0 <= place < len(shown):
        return now
    if now != shown:
        place = next((at for at, source in enumerate(now) if _key(source) == _key(shown[place])), -1)
        if place < 0:
            return now
    if action.name == "remove":
        del now[place]
    elif action.name in ("weight", "rows"):
        now[place][action.name] = action.text.strip()
    return now


def _key(source: dict[str, Any]) -> tuple[Any, ...]:
    return source["id"], source.get("config"), source.get("split", "train")


def _words(sources: Sources) -> str:
    return json.dumps(sources, ensure_ascii=False)
