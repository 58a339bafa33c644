"""The arithmetic of an adapter, layer by layer: what it adds to which weight.

Shapes: O and I the out- and in-features of a layer, R the rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS

PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "words",
    ".lora_embedding_B": "directions",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
"""Endings of an adapter's tensors, and what they are."""


@dataclass(slots=True)
class LayerUpdate:
    """The adapter's tensors of one linear layer."""

    a_RI: torch.Tensor | None = None
    b_OR: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    """DoRA's sizes of the rows, of an embedding those of the columns; None for plain LoRA."""
    is_embedding: bool = False


@dataclass(slots=True)
class LoraWeights:
    """A whole adapter, ready to be merged."""

    scaling: float
    layers: dict[str, LayerUpdate]
    """By the name of the weight that each changes (`model.layers.0.self_attn.q_proj.weight`)."""
    replaced: dict[str, torch.Tensor]
    """Weights that were trained in full."""
    used: set[str] = field(default_factory=set)

    def apply(self, name: str, weight_OI: torch.Tensor) -> torch.Tensor:
        """The weight with the adapter in it, in fp32 on the weight's device; the weight itself where the adapter has no part.

        Formulas: LoRA W + s·BA (arXiv 2106.09685); DoRA m·(W + s·BA) / ‖W + s·BA‖ per row (arXiv 2402.09353), of an
        embedding, whose rows are words, per column.
        """
        if name in self.replaced:
            self.used.add(name)
            return self.replaced[name]
        update = self.layers.get(name)
        if update is None:
            return weight_OI
        self.used.add(name)
        assert update.a_RI is not None and update.b_OR is not None
        device = weight_OI.device
        merged_OI = weight_OI.float()
        merged_OI = torch.addmm(merged_OI, update.b_OR.to(device, torch.float32), update.a_RI.to(device, torch.float32), alpha=self.scaling)
        if update.magnitude is not None:
            along = 0 if update.is_embedding else 1
            sizes = torch.linalg.norm(merged_OI, dim=along, keepdim=True)
            merged_OI *= update.magnitude.to(device, torch.float32).reshape(sizes.shape) / sizes
        return merged_OI

    @property
    def unused(self) -> set[str]:
        """Names of weights that the adapter changes and nobody asked for: those of another base."""
        return (self.layers.keys() | self.replaced.keys()) - self.used


def read_lora(folder: Path) -> LoraWeights:
    """The adapter in a folder; raises ModelError for parts that cannot be merged."""
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise ModelError(f"There is no adapter in {folder.name}.", fix="Train one, or choose another run.", code="adapter-missing")
    layers: dict[str, LayerUpdate] = {}
    replaced: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(str(folder / ADAPTER_WEIGHTS)).items():
        name = key.removeprefix(PREFIX)
        ending = next((ending for ending in _PARTS if name.endswith(ending)), None)
        if ending is None:
            if "lora_" in name:
                raise ModelError(
                    f"The adapter changes {name.split('.lora_')[0]} in a way that cannot be merged.",
                    fix="Export it as an adapter instead.",
                    code="export-merge",
                )
            replaced[name] = tensor
            continue
        update = layers.setdefault(f"{name.removesuffix(ending)}.weight", LayerUpdate())
        match _PARTS[ending]:
            case "a":
                update.a_RI = tensor
            case "b":
                update.b_OR = tensor
            case "words":
                # A column of A for each word, and B back into the model: the other way round than in a layer.
                update.b_OR, update.is_embedding = tensor.T, True
            case "directions":
                update.a_RI = tensor.T
            case _:
                update.magnitude = tensor
    return LoraWeights(_scaling(config), layers, replaced)


def _scaling(config: Mapping[str, Any]) -> float:
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_plain_alpha(folder: Path) -> None:
    """Write an adapter's strength so that alpha / rank gives it: the only scaling that llama.cpp and its converter know."""
    path = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "lora_alpha": _scaling(config) * int(config["r"]), "use_rslora": False})
