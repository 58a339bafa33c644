"""What was deleted and can be put back."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ui.base.units import format_bytes
from qlora_ui.runs.deleted import Deleted
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.views.words import ago, fold

SHOWN = 6
KINDS = {
    "run": "Run",
    "checkpoints": "Checkpoints",
    "export": "Export",
    "model": "Model",
    "data": "Data file",
    "preset": "Preset",
    "conversation": "Conversation",
    "other": "The app does not know what it is; a file manager moves it back from",
}
IS_BACK = {
    "run": "It is in the list of runs again.",
    "checkpoints": "Its run has them again.",
    "export": "It is on the Export tab again.",
    "model": "It is on the Model tab again.",
    "data": "It is on the Data tab again, under “Kept files”.",
    "preset": "It is on the Recipe tab again, among the presets.",
    "conversation": "It is on the Chat tab again.",
}
"""Where to find what was put back."""


def trash_html(lies: Sequence[Deleted], folder: str) -> str:
    """The trash, the last deleted first, with a way back for each and a button that empties it; empty where it is.

    `folder` is its path.
    """
    if not lies:
        return ""
    items = f"{len(lies):,} deleted item{'s' if len(lies) != 1 else ''}"
    size = format_bytes(sum(one.num_bytes for one in lies))
    words = (
        f"Remove {items} ({size}) from the disk, be they runs, models, data files or what else is listed? Nobody can get them back then."
    )
    button = act_button("Empty the trash", "empty_trash", confirm=words, yes="Remove for good", no="Keep them", danger="1", look="quiet")
    about = f"{items}, {size}. Nothing here is removed until you empty it, and putting back replaces nothing."
    rows = [_row(one, folder) for one in lies]
    shown, others = (f'<table class="q-disk q-trash">{"".join(part)}</table>' for part in (rows[:SHOWN], rows[SHOWN:]))
    rest = fold(f"{len(rows) - SHOWN:,} more", others, "trash-more") if rows[SHOWN:] else ""
    return (
        f'<section class="q-card" id="trash" aria-label="Trash"><div class="q-run-top"><h2 class="q-h2">Trash</h2>{button}</div>'
        f'<p class="q-small q-num">{escape(about)}</p>{shown}{rest}</section>'
    )


def _row(one: Deleted, folder: str) -> str:
    where = f' <span class="q-mono">{escape(folder)}/{escape(one.folder)}</span>' if one.kind == "other" else ""
    button = ""
    if one.place:
        button = act_button("Put it back", "put_back", one.folder, look="link", echo="Putting it back …", title=f"Put it back: {one.name}")
    about = f"{escape(KINDS[one.kind])}{where} · deleted {escape(ago(one.at))}"
    return (
        f'<tr><th scope="row">{escape(middle_cut(one.name, 80))}<small>{about}</small></th>'
        f'<td class="q-num">{escape(format_bytes(one.num_bytes))}</td><td>{button}</td></tr>'
    )
