"""Options: what the model learns from."""

from __future__ import annotations

from typing import Literal

from qlora_ui.catalog.formats import FORMATS
from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.values import Mapping, Sources
from qlora_ui.settings.source import DataSource

BUILTIN_DATA = "builtin:plain-pirate"


class DataSection(Section):
    """What the model learns from."""

    sources: Sources = option(
        (DataSource(id=BUILTIN_DATA),),
        "The datasets: the built-in one, files, or ids on the Hub; several are mixed by weight.",
        label="Datasets",
        tier="basic",
        affects=("time", "quality"),
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "columns", "text", "preference"] = option(
        "auto",
        "The layout of a row. Automatic looks at the rows and says why.",
        label="Format",
        choices={"auto": "Detect", **{form.name: form.label for form in FORMATS}},
    )
    mapping: Mapping = option(
        {}, "For mapped columns: which column is the user's text, the answer, the system prompt.", label="Column mapping"
    )
    train_on: Literal["answers", "last-answer", "everything"] = option(
        "answers",
        "Which text the model is graded on. Answers: every assistant turn and its end token, never the questions.",
        label="Learn from",
        term="loss mask",
        tier="basic",
        affects=("quality",),
        choices={"answers": "All answers", "last-answer": "The last answer only", "everything": "Everything, questions too"},
    )
    max_length: int = option(
        1024,
        "Longest conversation in tokens; what is longer is cut. Memory and time grow with it.",
        label="Longest conversation",
        term="max length",
        tier="basic",
        affects=("memory", "time", "quality"),
        ge=16,
        le=131072,
    )
    too_long: Literal["cut", "drop"] = option(
        "cut",
        "What happens to longer conversations: cut at the end, or left out.",
        label="Longer ones are",
        term="truncation",
        choices={"cut": "cut", "drop": "left out"},
        affects=("quality",),
    )
    neutralize_special_tokens: bool = option(
        False,
        "Control tokens of the template inside a user's text are turned into plain text.",
        label="Disarm control tokens in text",
        affects=("quality",),
    )
