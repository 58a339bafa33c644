"""A run that begins with the weights of an earlier adapter instead of fresh ones; its optimizer and its schedule start anew."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json, typed_path
from qlora_ui.engine.adapter import CONFIG, SIDECAR, WEIGHTS
from qlora_ui.engine.chat_adapters import check_adapter, layer_shapes
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

PATH = "lora.start_from"


@dataclass(frozen=True, slots=True)
class InitialAdapter:
    """Where the first weights of a run come from."""

    name: str
    folder: Path

    def check_shapes(self, base: Any) -> None:
        """Raise ModelError where the adapter was made for other layers than those of `base`, which has no adapter yet."""
        check_adapter(self.folder, layer_shapes(base))

    def copy_into(self, model: Any) -> None:
        """Put the weights into the fresh adapter of `model`; draws no random numbers, keeps the parameters' dtype."""
        weights = load_file(self.folder / WEIGHTS)
        fresh = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        result = set_peft_model_state_dict(model, weights)
        missing = fresh.intersection(result.missing_keys)
        if missing or result.unexpected_keys:
            layer = next(iter(sorted(missing) or result.unexpected_keys))
            raise _misfit(self.name, f"Only one of the two has weights for {layer}", "Choose the layers that it was trained with")


def find_initial_adapter(config: RunConfig, base: dict[str, Any], workspace: Workspace) -> InitialAdapter | None:
    """The adapter that `lora.start_from` names, once its settings are known to be this run's; None where none is named.

    `base` is the identity of this run's base model (see `base_identity`). Raises ModelError in words where there is no adapter,
    or it belongs to another base, or has another rank or strength: its weights would then mean something else.
    """
    wanted = config.lora.start_from.strip()
    if not wanted:
        return None
    name, folder = _named(wanted, workspace)
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"There is no adapter to start from in “{name}”.",
            why=f"{CONFIG} or {WEIGHTS} is missing",
            fix="Choose a run that saved something, or the folder of an adapter",
            where=PATH,
            code="adapter-missing",
        )
    _check_base(name, read_json(folder / SIDECAR), base)
    _check_settings(name, values, config)
    return InitialAdapter(name, folder)


def _named(wanted: str, workspace: Workspace) -> tuple[str, Path]:
    """What to call it, and where it lies: a folder as it is given; of a run its adapter, else its newest whole checkpoint."""
    path = typed_path(wanted)
    if path.is_absolute() or (os.path.isdir(path) and not os.path.isdir(workspace.runs / wanted)):
        return path.name, path.resolve()
    run = find_run(workspace, wanted)
    if (run.adapter / WEIGHTS).is_file():
        return run.id, run.adapter
    newest, _ = CheckpointStore(run.checkpoints, 1).newest_whole()
    return run.id, newest.path if newest is not None else run.adapter


def _check_base(name: str, sidecar: Any, base: dict[str, Any]) -> None:
    """Our own adapters say what they were trained on; of others only the shapes can be compared."""
    if not isinstance(sidecar, dict) or sidecar.get("config_sha256") == base["config_sha256"]:
        return
    if sidecar.get("base_model") != base["base_model"] or sidecar.get("shape") != base["shape"]:
        raise _misfit(name, f"It was trained on {str(sidecar.get('base_model'))[:120]}", "Choose that base model, or another adapter")


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
            raise _misfit(name, f"Its {label} is {said[0]}, that of this run {said[1]}", f"Set the {label} to {said[0]}")


def _misfit(name: str, why: str, fix: str) -> ModelError:
    return ModelError(f"This run cannot start from “{name}”.", why=why, fix=fix, where=PATH, code="adapter-misfit")
