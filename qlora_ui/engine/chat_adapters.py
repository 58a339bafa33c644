"""Adapters in a loaded 4-bit base: checked before they are read, and switched for each row of a batch.

Shapes: B rows of a batch, T tokens, I and O the in- and out-features of a layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from safetensors import SafetensorError, safe_open

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS

BASE = "base"
"""The row key of the model without an adapter."""
_ENDINGS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.bias",
    ".lora_B.bias",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
)
_REFUSED_IF_SET = (
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
    "auto_mapping",
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "arrow_config",
    "alora_invocation_tokens",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
)


def check_adapter(folder: Path, layers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The adapter's configuration, once it is known to fit a base whose layers have these (out, in) features.

    Only `adapter_config.json` and the header of the safetensors file are read. Raises ModelError in words where it is no LoRA
    adapter, asks for things that an adapter must not ask for, or was trained on another base.
    """
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise ModelError(
            f"There is no adapter in {folder.name}.",
            why="adapter_config.json is missing or unreadable.",
            fix="Choose another run or checkpoint.",
            code="adapter-missing",
        )
    _check_config(config)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"The adapter in {folder.name} has no {ADAPTER_WEIGHTS}.",
            why="Other formats can run code when they are opened and are never read.",
            fix="Convert it to safetensors where you trust it.",
            code="adapter-format",
        )
    _check_shapes(_read_shapes(folder / ADAPTER_WEIGHTS), layers, int(config["r"]))
    return config


