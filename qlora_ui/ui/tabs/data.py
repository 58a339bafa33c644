"""The Data tab."""

from __future__ import annotations

from qlora_ui.ui.page import Page

SECTIONS = {"model": ("model",), "data": ("data",), "recipe": ("quant", "lora", "train", "eval", "output", "launch")}


def build(page: Page) -> None:
    """Draw the tab."""
    for option in page.form.unplaced(*SECTIONS["data"]):
        page.form.place(option.path)
