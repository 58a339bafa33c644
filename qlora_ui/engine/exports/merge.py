"""Base and adapter in one model, shard by shard: memory holds one weight matrix at a time, whatever the size of the model.

Merged on the dequantized base it is the model that was trained and that the chat answers with; merged on the original weights
it is a model that nobody has tried before, often a little better. `merge_and_unload` of a loaded 4-bit model is neither: it
quantizes again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb_functional
import torch
from safetensors import safe_open

from qlora_ui.base.files import write_json
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.engine.chat_adapters import misfit
from qlora_ui.engine.exports.lora import LoraWeights, read_lora
from qlora_ui.engine.exports.safetensors_stream import rewrite
from qlora_ui.engine.exports.stops import write_stops
from qlora_ui.engine.load import compute_dtype, training_device
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.models.folder import INDEX, read_folder, read_header, weight_files
from qlora_ui.settings.run_config import RunConfig

_COPIED = ("generation_config.json", "tokenizer.model", "LICENSE", "LICENSE.txt", "NOTICE")
_OUTPUT = "lm_head.weight"
_SINGLE = "model.safetensors"
_BLOCK = 64
"""Weights that share a scale; bitsandbytes' own default, and what its Linear4bit uses."""


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    config: RunConfig,
    *,
    dequantized: bool,
    dtype: torch.dtype = torch.bfloat16,
    on_cpu: bool = False,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> None:
    """Write the merged model to the folder `out` as safetensors in bf16 (or fp16).

    `on_cpu` leaves the card to whoever works there; the numbers' format is that of the run's device all the same. Raises ModelError
    where adapter and base do not belong together, and Cancelled.
    """
    out.mkdir(parents=True, exist_ok=True)
    lora = read_lora(adapter)
    untied = untied_output(base, lora)
    change = weight_change(lora, config, base, dequantized=dequantized, on_cpu=on_cpu)
    files = weight_files(base)
    total = 0
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files):
        names = sorted(read_header(file))
        counted = _Counted(change, len(names), number, len(files), on_progress, is_cancelled)
        last = number == len(files) - 1
        total += rewrite(file, out / file.name, counted, untied if last else None, dtype)
        weight_map |= dict.fromkeys([*names, *(untied if last else ())], file.name)
    _refuse_leftovers(lora)
    # A single shard may be named as one of one; only the index says so to those who load it.
    if [file.name for file in files] != [_SINGLE]:
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    _write_settings(base, out, config, dtype, untie=bool(untied))


def _quantized_names(base: Path) -> tuple[str, ...]:
    """Endings of the weights that are 4-bit in training: every linear layer of the decoder, whether it has an adapter or not."""
    return tuple(f".{linear.name}.weight" for linear in read_folder(base).linears)


def weight_change(
    lora: LoraWeights, config: RunConfig, base: Path, *, dequantized: bool, on_cpu: bool = False
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """What a merge makes of each weight: its name and stored value to the merged one, changed on the run's device or the CPU."""
    quantized = _quantized_names(base)
    device = training_device(config)
    dtype = getattr(torch, compute_dtype(config, device))
    if on_cpu:
        device = torch.device("cpu")

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        if dequantized and name.endswith(quantized):
            weight = _as_trained(weight.to(device, dtype), config)
        elif name in lora.layers:
            weight = weight.to(device)
        merged = lora.apply(name, weight)
        if merged.shape != weight.shape:
            raise misfit(f"{name} has the shape {_shape(weight)}, and the adapter brings {_shape(merged)}.")
        return merged

    return change


def _as_trained(weight: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """What 4 bits left of a weight: packed and unpacked exactly as loading and every forward pass do."""
    packed, state = bnb_functional.quantize_4bit(
        weight.contiguous(),
        blocksize=_BLOCK,
        compress_statistics=config.quant.double_quant,
        quant_type=config.quant.type,
        quant_storage=getattr(torch, config.quant.storage),
    )
    restored: torch.Tensor = bnb_functional.dequantize_4bit(packed, state)
    return restored


@dataclass(slots=True)
class _Counted:
    """`change` with progress, stopped between two tensors."""

    change: Callable[[str, torch.Tensor], torch.Tensor]
    num_names: int
    number: int
    num_files: int
    on_progress: OnProgress
    is_cancelled: IsCancelled
    done: int = 0

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        stop_if(self.is_cancelled, "The export")
        self.on_progress(f"Merging file {self.number + 1} of {self.num_files}", (self.number + self.done / self.num_names) / self.num_files)
        self.done += 1
        return self.change(name, weight)


def untied_output(base: Path, lora: LoraWeights) -> dict[str, torch.Tensor]:
    """The output layer of a base that shares it with the embedding, where training changed one of the two only."""
    places = {name: file for file in weight_files(base) for name in read_header(file)}
    if _OUTPUT in places:
        return {}
    if _OUTPUT in lora.replaced:
        lora.used.add(_OUTPUT)
        return {_OUTPUT: lora.replaced[_OUTPUT]}
    embedding = next((name for name in (*lora.replaced, *lora.layers) if name.endswith(".embed_tokens.weight")), None)
    if embedding is None or embedding not in places:
        return {}
    with safe_open(str(places[embedding]), framework="pt") as stored:
        return {_OUTPUT: stored.get_tensor(embedding)}


def _refuse_leftovers(lora: LoraWeights) -> None:
    if lora.unused:
        name = min(lora.unused)
        raise misfit(f"It was trained for {name} (and {len(lora.unused) - 1} more), which this base does not have.")


def _write_settings(base: Path, out: Path, config: RunConfig, dtype: torch.dtype, *, untie: bool) -> None:
    settings: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name not in ("_name_or_path", "quantization_config", "torch_dtype")}
    settings["dtype"] = str(dtype).removeprefix("torch.")
    if untie:
        settings["tie_word_embeddings"] = False
    write_json(out / "config.json", settings)
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    tokenizer = load_tokenizer(base, config.model.template)
    tokenizer.save_pretrained(str(out))
    write_stops(base, out, tokenizer)


def _shape(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
