"""Words and signs for states, times and names, the same on every tab."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qlora_ui.runs.run_dir import Status
from qlora_ui.settings.sections import BUILTIN_DATA, BUILTIN_MODEL
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.markup import escape, middle_cut

STATUS_WORDS = {
    Status.QUEUED: "waiting",
    Status.STARTING: "getting ready",
    Status.RUNNING: "training",
    Status.DONE: "done",
    Status.STOPPED: "stopped",
    Status.PAUSED: "paused",
    Status.FAILED: "failed",
    Status.CRASHED: "interrupted",
    Status.UNREADABLE: "not readable",
}
TITLES = {BUILTIN_MODEL: "SmolLM2-135M-Instruct", BUILTIN_DATA: "Everyday questions, answered by a pirate"}
ASKING = '<p class="q-small" role="status" aria-busy="true">Asking the Hub …</p>'
"""Stands where its answer will be."""
TO_TRASH = "It goes to the trash, at the end of the Runs tab, from where you can put it back until that is emptied."
_LOOKS = {
    Status.STARTING: ("accent q-chip-live", ""),
    Status.RUNNING: ("accent q-chip-live", ""),
    Status.DONE: ("good", "✓ "),
    Status.STOPPED: ("plain", "■ "),
    Status.PAUSED: ("plain", "‖ "),
    Status.FAILED: ("bad", "✕ "),
    Status.CRASHED: ("warn", "! "),
    Status.UNREADABLE: ("bad", "✕ "),
    Status.QUEUED: ("plain", "… "),
}


def status_chip(status: Status) -> str:
    """The state as a chip with word, sign and colour."""
    look, sign = _LOOKS[status]
    return f'<span class="q-chip q-chip-{look}"><span>{sign}{STATUS_WORDS[status]}</span></span>'


def model_title(model_id: str, length: int = 40) -> str:
    """A model's name as people say it, without the owner of its repository or the folders before it, of whatever system."""
    return TITLES.get(model_id) or middle_cut(model_id.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or model_id, length)


def describe_model(model_id: str, length: int = 44) -> str:
    """`model_title`, with a word on the built-in one."""
    return model_title(model_id, length) + (" (built in)" if model_id == BUILTIN_MODEL else "")


def source_title(source_id: str, length: int = 44) -> str:
    """A dataset's id as a name: its title, the file's own name, or the id on the Hub."""
    if source_id.startswith("hub:"):
        return middle_cut(source_id.removeprefix("hub:"), length)
    return TITLES.get(source_id) or middle_cut(source_id.replace("\\", "/").rsplit("/", 1)[-1] or source_id, length)


def source_words(source: Mapping[str, Any], length: int = 32) -> str:
    """A dataset, and which part of it with what weight: `rows.jsonl (first 500, weight 2)`."""
    told = ", ".join(part_words(source))
    return source_title(str(source.get("id", "")), length) + (f" ({told})" if told else "")


def part_words(source: Mapping[str, Any]) -> list[str]:
    """Which part of a dataset is taken and with what weight; empty for all of its rows, as they are."""
    rows, weight = str(source.get("rows") or ""), f"{source.get('weight', 1)}".removesuffix(".0")
    parts = (
        f"subset {source['config']}" if source.get("config") else "",
        f"split {source['split']}" if source.get("split", "train") != "train" else "",
        f"first {rows}" if rows.isdigit() else rows,
        f"weight {weight}" if weight not in ("", "1", "None") else "",
    )
    return [part for part in parts if part]


def ago(moment: float, now: float | None = None) -> str:
    """A moment as a person says it: `just now`, `12 min ago`, `today 14:05`, `Mon 3 Nov`, `3 Nov 2025`."""
    now = now if now is not None else time.time()
    seconds = now - moment
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    then, today = time.localtime(moment), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("today %H:%M", then)
    if then.tm_year == today.tm_year:
        return f"{time.strftime('%a', then)} {then.tm_mday} {time.strftime('%b %H:%M', then)}"
    return f"{then.tm_mday} {time.strftime('%b %Y', then)}"


def fold(title: str, body: str, key: str) -> str:
    """A part that unfolds; `title` is plain text, `body` ready-made HTML. It keeps its state when the page is drawn anew."""
    return f'<details class="q-details" data-key="{escape(key)}"><summary>{escape(title)}</summary>{body}</details>'


def setting_words(value: Any) -> str:
    """A setting's value as it is said: `on`, `0.0002`, `all-linear`, `automatic`."""
    if value is None:
        return "automatic"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(setting_words(item) for item in value) or "none"
    return source_words(value.model_dump(), 40) if isinstance(value, DataSource) else middle_cut(str(value), 40)
