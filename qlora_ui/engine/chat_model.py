"""A base model in 4 bits with its tokenizer and any number of adapters; what the chat and the evaluation compute with."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel

from qlora_ui.base.errors import ModelError, QloraUiError
from qlora_ui.base.files import read_json
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.base_model import ensure_model
from qlora_ui.engine.chat_adapters import RowSwitch, check_adapter, layer_shapes
from qlora_ui.engine.chat_layers import TokenLayers
from qlora_ui.engine.chat_norms import fuse_norms
from qlora_ui.engine.give_back import give_back_memory
from qlora_ui.engine.load import load_quantized, training_device
from qlora_ui.engine.prompt import prompt_ids, renderer_of
from qlora_ui.engine.rendering import RowRefused
from qlora_ui.engine.tokenizer import load_tokenizer, stop_token_ids
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection


class ChatModel:
    """The loaded model; make it with `ChatModel.load`, and throw it away with `free`."""

    def __init__(self, folder: Path, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.folder = folder
        self.base = model
        self.tokenizer = tokenizer
        self.device = device
        self.switch = RowSwitch()
        self.adapters: dict[str, Path] = {}
        """Folder of each loaded adapter by its key."""
        self.stop_ids = frozenset(stop_token_ids(tokenizer, _generation_config(folder, model)))
        config = model.config.get_text_config()
        self.context_tokens = int(getattr(config, "max_position_embeddings", None) or 2048)
        self.num_layers = int(config.num_hidden_layers)
        self._renderer = renderer_of(tokenizer)
        self._layers = layer_shapes(model)
        self._peft: Any = None
        # Chats generate in evaluation mode for ever: dropout would be noise.
        model.eval()
        model.config.use_cache = True
        self.tokens: TokenLayers | None = None
        """The layers as they compute a decode step; None on a CPU."""
        if device.type == "cuda":
            fuse_norms(model)
            self.tokens = TokenLayers(model)

    @classmethod
    def load(
        cls, config: RunConfig, workspace: Workspace, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never
    ) -> ChatModel:
        """Load the base that the settings name; raises ModelError or HardwareError in words."""
        # Progress bars and advice would stand between the lines of a command's output.
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        folder = ensure_model(config.model, workspace, on_progress, is_cancelled)
        device = training_device(config)
        on_progress("Loading the tokenizer", None)
        tokenizer = load_tokenizer(folder, config.model.template)
        on_progress("Loading the model in 4 bits", None)
        with out_of_memory_in_words("The model does not fit."):
            model = load_quantized(folder, config, device)
        if device.type == "cpu":
            unpack_for_cpu(model)
        on_progress("The model is loaded", 1.0)
        loaded = cls(folder, model, tokenizer, device)
        loaded.follow(config.data)
        return loaded

    def follow(self, data: DataSection) -> None:
        """Write what is asked as a run with these settings writes what it learns."""
        if self._renderer is not None:
            self._renderer.neutralize = data.neutralize_special_tokens

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, quantization constants included."""
        seen: dict[int, int] = {}
        for tensor in (*self.base.parameters(), *self.base.buffers()):
            seen[tensor.data_ptr()] = tensor.nbytes
            for part in _parts(getattr(tensor, "quant_state", None)):
                seen[part.data_ptr()] = part.nbytes
        for module in self.base.modules():
            if (unpacked := vars(module).get("unpacked")) is not None:
                seen[unpacked.data_ptr()] = unpacked.nbytes
        return sum(seen.values())

    def add_adapter(self, key: str, folder: Path) -> None:
        """Load an adapter beside the others, without touching the base; the same key replaces.

        Raises ModelError where it does not fit or must not be loaded (see `check_adapter`).
        """
        check_adapter(folder, self._layers)
        self.remove_adapter(key)
        with out_of_memory_in_words("The adapter does not fit beside the model."):
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(
                    self.base, str(folder), adapter_name=key, autocast_adapter_dtype=False, local_files_only=True, use_safetensors=True
                )
            else:
                self._peft.load_adapter(
                    str(folder), adapter_name=key, autocast_adapter_dtype=False, local_files_only=True, use_safetensors=True
                )
        dtype = self.base.get_input_embeddings().weight.dtype
        for name, parameter in self._peft.named_parameters():
            if f".{key}." in name or name.endswith(f".{key}"):
                parameter.data = parameter.data.to(self.device, dtype)
                parameter.requires_grad_(False)
        self._peft.eval()
        self.adapters[key] = folder
        self._install()

    def remove_adapter(self, key: str) -> None:
        """Unload an adapter; nothing happens where it is not loaded."""
        if self.adapters.pop(key, None) is None:
            return
        if self.adapters:
            self._peft.delete_adapter(key)
            self._install()
            return
        # The last one takes PEFT's layers with it; of modules trained in full, `unload` alone would leave the trained ones in the base.
        self._peft.delete_adapter(key)
        self.base = self._peft.unload()
        self._peft = None
        self.switch = RowSwitch()
        if self.tokens is not None:
            self.tokens.forget_adapters()

    def _install(self) -> None:
        """Adapters have come or gone."""
        self.switch.install(self._peft)
        if self.tokens is not None:
            self.tokens.install(self._peft)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a conversation up to where the answer begins; plain text where the model has no template."""
        try:
            return prompt_ids(self.tokenizer, self._renderer, messages, tools)
        except RowRefused as error:
            raise QloraUiError(
                "The model's template cannot write this conversation.",
                why=str(error),
                fix="Turns must alternate between user and assistant; clear the chat or edit it.",
                code="template",
            ) from None

    def answer_ids(self, conversation: Conversation) -> list[int]:
        """Tokens of a conversation's last turn as training learns it: thinking, calls of tools and the end of the turn with it."""
        text = conversation.messages[-1].content
        if self._renderer is not None:
            rendered = self._renderer.rendered(conversation)
            text = rendered.text[slice(*rendered.spans[-1])]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def free(self) -> None:
        """Let go of everything; the object is of no use afterwards."""
        self._peft = None
        self.base = None
        self.switch = RowSwitch()
        self.tokens = None
        self.adapters.clear()
        give_back_memory()


