"""What a model is asked with, in the chat, in an evaluation and on the way: a conversation as training writes it, up to its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.rendering import Renderer


def renderer_of(tokenizer: Any, *, neutralize: bool = False) -> Renderer | None:
    """The tokenizer's chat template, ready to run; None for a model that has none and reads plain text."""
    return Renderer(tokenizer, neutralize=neutralize) if tokenizer.chat_template else None


def prompt_ids(
    tokenizer: Any, renderer: Renderer | None, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Tokens of a conversation up to where the answer begins; plain text without a template. Raises RowRefused."""
    if renderer is None:
        plain: list[int] = tokenizer("\n\n".join(message.content for message in messages))["input_ids"]
        # Some tokenizers end every text: what then follows is another one.
        return plain[:-1] if len(plain) > 1 and plain[-1] == tokenizer.eos_token_id else plain
    turns, listed = renderer.turns_of(Conversation(tuple(messages), tuple(tools)))
    ids: list[int] = tokenizer(renderer.render(turns, listed, prompt=True), add_special_tokens=False)["input_ids"]
    return ids
