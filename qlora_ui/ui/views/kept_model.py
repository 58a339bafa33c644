"""What a model takes of the disk, and the button that deletes it, with what is lost by that."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ui.base.units import format_bytes
from qlora_ui.models.builtin import TITLE
from qlora_ui.runs.kept_models import KeptModel
from qlora_ui.runs.listing import RunRow
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.views.words import TO_TRASH

NAMED_RUNS = 5
WHERE = {"builtin": "A copy of it in the workspace takes {size}.", "folder": "It takes {size} of the workspace.", "hub": "It takes {size}."}
AFTER = {
    "builtin": "It is made again by itself, in half a minute, when it is next needed.",
    "folder": TO_TRASH,
    "hub": "It does not go to the trash: you, and other programs that use it, would have to download it again.",
}


def kept_model_html(model: KeptModel, needing: Sequence[RunRow]) -> str:
    """Its size and Delete; `needing` are the runs that cannot be used without it."""
    size = format_bytes(model.num_bytes)
    words = [f"Delete {_quoted(model)} ({size})?", AFTER[model.kind]]
    if needing and model.kind != "builtin":
        words.append(useless_without(needing))
    button = act_button(
        "Delete from this computer", "delete-model", model.id, look="quiet", confirm=" ".join(words), yes="Delete", no="Keep it", danger="1"
    )
    where = WHERE[model.kind].format(size=size)
    return f'<div class="q-getting q-kept-model"><span class="q-small q-num">{escape(where)}</span>{button}</div>'


def of_others_html(model_id: str, num_bytes: int) -> str:
    """Of a model that the app does not know to be its own: it is not the app's to delete."""
    command = f"hf cache rm model/{model_id}"
    words = (
        f"It takes {format_bytes(num_bytes)}. It may be another program's, too, so it is not deleted here; in a terminal this removes it:"
    )
    return f'<p class="q-small q-num">{escape(words)} <code>{escape(command)}</code></p>'


def _quoted(model: KeptModel) -> str:
    """What a person calls it."""
    if model.kind == "builtin":
        return f"the copy of {TITLE}"
    return f"“{middle_cut(model.id if model.kind == 'hub' else model.folder.name, 60)}”"


def useless_without(needing: Sequence[RunRow], what: str = "it") -> str:
    """`2 runs cannot be talked to, measured, continued or merged without it: Pirate, Tickets.`"""
    named = ", ".join(row.name for row in needing[:NAMED_RUNS])
    more = f" and {len(needing) - NAMED_RUNS:,} more" if len(needing) > NAMED_RUNS else ""
    runs = f"{len(needing):,} runs" if len(needing) > 1 else "One run"
    return f"{runs} cannot be talked to, measured, continued or merged without {what}: {named}{more}."
