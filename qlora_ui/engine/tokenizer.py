"""The tokenizer with its template, end token and padding wired; the same for training, preview, chat and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qlora_ui.base.errors import ModelError
from qlora_ui.catalog.templates import template_named

_PADS = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<unk>")


def load_tokenizer(model_folder: str | Path, template: str = "auto") -> Any:
    """The tokenizer of a model folder, with the template of `model.template` and its end token as `eos_token`.

    `auto` keeps the model's own template, which may be none (plain text can still be trained). Raises ModelError where the
    tokenizer cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The tokenizer in {Path(model_folder).name} cannot be read.",
            why=str(error).splitlines()[0][:300] if str(error) else "",
            fix="Download the model again; its folder needs tokenizer.json and tokenizer_config.json.",
            code="MODEL-TOKENIZER",
        ) from None
    if template != "auto":
        _wire(tokenizer, template)
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in _PADS if token in known), tokenizer.eos_token)
    tokenizer.padding_side = "right"
    return tokenizer


def _wire(tokenizer: Any, name: str) -> None:
    """Give the tokenizer a built-in template. The end of a turn must be one token that the model knows: a spelled-out
    marker would be learned as letters and never stop a generation."""
    chosen = template_named(name)
    known = tokenizer.get_vocab()
    jinja = chosen.jinja
    if chosen.end in known:
        tokenizer.eos_token = chosen.end
    elif tokenizer.eos_token:
        jinja = jinja.replace(chosen.end, tokenizer.eos_token)
    else:
        raise ModelError(
            f"The model knows neither {chosen.end} nor an end token of its own.",
            fix="Choose another chat template.",
            where="model.template",
            code="TPL-END",
        )
    tokenizer.chat_template = jinja


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Every token that ends an answer: the tokenizer's, the model's own, and the one that the template writes after a turn."""
    from qlora_ui.engine.rendering import Renderer

    stops: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    theirs = getattr(generation_config, "eos_token_id", None)
    stops += theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    if tokenizer.chat_template:
        end = Renderer(tokenizer).end.strip()
        if end in tokenizer.get_vocab():
            stops.append(tokenizer.convert_tokens_to_ids(end))
    return list(dict.fromkeys(int(stop) for stop in stops))


def writes_the_date(tokenizer: Any) -> bool:
    """Whether the chat template asks what day it is, as those of Llama 3.2 and SmolLM3 do: the same row is another text tomorrow."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def tokenizer_state(tokenizer: Any) -> str:
    """Everything that decides what a text becomes, as text to hash: vocabulary, rules, template, special tokens."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return json.dumps([backend, tokenizer.chat_template, sorted(map(str, tokenizer.special_tokens_map.items()))], sort_keys=True)
