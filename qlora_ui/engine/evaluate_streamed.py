"""A model larger than the memory, scored layer by layer: a layer is read, all rows pass through it, and it is let go.

Memory holds embedding, output layer and one decoder layer; the rows' hidden states wait in main memory. The numbers are those of
the whole model, since its own code computes them: only the decoder layers are told to stop it there or to pass on what is known.
Shapes: T tokens of a row, H the hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_ui.engine.evaluate_scores import EvalRow
from qlora_ui.models.folder import read_header, weight_files

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""A weight's name and its stored value to the value to compute with."""


class _Reached(Exception):
    """Carries a layer's output out of the model's forward pass."""

    def __init__(self, hidden_1TH: torch.Tensor) -> None:
        self.hidden_1TH = hidden_1TH
        super().__init__()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build: the base's folder, how to compute, and what becomes of each weight."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    attention: str
    change: Change
    untied: Mapping[str, torch.Tensor]
    """An output layer of its own that the base does not have."""


LOGIT_BYTES = 14
"""Of a word at a learned token: as computed, in fp32, and the loss's own copy and sums."""


def streamed_bytes(folder: Path, dtype: torch.dtype, most_learned: int) -> int:
    """The most memory at a time: all weights outside the layers, one layer, the largest matrix in fp32 twice, or a row's logits.

    `most_learned` is the largest number of learned tokens whose logits are computed at once.
    """
    outside, largest, num_words = 0, 0, 0
    layers: dict[str, int] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            size = math.prod(entry["shape"])
            head, _, behind = name.partition(".layers.")
            if behind:
                layer = f"{head}.{behind.partition('.')[0]}"
                layers[layer] = layers.get(layer, 0) + size
                largest = max(largest, size)
            else:
                outside += size
                num_words = max(num_words, entry["shape"][0])
    return int(dtype.itemsize) * (outside + max(layers.values(), default=0)) + max(8 * largest, LOGIT_BYTES * num_words * most_learned)


def waiting_bytes(folder: Path, dtype: torch.dtype, rows: Sequence[EvalRow]) -> int:
    """Main memory for the hidden states of all rows, which wait between two layers."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    return int(dtype.itemsize) * int(config.hidden_size) * sum(map(len, {tuple(row.ids) for row in rows}))


class StreamedModel:
    """Answers calls as a causal language model does, for the rows that have passed through it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        config = AutoConfig.from_pretrained(recipe.folder, trust_remote_code=False, local_files_only=True)
        if recipe.untied:
            config.tie_word_embeddings = False
        with init_empty_weights(include_buffers=False):
            self._model = AutoModelForCausalLM.from_config(config, dtype=recipe.dtype, attn_implementation=recipe.attention).eval()
        self._layers: Any = self._model.get_decoder().layers
        self._places = {name: file for file in weight_files(recipe.folder) for name in read_header(file)}
        self._num_done = 0
        self._hidden: dict[tuple[int, ...], torch.Tensor] = {}
        self._current_1TH: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            layer.forward = self._stub(index, layer)
        inside = {id(parameter) for parameter in self._layers.parameters()}
        self._fill(self._model, "", skip=inside)
        for _, buffer in self._model.named_buffers():
            buffer.data = buffer.data.to(recipe.device)
        output = self._model.get_output_embeddings()
        if output.weight.device.type == "meta":
            output.weight = self._model.get_input_embeddings().weight

    def pass_through(self, rows: Sequence[EvalRow], between: Callable[[int, int], None]) -> None:
        """Send the rows through all layers; `between` is called with layers done and layers in all, and may raise to stop."""
        prefix = next(name for name, module in self._model.named_modules() if module is self._layers)
        # A row that is there twice passes once: its second pass would take what the layer gave for what it was given.
        distinct = dict.fromkeys(tuple(row.ids) for row in rows)
        for index, layer in enumerate(self._layers):
            between(index, len(self._layers))
            self._fill(layer, f"{prefix}.{index}.")
            for ids in distinct:
                self._hidden[ids] = self._step(ids).to("cpu")
            layer.to("meta")
            self._num_done += 1

    def __call__(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """The output for a row that has passed through."""
        self._current_1TH = self._hidden[tuple(input_ids[0].tolist())].to(self._recipe.device)
        return self._model(input_ids=input_ids, **arguments)

    def _step(self, ids: Sequence[int]) -> torch.Tensor:
        """The output of the layer that is filled."""
        known_1TH = self._hidden.get(tuple(ids))
        self._current_1TH = None if known_1TH is None else known_1TH.to(self._recipe.device)
        try:
            with torch.inference_mode():
                self._model(input_ids=torch.tensor([list(ids)], device=self._recipe.device), use_cache=False)
        except _Reached as reached:
            return reached.hidden_1TH
        raise AssertionError("no layer was reached")

    def _stub(self, index: int, layer: Any) -> Callable[..., torch.Tensor]:
        def forward(hidden_1TH: torch.Tensor, *args: Any, **arguments: Any) -> torch.Tensor:
            if index < self._num_done:
                assert self._current_1TH is not None
                return self._current_1TH
            out = type(layer).forward(layer, hidden_1TH, *args, **arguments)
            raise _Reached(out[0] if isinstance(out, tuple) else out)

        return forward

    def _fill(self, module: nn.Module, prefix: str, skip: set[int] | None = None) -> None:
        """Read the weights of a module that has none; those in `skip`, by identity, stay empty."""
        recipe = self._recipe
        for name, parameter in list(module.named_parameters()):
            full = prefix + name
            if (skip and id(parameter) in skip) or (full not in self._places and full not in recipe.untied):
                continue
            if full in recipe.untied:
                value = recipe.untied[full]
            else:
                with safe_open(str(self._places[full]), framework="pt") as stored:
                    value = recipe.change(full, stored.get_tensor(full))
            owner, _, leaf = name.rpartition(".")
            value = value.to(recipe.device, recipe.dtype)
            setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