def unpack_for_cpu(model: Any) -> bool:
    """Write the 4-bit weights out in fp32 beside themselves, where a third of the free memory holds them; whether it did.

    On a CPU bitsandbytes dequantizes every weight at every token. The numbers are the very same ones, a token costs two thirds.
    """
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    needed = sum(4 * layer.in_features * layer.out_features for layer in layers)
    if 3 * needed > psutil.virtual_memory().available or any(layer.compute_dtype != torch.float32 for layer in layers):
        return False
    with torch.inference_mode():
        for layer in layers:
            layer.unpacked = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            layer.forward = functools.partial(_unpacked_forward, layer)
    return True


def _unpacked_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.float(), layer.unpacked, layer.bias).to(x.dtype)


@contextlib.contextmanager
def out_of_memory_in_words(what: str) -> Iterator[None]:
    """Turn running out of memory into a QloraUiError that holds no frames, as they would hold the memory."""
    failed = False
    try:
        yield
    except torch.OutOfMemoryError:
        failed = True
    if failed:
        give_back_memory()
        raise ModelError(
            what,
            why="The card has too little free memory.",
            fix="End other programs that use the card, unload other models, or choose a smaller model.",
            code="out-of-memory",
        )


def _generation_config(folder: Path, model: Any) -> Any:
    """The folder's own generation_config.json where there is one: its end tokens are often more than config.json's."""
    values = read_json(folder / "generation_config.json")
    if isinstance(values, Mapping) and values.get("eos_token_id") is not None:
        from transformers import GenerationConfig

        return GenerationConfig(eos_token_id=values["eos_token_id"])
    return model.generation_config


def _parts(state: Any) -> Iterator[torch.Tensor]:
    if state is None:
        return
    for part in (state.absmax, state.code, getattr(state, "offset", None)):
        if isinstance(part, torch.Tensor):
            yield part
    yield from _parts(getattr(state, "state2", None))
