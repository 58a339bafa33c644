"""The precise check on the Ready card: what it is for, how far it is, what it found beside the estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ui.base.units import format_bytes
from qlora_ui.estimate.check import USUAL_S, CheckedMemory
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.memory_bar import fit_word

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft
    from qlora_ui.ui.inspection import Pending

CLOSE_SHARES = (0.9, 1.2)
"""Of the free memory: outside of these a more exact number would not change the verdict."""


def has_check(draft: Draft) -> bool:
    """Whether a check says more than the estimate: on a processor it lacks what the system's allocator keeps, a third of a small run."""
    return draft.memory is not None and not draft.device.is_cpu


def wants_check(draft: Draft) -> bool:
    """Whether the estimate alone is a weak ground: settings that nobody has measured, or about as much as there is free."""
    memory, (least, most) = draft.memory, CLOSE_SHARES
    if not has_check(draft):
        return False
    if draft.is_at_most and draft.fits is None:
        return False  # It would check the longest conversation allowed, which no row may have.
    free = draft.device.free_bytes
    return memory is not None and (bool(memory.doubts) or least * free < memory.total_bytes < most * free)


def check_label(pending: Pending[CheckedMemory] | None) -> str:
    """The words on the button."""
    if pending is None or pending.is_stopped:
        return "Check before the run"
    return "Checked" if pending.is_done else "Skip the check"


def checked_html(draft: Draft, pending: Pending[CheckedMemory] | None) -> str:
    """A line under the prediction; empty where there is nothing to say."""
    if draft.memory is None:
        return ""
    if pending is None or pending.is_stopped:
        return _advice(draft)
    if not pending.is_done:
        share = round(100 * (pending.share or 0))
        words = f"{pending.what or 'Beginning'}: about {USUAL_S:.0f} seconds. Start does not wait for it."
        bar = (
            f'<div class="q-progress" role="progressbar" aria-label="Check of the memory" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{share}"><i style="width:{share}%"></i></div>'
        )
        return f'<div class="q-checked">{bar}<p class="q-small" role="status">{escape(words)}</p></div>'
    if pending.answer is None:
        problem = pending.problems[0] if pending.problems else None
        words = " ".join(part for part in (problem.what, problem.why, problem.fix) if part) if problem else "The check was stopped."
        return f'<p class="q-small q-checked" role="status">{escape(words)}</p>'
    return _found(draft, pending.answer)


def _advice(draft: Draft) -> str:
    memory = draft.memory
    if memory is None or not wants_check(draft):
        return ""
    close = "It is close."
    words = f"The prediction may be off by a tenth: {memory.doubts[0]} has been measured yet." if memory.doubts else close
    return f'<p class="q-small q-checked">{escape(words)} A check runs the model\'s own code, without data, and is more exact.</p>'


def _found(draft: Draft, found: CheckedMemory) -> str:
    assert draft.memory is not None
    verdict, kind = fit_word(found.total_bytes, draft.device)
    apart = found.total_bytes / draft.memory.total_bytes - 1
    words = f"the prediction says {format_bytes(draft.memory.total_bytes)} ({100 * apart:+.0f} %). Took {found.seconds:.0f} s."
    return (
        f'<p class="q-small q-checked" role="status">Checked: <strong class="q-num">{escape(format_bytes(found.total_bytes))}</strong> '
        f'<span class="q-chip q-chip-{kind}">{escape(verdict)}</span> {escape(words)}</p>'
    )