def layer_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """(out, in) features of every linear layer and embedding of a base model, by its name."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, torch.nn.Embedding):
            shapes[name] = (module.num_embeddings, module.embedding_dim)
    return shapes


def _check_config(config: Mapping[str, Any]) -> None:
    def refuse(what: str) -> ModelError:
        return ModelError("This adapter is not loaded.", why=what, fix="Use a plain LoRA adapter.", code="adapter-refused")

    if config.get("peft_type") != "LORA":
        raise refuse(f"It is of the kind {str(config.get('peft_type'))[:40]}, not LoRA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not 1 <= rank <= 1024:
        raise refuse("Its rank is not a number from 1 to 1024")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refuse("Its alpha is not a number")
    for key in _REFUSED_IF_SET:
        if config.get(key):
            raise refuse(f"It asks for “{key}”")
    if config.get("init_lora_weights") not in (True, False, None, "gaussian"):
        raise refuse("Its weights are meant for a base that was changed before training (init_lora_weights)")
    targets = config.get("target_modules")
    # A single text would be a regular expression, which can take for ever to match.
    names_ok = isinstance(targets, list) and all(isinstance(name, str) and len(name) < 200 for name in targets)
    if targets != "all-linear" and not names_ok:
        raise refuse("Its target modules are no list of names")
    if not all(isinstance(name, str) for name in config.get("modules_to_save") or ()):
        raise refuse("Its modules_to_save are no list of names")


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file, none of which is loaded."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ModelError(f"{path.name} is damaged.", why=str(error)[:200], fix="Copy it again.", code="adapter-damaged") from None


def misfit(why: str) -> ModelError:
    """The error for an adapter whose tensors are not those of the base."""
    return ModelError(
        "The adapter does not fit this base model.", why=why, fix="Choose the base that it was trained on.", code="adapter-misfit"
    )


def _check_shapes(tensors: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, int]], rank: int) -> None:
    if not tensors:
        raise misfit("It holds no weights")
    for name, shape in tensors.items():
        path = name.removeprefix("base_model.model.")
        ending = next((ending for ending in _ENDINGS if path.endswith(ending)), None)
        layer = path.removesuffix(ending) if ending else path.removesuffix(".weight").removesuffix(".bias")
        if layer not in layers:
            if ending is None and _is_norm(layer):
                continue
            raise misfit(f"It was trained for a layer “{layer[:80]}”, which this base does not have")
        num_out, num_in = layers[layer]
        expected = {
            ".lora_A.weight": (rank, num_in),
            ".lora_B.weight": (num_out, rank),
            ".lora_B.bias": (num_out,),
            # An embedding looks its words up: they stand where a layer has its outputs.
            ".lora_embedding_A": (rank, num_out),
            ".lora_embedding_B": (num_in, rank),
            None: (num_out,) if name.endswith(".bias") else (num_out, num_in),
        }.get(ending)
        if expected is not None and shape != expected:
            raise misfit(f"The layer {layer[:80]} would need {_times(expected)} numbers and the adapter brings {_times(shape)}")


def _is_norm(layer: str) -> bool:
    return layer.rsplit(".", maxsplit=1)[-1].endswith("norm")


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


class RowSwitch:
    """Which adapter each row of a batch goes through.

    Replaces the forward of PEFT's plain LoRA layers: all rows share one product with the 4-bit weights, and an adapter's part
    is added with a factor of 1 or 0 a row. PEFT's own mixed batch gives the same, but gathers rows by Python lists, which a
    CUDA graph cannot hold. Adapters with other parts (DoRA, trained embeddings) go through PEFT's forward, one side at a time.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._factors_B11: tuple[torch.Tensor | None, ...] = ()
        self._plain: set[str] = set()
        self._layers: list[Any] = []
        self._model: Any = None
        self._active: str | None = None

    def install(self, peft_model: Any) -> None:
        """Look at the model's adapters again after one was loaded or removed."""
        self._model = peft_model
        self._layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]
        names = {name for layer in self._layers for name in (*layer.lora_A, *layer.lora_embedding_A)}
        self._plain = {name for name in names if self._can_switch(name)}
        for layer in self._layers:
            if isinstance(layer, LoraLinear | LoraLinear4bit):
                layer.forward = functools.partial(self._forward, layer)
        self._active = ""
        self._activate(None)

    def is_plain(self) -> bool:
        """Whether the adapters in use are nothing but LoRA."""
        return self._plain.issuperset(self._names)

    def can_share(self, keys: Sequence[str]) -> bool:
        """Whether rows of these keys can go through one batch."""
        return len(keys) <= 1 or all(key == BASE or key in self._plain for key in keys)

    def choose(self, keys: Sequence[str], dtype: torch.dtype, device: torch.device) -> None:
        """Row i of the next passes goes through adapter `keys[i]` (or the base)."""
        names = tuple(dict.fromkeys(key for key in keys if key != BASE))
        self._factors_B11 = tuple(
            None
            if all(key == name for key in keys)
            else torch.tensor([float(key == name) for key in keys], dtype=dtype, device=device)[:, None, None]
            for name in names
        )
        self._names = names
        if self._model is not None:
            self._activate(next((name for name in names if name not in self._plain), None))

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in use as they are now; the base is none of them."""
        return self._names

    @property
    def factors(self) -> tuple[torch.Tensor | None, ...]:
        """The rows' factors as they are now, one for each adapter in use."""
        return self._factors_B11

    def _activate(self, name: str | None) -> None:
        """Let PEFT's own forwards work for an adapter that needs them; None makes them leave the base alone."""
        if name == self._active:
            return
        if name is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.base_model.set_adapter(name, inference_mode=True)
        self._active = name

    def _can_switch(self, name: str) -> bool:
        if self._model.peft_config[name].modules_to_save:
            return False
        return all(
            isinstance(layer, LoraLinear | LoraLinear4bit) and name not in layer.lora_variant
            for layer in self._layers
            if name in layer.lora_A or name in layer.lora_embedding_A
        )

    def _forward(self, layer: Any, x_BTI: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.is_plain():
            done: torch.Tensor = type(layer).forward(layer, x_BTI, *args, **kwargs)
            return done
        result_BTO: torch.Tensor = layer.base_layer(x_BTI, *args, **kwargs)
        for name, factor_B11 in zip(self._names, self._factors_B11, strict=True):
            if name in layer.lora_A:
                inner_BTR = layer.lora_A[name](x_BTI)
                if factor_B11 is not None:
                    inner_BTR = inner_BTR * factor_B11
                _add_part(result_BTO, inner_BTR, layer.lora_B[name], float(layer.scaling[name]), factor_B11)
        return result_BTO


def _add_part(
    result_BTO: torch.Tensor, inner_BTR: torch.Tensor, b: torch.nn.Linear, scaling: float, factor_B11: torch.Tensor | None
) -> None:
    """Add scaling * (inner through b), in place on the base's fresh output: one launch, where a step has some two hundred of these."""
    flat = result_BTO.view(-1, result_BTO.shape[-1])
    flat.addmm_(inner_BTR.reshape(-1, inner_BTR.shape[-1]), b.weight.t(), alpha=scaling)
    if b.bias is not None:
        bias_O = b.bias * scaling
        result_BTO += bias_O if factor_B11 is None else bias_O * factor_B11
