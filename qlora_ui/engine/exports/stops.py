"""Where the answers of an export end: at every token at which the chat ends them, written into the files that others read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.engine.rendering import Renderer
from qlora_ui.engine.tokenizer import load_tokenizer, stop_token_ids

_GENERATION, _CONFIG = "generation_config.json", "config.json"


def stop_ids(base: Path, tokenizer: Any) -> list[int]:
    """End tokens of a base with the tokenizer of a run: the tokenizer's, the base's own, and the template's end of a turn."""
    own = SimpleNamespace(eos_token_id=_own_ends(base))
    try:
        return stop_token_ids(tokenizer, own)
    except ModelError:
        # Plain text can be trained beside a template that writes no chat; there are no turns to end.
        return stop_token_ids(SimpleNamespace(eos_token_id=tokenizer.eos_token_id, chat_template=None), own)


def write_stops(base: Path, folder: Path, tokenizer: Any) -> None:
    """Name the end tokens in the settings of a whole model; a generation_config.json is made where there is none.

    A base that was not made for chats ends at `<|endoftext|>` alone: `generate` and servers would write on behind the `<|im_end|>`
    that was trained.
    """
    stops = stop_ids(base, tokenizer)
    if not stops:
        return
    ends: int | list[int] = stops if len(stops) > 1 else stops[0]
    settings = _read(folder / _CONFIG)
    write_json(folder / _CONFIG, {**settings, "eos_token_id": ends})
    # What transformers would take from config.json where there is no such file.
    special = {name: settings[name] for name in ("bos_token_id", "pad_token_id") if settings.get(name) is not None}
    write_json(folder / _GENERATION, {**(_read(folder / _GENERATION) or special), "eos_token_id": ends})


def name_turn_end(folder: Path) -> None:
    """Make the template's end of a turn the end token of a folder that becomes GGUF, which has a place for one.

    llama.cpp knows the common others (`<|endoftext|>`, `</s>`) by their names. A template that writes the end token itself, by
    whatever name it has, is left alone.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template or "eos_token" in str(tokenizer.chat_template):
        return
    try:
        end = Renderer(tokenizer).end.strip()
    except ModelError:
        return
    if end in tokenizer.get_vocab() and end != tokenizer.eos_token:
        tokenizer.eos_token = end
        tokenizer.save_pretrained(str(folder))


def _own_ends(base: Path) -> Any:
    """What the base itself ends at: a token or a list of them, or None."""
    config = _read(base / _CONFIG)
    for settings in (_read(base / _GENERATION), config, config.get("text_config")):
        if isinstance(settings, Mapping) and settings.get("eos_token_id") is not None:
            return settings["eos_token_id"]
    return None


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}
