"""The five models that an evaluation compares: the base in 16 and in 4 bits, the adapter on it, and its two ways of being merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_ui.base.units import format_bytes
from qlora_ui.engine.evaluate_scores import MOST_PLACES, EvalRow
from qlora_ui.engine.evaluate_streamed import Change, Recipe, StreamedModel, streamed_bytes, waiting_bytes
from qlora_ui.engine.exports.lora import read_lora
from qlora_ui.engine.exports.merge import untied_output, weight_change
from qlora_ui.engine.give_back import give_back_memory
from qlora_ui.engine.load import attention_kernel, compute_dtype, load_quantized
from qlora_ui.settings.run_config import RunConfig

MARGIN = 1.15
"""Room beside the weights for activations, cache and the libraries' own."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the compared models."""

    name: str
    title: str
    about: str


BASE_FULL = Variant("base-full", "Base, 16-bit", "The original weights.")
BASE_4BIT = Variant("base-4bit", "Base, 4-bit", "What the adapter was trained on.")
ADAPTER = Variant("adapter-4bit", "Adapter on 4-bit", "What the chat answers with.")
MERGED_ORIGINAL = Variant("merged-original", "Whole, original weights", "The adapter added to weights that it never saw in training.")
MERGED_DEQUANTIZED = Variant("merged-dequantized", "Whole, as trained", "The very weights of training, written out in 16 bits.")
VARIANTS = (BASE_FULL, BASE_4BIT, ADAPTER, MERGED_ORIGINAL, MERGED_DEQUANTIZED)


@dataclass(frozen=True, slots=True)
class UnquantizedModels:
    """Loads the base without quantization (bf16 on a card, fp32 on a CPU), plain or merged; one at a time, layer by layer where it must."""

    folder: Path
    config: RunConfig
    device: torch.device
    num_params: int

    @property
    def dtype(self) -> torch.dtype:
        """The run's arithmetic."""
        dtype: torch.dtype = getattr(torch, compute_dtype(self.config, self.device))
        return dtype

    def fits(self, variant: Variant) -> bool:
        """Whether memory holds the whole model."""
        needed: float = self.num_params * int(self.dtype.itemsize) * MARGIN
        if variant == MERGED_DEQUANTIZED:
            needed += self.num_params * 0.6
        return needed <= self._free_bytes()

    def reason_to_skip(self, rows: Sequence[EvalRow]) -> str:
        """Why a variant that does not fit cannot be looked at layer by layer either, in words; empty where it can."""
        most_learned = min(max((len(row.places) for row in rows), default=0), MOST_PLACES)
        needed, free = streamed_bytes(self.folder, self.dtype, most_learned) * MARGIN, self._free_bytes()
        waiting, room = waiting_bytes(self.folder, self.dtype, rows), psutil.virtual_memory().available
        if self.device.type == "cpu":
            needed, waiting = needed + waiting, 0
        if needed > free:
            return f"needs {format_bytes(needed)} of memory even layer by layer, {format_bytes(free)} are free"
        return "" if waiting <= room else f"needs {format_bytes(waiting)} of main memory layer by layer, {format_bytes(room)} are free"

    def _free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available)

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The original weights."""
        yield from _freed(self._load)

    @contextmanager
    def merged(self, adapter: Path, *, dequantized: bool) -> Iterator[Any]:
        """The adapter merged into the original weights, or into the 4-bit ones written out.

        Everything is read from the disk again: a 4-bit model that has answered on a CPU may have been repacked.
        """

        def load() -> Any:
            model = self._load()
            if dequantized:
                _write_out(load_quantized(self.folder, self.config, self.device), model)
            if untied_output(self.folder, read_lora(adapter)):
                # peft merges into the embedding's own weights: an output layer that shares them would change with it, as in no training.
                output = model.get_output_embeddings()
                output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
                model.config.tie_word_embeddings = False
            merged = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False, local_files_only=True)
            return merged.merge_and_unload(progressbar=False).eval()

        yield from _freed(load)

    @contextmanager
    def by_layer(
        self, variant: Variant, adapter: Path, rows: Sequence[EvalRow], between: Callable[[int, int], None]
    ) -> Iterator[StreamedModel]:
        """The variant with the rows sent through it layer by layer."""
        change: Change = lambda name, weight: weight
        untied: Mapping[str, torch.Tensor] = {}
        if variant != BASE_FULL:
            lora = read_lora(adapter)
            change = weight_change(lora, self.config, self.folder, dequantized=variant == MERGED_DEQUANTIZED)
            untied = untied_output(self.folder, lora)
        recipe = Recipe(self.folder, self.dtype, self.device, attention_kernel(self.folder, self.config), change, untied)

        def load() -> StreamedModel:
            model = StreamedModel(recipe)
            model.pass_through(rows, between)
            return model

        yield from _freed(load)

    def _load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=self.dtype,
            attn_implementation=attention_kernel(self.folder, self.config),
            device_map={"": self.device.index or 0 if self.device.type == "cuda" else "cpu"},
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        ).eval()


def _write_out(quantized: Any, whole: Any) -> None:
    """Put the 4-bit model's weights, as they are computed with, into the unquantized model, layer by layer."""
    layers = dict(whole.named_modules())
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            layers[name].weight.data.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))


def _freed(load: Callable[[], Any]) -> Iterator[Any]:
    model = load()
    try:
        yield model
    finally:
        del model
        give_back_memory()
