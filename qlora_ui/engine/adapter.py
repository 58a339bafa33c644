"""The finished adapter on the disk: safetensors and plain JSON, no pickle, no path of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import read_json, sha256_of, write_json
from qlora_ui.engine.checkpoints import Checkpoint, replace_folder
from qlora_ui.models.weights_mark import weights_mark
from qlora_ui.runs.run_dir import ADAPTER_SIDECAR, ADAPTER_WEIGHTS, MANIFEST
from qlora_ui.settings.run_config import RunConfig

WEIGHTS, CONFIG, SIDECAR = ADAPTER_WEIGHTS, "adapter_config.json", ADAPTER_SIDECAR
_FILES = (WEIGHTS, CONFIG)


def write_adapter(model: Any, folder: Path, config: RunConfig, tensors: dict[str, Any] | None = None) -> None:
    """Write the adapter's weights and settings into `folder`, naming the base by its id.

    `tensors` are those of a split model, gathered and named as in the file. Raises RunError where there would be none.
    """
    if tensors is None:
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        model.peft_config["default"].save_pretrained(str(folder))
    with safe_open(folder / WEIGHTS, "pt") as file:
        if not file.keys():
            raise RunError(
                "The adapter to be saved has no weights.",
                why="None were found in the model; the run would have ended with an empty file",
                fix="Continue from the last checkpoint, and report this: it should not happen",
                code="empty-adapter",
            )
    # peft leaves an empty model card with absolute paths.
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["inference_mode"] = True
    values["base_model_name_or_path"] = config.model.id
    values["revision"] = config.model.revision
    # Sets become lists in an order that changes from process to process; equal runs shall give equal files.
    for name in ("target_modules", "modules_to_save"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def publish_adapter(final: Path, source: Any, config: RunConfig, base: dict[str, Any], tokenizer: Any) -> Path:
    """Put the finished adapter in its place: from a PEFT model, or copied from a Checkpoint; with tokenizer and sidecar.

    `base` describes the model that it belongs to (see `base_identity`); whoever loads it compares.
    """
    staged = final.with_name(".saving-adapter")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        if isinstance(source, Checkpoint):
            for name in _FILES:
                shutil.copyfile(source.path / name, staged / name)
        else:
            write_adapter(source, staged, config)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staged))
        write_json(staged / SIDECAR, {**base, "adapter_sha256": sha256_of(staged / WEIGHTS)})
        replace_folder(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return final


def base_identity(model_folder: Path, config: RunConfig) -> dict[str, Any]:
    """What an adapter's partner must be: id, revision, the shape-giving part of its config and the mark of its weights."""
    values = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    shape = {name: values.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size")}
    return {
        "base_model": config.model.id,
        "revision": config.model.revision,
        "config_sha256": sha256_of(model_folder / "config.json"),
        "shape": shape,
        "weights_mark": weights_mark(model_folder),
    }


def noted_weights(adapter: Path) -> str:
    """The mark of the weights that an adapter, or a checkpoint, was trained on; empty for those of earlier versions and of others."""
    sidecar, manifest = read_json(adapter / SIDECAR), read_json(adapter / MANIFEST)
    notes = manifest.get("notes") if isinstance(manifest, dict) else None
    noted = next((known for known in (sidecar, notes) if isinstance(known, dict)), {})
    return str(noted.get("weights_mark") or "")
