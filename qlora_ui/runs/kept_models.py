"""Models that the app keeps on the disk, exports of runs among them: what they take, which runs need them, and deleting one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import change_json, read_json, remove_at_once, size_of_tree, typed_path
from qlora_ui.base.trash import throw_away
from qlora_ui.catalog.exports import EXPORT_FORMS, EXPORT_NOTES
from qlora_ui.models.builtin import converted_folder, is_builtin
from qlora_ui.models.catalogue import is_hub_id
from qlora_ui.models.hub_cache import brought, download_lock, held_bytes, is_brought, repository_folder
from qlora_ui.runs.listing import RunRow
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.under_way import export_mark
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that the app put on the disk, or that lies in its workspace."""

    id: str
    """By which a run or a page names it."""
    folder: Path
    kind: str
    """`builtin`, `folder` or `hub`, as of a ModelEntry; only a folder goes to the trash: the others come again."""
    num_bytes: int


def kept_model(workspace: Workspace, model_id: str) -> KeptModel | None:
    """The model as it can be deleted here; None for one that is not there, that another program downloaded, or that lies elsewhere."""
    if is_builtin(model_id):
        folder = converted_folder(workspace)
        return KeptModel(model_id, folder, "builtin", size_of_tree(folder)) if folder.is_dir() else None
    if is_hub_id(model_id):
        num_bytes = held_bytes(model_id)
        return KeptModel(model_id, repository_folder(model_id), "hub", num_bytes) if num_bytes and is_brought(model_id) else None
    folder = typed_path(model_id)
    if not os.path.isdir(folder) or folder.parent != workspace.models or folder.name == ".." or folder == converted_folder(workspace):
        return None
    return KeptModel(model_id, folder, "folder", size_of_tree(folder))


def brought_bytes(kind: str) -> int:
    """What the app's own downloads, models or datasets, take of the Hub's cache."""
    return sum(held_bytes(hub_id, kind) for hub_id in brought(kind))


def runs_on(model_id: str, rows: Iterable[RunRow]) -> list[RunRow]:
    """Runs that cannot be talked to, measured, continued or merged without a model."""
    wanted = _as_written_by_all(model_id)
    return [row for row in rows if _as_written_by_all(row.model) == wanted]


@lru_cache(maxsize=4096)
def _as_written_by_all(model_id: str) -> str:
    """The id of a model; of a folder the same whether it was typed with `~` and a slash at its end or not."""
    return model_id if is_builtin(model_id) or is_hub_id(model_id) else os.path.normpath(typed_path(model_id))


def runs_on_exports(workspace: Workspace, rows: Iterable[RunRow]) -> dict[tuple[str, str], list[RunRow]]:
    """Runs whose base is what was exported of another run, by the id of that run and the form of the export."""
    found: dict[tuple[str, str], list[RunRow]] = {}
    root = f"{workspace.runs}{os.sep}"
    for row in rows:
        model = _as_written_by_all(row.model)
        if model.startswith(root) and len(parts := Path(model[len(root) :]).parts) > 2 and parts[1] == "exports":
            found.setdefault((parts[0], parts[2]), []).append(row)
    return found


def runs_on_run(workspace: Workspace, run_id: str, rows: Iterable[RunRow]) -> list[RunRow]:
    """Runs whose base is any export of a run."""
    return [row for (source, _), needing in runs_on_exports(workspace, rows).items() if source == run_id for row in needing]


def runs_to_start_from(run_id: str, rows: Iterable[RunRow], config_of: Callable[[str], RunConfig | None]) -> list[RunRow]:
    """Runs that have not begun and will begin with what a run has learned; `config_of` gives the settings of a run's id."""
    waiting = [row for row in rows if row.status in (Status.QUEUED, Status.STARTING)]
    return [row for row in waiting if (config := config_of(row.id)) is not None and config.lora.start_from.strip() == run_id]


