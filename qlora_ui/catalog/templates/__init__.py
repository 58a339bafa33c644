"""Chat templates for base models that bring none; each in a file, with the token that ends a turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ChatTemplate:
    """A built-in way to write turns as text."""

    name: str
    """The value of the option `model.template`."""
    label: str
    end: str
    """What ends an assistant's turn. A model whose vocabulary has no such token gets its own end token instead."""

    @cached_property
    def jinja(self) -> str:
        """The template's source."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8").replace("\n", "")


TEMPLATES: tuple[ChatTemplate, ...] = (
    ChatTemplate("chatml", "ChatML", "<|im_end|>"),
    ChatTemplate("llama-3", "Llama 3", "<|eot_id|>"),
    ChatTemplate("mistral", "Mistral", "</s>"),
    ChatTemplate("gemma", "Gemma", "<end_of_turn>"),
    ChatTemplate("phi", "Phi", "<|end|>"),
    ChatTemplate("zephyr", "Zephyr", "</s>"),
    ChatTemplate("alpaca", "Alpaca", "</s>"),
)


def template_named(name: str) -> ChatTemplate:
    """The template with that name; KeyError where there is none."""
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise KeyError(name)
