"""Options: which model is the base."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from qlora_ui.settings.option import Section, option

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
_QUOTED = re.compile(r"^([\"'])(.+)\1$")
_ON_THE_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)(?:/tree/main)?/?(?:\?.*)?")


def pasted_model(text: str) -> str:
    """A model's id or folder as it was meant: Windows copies a path in quotation marks, a browser the address of a model's page.

    An address of another branch stays as it is: its version belongs into an option of its own.
    """
    bare = _QUOTED.sub(r"\2", text.strip())
    on_the_hub = _ON_THE_HUB.fullmatch(bare)
    return on_the_hub[1] if on_the_hub else bare


class ModelSection(Section):
    """Which model is the base."""

    id: Annotated[str, AfterValidator(pasted_model)] = option(
        BUILTIN_MODEL,
        "The model that is fine-tuned: the built-in one, a folder, or an id on the Hub.",
        label="Base model",
        tier="basic",
        affects=("memory", "time", "quality"),
    )
    revision: str | None = option(
        None, "A branch, tag or commit of the Hub model; empty takes its main branch.", label="Version on the Hub", term="revision"
    )
    template: Literal["auto", "chatml", "llama-3", "mistral", "gemma", "phi", "zephyr", "alpaca"] = option(
        "auto",
        "How turns become text. Automatic takes the model's own; choose one for a base model that has none.",
        label="Chat template",
        choices={
            "auto": "Automatic",
            "chatml": "ChatML",
            "llama-3": "Llama 3",
            "mistral": "Mistral",
            "gemma": "Gemma",
            "phi": "Phi",
            "zephyr": "Zephyr",
            "alpaca": "Alpaca",
        },
        affects=("quality",),
    )
    attention: Literal["auto", "sdpa", "eager"] = option(
        "auto",
        "The attention kernel. Automatic is the fastest that is right; eager needs memory with the square of the length.",
        label="Attention",
        term="attention kernel",
        choices={"auto": "Automatic", "sdpa": "SDPA", "eager": "Eager (slow, for comparison)"},
        affects=("memory", "time"),
    )
