"""The models of this computer: the built-in one, folders in the workspace, downloads from the Hub."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json, typed_path
from qlora_ui.base.progress import Folders
from qlora_ui.models import builtin
from qlora_ui.models.architecture import builtin_facts, facts_from_config
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.folder import INCOMPLETE, read_folder, refuse_config
from qlora_ui.models.hub_cache import brought, cached_models, cached_snapshot, is_hub_name, stored_bytes
from qlora_ui.models.known import KNOWN_CONFIGS
from qlora_ui.settings.sections import BUILTIN_MODEL

_Files = tuple[Path, frozenset[tuple[str, int, int]]]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be chosen."""

    id: str
    """What belongs into `model.id`."""
    title: str
    kind: str
    """`builtin`, `folder` or `hub`."""
    folder: Path | None
    """Where its files are; None while the built-in model is not yet converted."""
    size_bytes: int
    facts: ModelFacts | None
    problem: str = ""
    """Why it cannot be used, in words; empty where it can."""
    is_begun: bool = False
    """Of the Hub, and a download brings what is missing or damaged."""


_entries: dict[str, tuple[_Files, ModelEntry]] = {}
"""Of models that can be used, by id, with what lay in their folders."""


def is_hub_id(model_id: str) -> bool:
    """Whether an id is `OWNER/NAME` and no folder of this computer."""
    return is_hub_name(model_id) and not os.path.isdir(typed_path(model_id))


def is_on_hub(model_id: str) -> bool:
    """Whether others find the base by its public name: a Hub id, or the built-in model, which is a copy of one."""
    return builtin.is_builtin(model_id) or is_hub_id(model_id)


def public_name(model_id: str) -> str:
    """How a base is called where others read it: its name on the Hub, else the last part of its path, on one line."""
    if builtin.is_builtin(model_id):
        return builtin.HUB_ID
    name = model_id if is_hub_id(model_id) else model_id.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return " ".join(name.split())


def tuned_name(model_id: str) -> str:
    """The first part of the names of a fine-tune's files, from its base's: `SmolLM2-135M-Instruct-tuned`."""
    return f"{Path(public_name(model_id)).name}-tuned"


def needs_download(model_id: str, revision: str | None, workspace: Folders) -> bool:
    """Whether this version of a model has to come from the Hub, all of it or a part, before it can be used."""
    folder = find_model_folder(model_id, revision, workspace)
    if builtin.is_builtin(model_id) or not is_hub_id(model_id) or folder is None:
        return is_hub_id(model_id)
    try:
        read_folder(folder)
    except ModelError as error:
        return error.code in INCOMPLETE
    return False


def list_models(workspace: Folders) -> list[ModelEntry]:
    """The built-in model, then the folders in the workspace's `models`, then what is in the Hub's cache; partial ones say so."""
    converted = builtin.converted_folder(workspace)
    entries = [_builtin_entry(workspace)]
    entries += [
        _folder_entry(str(folder), folder.name, "folder", folder)
        for folder in sorted(workspace.models.iterdir())
        if folder != converted and not folder.name.startswith(".") and (folder / "config.json").is_file()
    ]
    entries += [_folder_entry(model_id, model_id, "hub", folder) for model_id, folder in cached_models()]
    known = {entry.id for entry in entries}
    # The large files come first: a download that was stopped early has nothing but a part of them.
    entries += [
        ModelEntry(model_id, model_id, "hub", None, stored_bytes(model_id), None, "Its download was stopped.", is_begun=True)
        for model_id in brought()
        if model_id not in known and stored_bytes(model_id)
    ]
    return entries


def find_model_folder(model_id: str, revision: str | None, workspace: Folders) -> Path | None:
    """Where the model's files are, or None where it must first be converted or downloaded. Does not look into the folder."""
    if builtin.is_builtin(model_id):
        return builtin.converted_folder(workspace) if builtin.is_converted(workspace) else None
    if is_hub_id(model_id):
        return cached_snapshot(model_id, revision)
    return typed_path(model_id)


def model_facts(model_id: str, revision: str | None, workspace: Folders) -> ModelFacts | None:
    """What is known of a model: exact for folders and downloads, from its configuration before that, None where nothing is known.

    Raises ModelError where the model is refused or the folder does not exist.
    """
    if builtin.is_builtin(model_id):
        return replace(builtin_facts(), licence=builtin.LICENCE, has_chat_template=True)
    if not model_id:
        raise ModelError("No model is chosen.", fix="Choose one on the Model tab.", where="model.id", code="model-missing")
    folder = find_model_folder(model_id, revision, workspace)
    if not is_hub_id(model_id) and folder is not None:
        return read_folder(folder)
    if folder is not None:
        try:
            return read_folder(folder)
        except ModelError as error:
            if error.code not in INCOMPLETE:
                raise
    config = read_json(folder / "config.json") if folder is not None else None
    config = config or KNOWN_CONFIGS.get(model_id)
    if not isinstance(config, dict):
        return None
    refuse_config(config, model_id)
    return facts_from_config(config)


def _builtin_entry(workspace: Folders) -> ModelEntry:
    is_there = builtin.is_converted(workspace)
    problem = (
        "" if is_there or builtin.gguf_path() else f"The package {builtin.PACKAGE} is not installed; {builtin.HUB_ID} is the same model."
    )
    folder = builtin.converted_folder(workspace) if is_there else None
    facts = model_facts(BUILTIN_MODEL, None, workspace)
    return ModelEntry(BUILTIN_MODEL, builtin.TITLE, "builtin", folder, builtin.CONVERTED_BYTES, facts, problem)


def _folder_entry(model_id: str, title: str, kind: str, folder: Path) -> ModelEntry:
    """Read once for what lies in the folder: a large model's headers take 10 to 15 ms, and pages ask for dozens of models often."""
    files = _files_in(folder)
    known = _entries.get(model_id)
    if known is not None and known[0] == (folder, files):
        return known[1]
    try:
        facts = read_folder(folder)
    except ModelError as error:
        # Not kept: what could not be read may be readable the next time.
        words = " ".join(replace(problem, where="").sentence() for problem in error.problems)
        return ModelEntry(model_id, title, kind, folder, 0, None, words, kind == "hub" and error.code in INCOMPLETE)
    entry = ModelEntry(model_id, title, kind, folder, facts.stored_bytes or 0, facts)
    _entries[model_id] = ((folder, files), entry)
    return entry


def _files_in(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size and time of change of each file; the Hub's cache has links to them."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        for file in listing:
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.add((file.name, stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
