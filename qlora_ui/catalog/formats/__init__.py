"""The dataset formats, one file each; to add one, write its file and a line here. The order is that of detection."""

from __future__ import annotations

from qlora_ui.catalog.formats import alpaca, columns, messages, preference, prompt_completion, sharegpt, text
from qlora_ui.catalog.formats.format import DataFormat

FORMATS: tuple[DataFormat, ...] = (
    preference.FORMAT,
    messages.FORMAT,
    sharegpt.FORMAT,
    alpaca.FORMAT,
    prompt_completion.FORMAT,
    columns.FORMAT,
    text.FORMAT,
)


def format_named(name: str) -> DataFormat:
    """The format with that name; KeyError where there is none."""
    return next(form for form in FORMATS if form.name == name)
