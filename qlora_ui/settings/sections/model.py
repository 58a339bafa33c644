"""Options: which model is the base."""

from __future__ import annotations

from typing import Literal

from qlora_ui.settings.option import Section, option

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"


class ModelSection(Section):
    """Which model is the base."""

    id: str = option(
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
