"""The adapter that a new run begins with (`lora.start_from`): where it lies, and whether its settings are those of the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json, typed_path
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

PATH = "lora.start_from"
CONFIG = "adapter_config.json"


def _newest(run: RunDir) -> Path | None:
    return run.newest_checkpoint


def find_start(config: RunConfig, workspace: Workspace, newest: Callable[[RunDir], Path | None] = _newest) -> tuple[str, Path] | None:
    """What the adapter is called, and its folder, once its settings are known to be this run's; None where none is named.

    It is what the setting names: a folder as it is given; of a run its adapter, else its `newest` checkpoint. Raises QloraUiError in
    words where there is none, or it has another rank or strength: its weights would then mean something else.
    """
    wanted = config.lora.start_from.strip()
    if not wanted:
        return None
    try:
        name, folder = _named(wanted, workspace, newest)
        values = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:  # what was typed may be no path at all
        raise ModelError(
            f"“{wanted[:80]}” cannot be read.",
            why=error.strerror or "" if isinstance(error, OSError) else str(error),
            fix="Give a run's id or an adapter's folder",
            where=PATH,
            code="adapter-unreadable",
        ) from None
    if not isinstance(values, dict) or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"There is no adapter to start from in “{name}”.",
            why=f"{CONFIG} or {ADAPTER_WEIGHTS} is missing",
            fix="Choose a run that saved something, or the folder of an adapter",
            where=PATH,
            code="adapter-missing",
        )
    _check_settings(name, values, config)
    return name, folder


def _named(wanted: str, workspace: Workspace, newest: Callable[[RunDir], Path | None]) -> tuple[str, Path]:
    path = typed_path(wanted)
    if path.is_absolute() or (os.path.isdir(path) and not os.path.isdir(workspace.runs / wanted)):
        return path.name, path.resolve()
    run = find_run(workspace, wanted)
    return run.id, run.adapter if run.has_adapter else newest(run) or run.adapter


def misfit(name: str, why: str, fix: str) -> ModelError:
    """The error of an adapter that this run cannot begin with."""
    return ModelError(f"This run cannot start from “{name}”.", why=why, fix=fix, where=PATH, code="adapter-misfit")


def _check_settings(name: str, values: dict[str, Any], config: RunConfig) -> None:
    lora = config.lora
    for key, label, ours in (
        ("r", "adapter size", lora.rank),
        ("lora_alpha", "adapter strength", config.alpha),
        ("use_rslora", "rsLoRA", lora.rslora),
        ("use_dora", "DoRA", lora.dora),
    ):
        theirs = values.get(key) or (False if isinstance(ours, bool) else None)
        if theirs != ours:
            said = [("on" if value else "off") if isinstance(value, bool) else str(value)[:20] for value in (theirs, ours)]
            raise misfit(name, f"Its {label} is {said[0]}, that of this run {said[1]}", f"Set the {label} to {said[0]}")
