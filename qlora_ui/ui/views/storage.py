"""What the workspace takes of the disk, and what of it can be freed where."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.base.units import KIB, format_bytes
from qlora_ui.runs.storage import RunSize, Storage
from qlora_ui.ui.action import act_button
from qlora_ui.ui.background import Progress
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.background_view import progress_html
from qlora_ui.ui.views.words import ago

SHOWN_RUNS = 5
DISK_WORDS = {"full": "The disk is full", "read-only": "The disk is read-only", "gone": "The workspace is gone"}
"""By what is wrong with it."""
HUB_WORDS = "in the Hub's cache and not in the workspace; the Model tab deletes them"
HUB_DATA_WORDS = "in the Hub's cache and not in the workspace; the Data tab deletes it, under “Kept files”"


def disk_sentence(trouble: str, folder: str) -> str:
    """What is wrong with the workspace's disk (`base.files.disk_trouble`), what that means for a run, and what to do."""
    why, fix = {
        "full": (f"Nothing can be saved in {folder}.", "Free some space."),
        "read-only": (f"The system lets nobody write to {folder}.", "Make it writable; a disk with errors wants to be checked."),
        "gone": (f"{folder} is not there.", "Connect its disk, or put the folder back."),
    }[trouble]
    return f"{DISK_WORDS[trouble]}. {why} A run that goes on keeps its points, and writes them when it can. {fix}"


def storage_html(free_bytes: int, storage: Storage | None, names: Mapping[str, str], progress: Progress, trouble: str = "") -> str:
    """Free space and the button that looks closer; what was found then. `names` are the runs' names by id, `trouble` is a
    `disk_sentence`.
    """
    button = (
        act_button("What takes the space" if storage is None else "Look again", "measure-disk", look="quiet")
        if not progress.is_running
        else ""
    )
    free = f"{format_bytes(free_bytes)} are free on the disk of the workspace"
    bad = f'<p class="q-problem" role="alert">{escape(trouble)}</p>' if trouble else ""
    line = f'{bad}<div class="q-pages"><span class="q-small q-num">{escape(free)}</span>{button}</div>'
    work = progress_html(progress, "Looking at the files")
    return f"{line}{work}{_table(storage, names) if storage is not None and not progress.is_running else ''}"


def _table(storage: Storage, names: Mapping[str, str]) -> str:
    freed = ""
    if storage.free_now_bytes:
        words = f"Free {format_bytes(storage.free_now_bytes)}"
        freed = act_button(words, "free-remade", look="quiet", echo="Freeing …")
    in_use = storage.remade_bytes - storage.free_now_bytes
    kept = "made again when they are needed; ten gigabytes at most are kept"
    of_runs = _parts(storage.checkpoint_bytes, storage.export_bytes)
    rows = [
        (f"{len(storage.runs):,} run{'s' if len(storage.runs) != 1 else ''}", storage.run_bytes, f"of it {of_runs}" if of_runs else "", ""),
        ("Kept data files", storage.data_bytes, "the Data tab deletes them, under “Kept files”", ""),
        ("Rows and tokens that were read", storage.remade_bytes, kept + ("; some are in use" if in_use else ""), freed),
        ("Working files", storage.working_bytes, "what browsers fetch and tools for exports; most go with the next start", ""),
        ("Models", storage.model_bytes, "the Model tab deletes them", ""),
        ("Trash", storage.trash_bytes, "what was deleted on any tab; its list, above, puts things back", ""),
        ("Models that were downloaded", storage.hub_bytes, HUB_WORDS, ""),
        ("Data that was downloaded", storage.hub_data_bytes, HUB_DATA_WORDS, ""),
    ]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}<small>{escape(about)}</small></th>'
        f'<td class="q-num">{escape(format_bytes(size))}{button}</td></tr>'
        for name, size, about, button in rows
        if size
    )
    largest = "".join(_run(run, names.get(run.id, run.id)) for run in storage.runs[:SHOWN_RUNS])
    seen = f"Looked at {ago(storage.at)}." if ago(storage.at) != "just now" else ""
    head = f'<h3 class="q-h3">The workspace takes {escape(format_bytes(storage.total_bytes))}</h3>'
    head += f'<p class="q-small">{escape(seen)}</p>' if seen else ""
    runs = f'<h3 class="q-h3">The largest runs</h3><table class="q-disk">{largest}</table>' if largest else ""
    return f'<section class="q-card" id="disk-use">{head}<table class="q-disk">{body}</table>{runs}</section>'


def _run(run: RunSize, name: str) -> str:
    about = _parts(run.checkpoint_bytes, run.export_bytes)
    return (
        f'<tr><th scope="row">{act_button(name, "open", run.id, look="link")}<small>{escape(about)}</small></th>'
        f'<td class="q-num">{escape(format_bytes(run.num_bytes))}</td></tr>'
    )


def _parts(checkpoint_bytes: int, export_bytes: int) -> str:
    # Notes of exports stay, of a few bytes.
    parts = (("checkpoints", checkpoint_bytes), ("exports", export_bytes))
    return ", ".join(f"{words} {format_bytes(size)}" for words, size in parts if size >= KIB)
