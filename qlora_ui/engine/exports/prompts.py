"""The questions that the check of an export asks: those of the run's own rows, written as training wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_ui.data.rows import Conversation
from qlora_ui.engine.prompt import prompt_ids, renderer_of
from qlora_ui.engine.rendering import Renderer, RowRefused
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.runs.run_dir import RunDir


def check_prompts(run: RunDir, num_prompts: int, base: Path) -> list[list[int]]:
    """At most `num_prompts` questions as tokens, held-back ones first; rows without one that the template can write are left out."""
    config = run.config()
    tokenizer = load_tokenizer(base, config.model.template)
    renderer = renderer_of(tokenizer, neutralize=config.data.neutralize_special_tokens)
    prompts: list[list[int]] = []
    for name in ("eval.jsonl", "train.jsonl"):
        for conversation in _conversations(run.data / name):
            if len(prompts) == num_prompts:
                return prompts
            ids = _question(conversation, renderer, tokenizer)
            if ids:
                prompts.append(ids)
    return prompts


def _question(conversation: Conversation, renderer: Renderer | None, tokenizer: Any) -> list[int]:
    """What comes before the first answer, as tokens; none where there is no answer, or nothing before it."""
    first = next((at for at, message in enumerate(conversation.messages) if message.role == "assistant"), 0)
    if first == 0:
        return []
    try:
        return prompt_ids(tokenizer, renderer, conversation.messages[:first], conversation.tools)
    except RowRefused:
        return []


def _conversations(path: Path) -> Iterator[Conversation]:
    """The rows of a file, if it is there. Read as bytes: these end a line at a line feed alone, a text also at the U+2028 in an answer."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield Conversation.from_dict(json.loads(line))
