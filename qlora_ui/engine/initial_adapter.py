"""A run that begins with the weights of an earlier adapter instead of fresh ones; its optimizer and its schedule start anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from qlora_ui.base.files import read_json
from qlora_ui.engine.adapter import SIDECAR, WEIGHTS
from qlora_ui.engine.chat_adapters import check_adapter, layer_shapes
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.start_from import find_start, misfit
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig


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
            raise misfit(self.name, f"Only one of the two has weights for {layer}", "Choose the layers that it was trained with")


def find_initial_adapter(config: RunConfig, base: dict[str, Any], workspace: Workspace) -> InitialAdapter | None:
    """The adapter that `lora.start_from` names, once its settings are known to be this run's; None where none is named.

    `base` is the identity of this run's base model (see `base_identity`). Raises ModelError in words where there is no adapter,
    or it belongs to another base, or has another rank or strength: its weights would then mean something else.
    """
    found = find_start(config, workspace, _newest)
    if found is None:
        return None
    name, folder = found
    _check_base(name, read_json(folder / SIDECAR), base)
    return InitialAdapter(name, folder)


def _newest(run: RunDir) -> Path | None:
    newest = CheckpointStore(run.checkpoints, 1).newest_adapter()
    return newest.path if newest is not None else None


def _check_base(name: str, sidecar: Any, base: dict[str, Any]) -> None:
    """Our own adapters say what they were trained on; of others only the shapes can be compared."""
    if not isinstance(sidecar, dict) or sidecar.get("config_sha256") == base["config_sha256"]:
        return
    if sidecar.get("base_model") != base["base_model"] or sidecar.get("shape") != base["shape"]:
        raise misfit(name, f"It was trained on {str(sidecar.get('base_model'))[:120]}", "Choose that base model, or another adapter")