def refuse_while_run_is_needed(
    workspace: Workspace, run_id: str, rows: Sequence[RunRow], config_of: Callable[[str], RunConfig | None]
) -> None:
    """Raise ModelError where another run works with what a run has learned, or will; `rows` are all runs, for `config_of` see above."""
    refuse_while_needed("What was exported of this run", runs_on_run(workspace, run_id, rows))
    refuse_while_needed("This run", runs_to_start_from(run_id, rows, config_of))


def refuse_while_needed(what: str, needing: Iterable[RunRow]) -> None:
    """Raise ModelError where one of the runs loads a model now, or has still to do so."""
    pressing = [row for row in needing if row.status.is_live or row.status is Status.QUEUED]
    if not pressing:
        return
    others = f" and {len(pressing) - 1} more" if len(pressing) > 1 else ""
    raise ModelError(
        f"{what} is needed by the run {pressing[0].name}{others}.",
        why="It works with it" if pressing[0].status.is_live else "It has still to load it when its turn comes",
        fix="Let the run end, or take it out of the queue, first",
        code="model-needed",
    )


def delete_export(workspace: Workspace, run: RunDir, form: str, rows: Iterable[RunRow]) -> Path:
    """Move an export of a run to the workspace's trash and return where; `rows` are all runs.

    Raises ModelError where there is none of that form, and where a run that works or waits has it as its base.
    """
    folder = run.exports / form
    if Path(form).name != form or not form or form.startswith(".") or not folder.is_dir():
        raise ModelError("This export is not there any more.", fix="Look at the page again", code="export-missing")
    refuse_while_needed("The export", runs_on_exports(workspace, rows).get((run.id, form), ()))
    notes_path, notes = run.exports / EXPORT_NOTES, read_json(run.exports / EXPORT_NOTES)
    kept = {"note": notes[form]} if isinstance(notes, dict) and form in notes else {}
    title = next((one.title for one in EXPORT_FORMS if one.name == form), form)
    name = f"{title}, of {run.called}"
    try:
        target = throw_away(folder, workspace.trash, kind="export", name=name, stem=f"{run.id}-{form}", kept=kept)
    except OSError as error:
        raise _in_use(folder, error) from None
    export_mark(run, form).unlink(missing_ok=True)
    if notes_path.is_file():
        change_json(notes_path, lambda notes: notes.pop(form, None))
    return target


def delete_model(workspace: Workspace, model_id: str, rows: Sequence[RunRow]) -> Path | None:
    """Remove a model from the disk; a folder of the workspace goes to its trash, and where it is then is returned. `rows` are all runs.

    Raises ModelError where there is no such model, where a run works with it or waits for it, and where a program holds it.
    """
    model = kept_model(workspace, model_id)
    if model is None:
        raise ModelError("This model is not kept here any more.", fix="Look at the list again", code="model-missing")
    # One that waits brings it again by itself, unless it was a folder.
    refuse_while_needed("The model", (row for row in runs_on(model_id, rows) if row.status.is_live or model.kind == "folder"))
    try:
        return _moved(model, workspace)
    except OSError as error:
        raise _in_use(model.folder, error) from None


def _in_use(folder: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{folder.name} cannot be deleted.",
        why=error.strerror or str(error),
        fix="Close what has it open, then do it again; the chat lets go of a model with “Free the memory”",
        code="model-in-use",
    )


def _moved(model: KeptModel, workspace: Workspace) -> Path | None:
    if model.kind == "folder":
        return throw_away(model.folder, workspace.trash, kind="model", name=model.folder.name, stem=model.folder.name)
    # At once: half a model would be taken for a damaged one.
    if model.kind == "hub":
        _delete_download(model)
    else:
        remove_at_once(model.folder)
    return None


def _delete_download(model: KeptModel) -> None:
    try:
        with FileLock(download_lock(model.id), timeout=0):
            remove_at_once(model.folder)
    except Timeout:
        raise ModelError(f"{model.id} is being downloaded.", fix="Stop the download first", code="download-busy") from None
