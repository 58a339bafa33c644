"""Options: what is kept."""

from __future__ import annotations

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.values import Words


class OutputSection(Section):
    """What is kept."""

    name: str = option("", "Name of the run; empty makes one from model and date.", label="Run name", tier="basic")
    save_every: int = option(
        0,
        "Steps between checkpoints; 0 picks a tenth of the run, at most 100.",
        label="Save every",
        term="save steps",
        affects=("time",),
        ge=0,
        le=1_000_000,
    )
    keep_last: int = option(
        2, "Checkpoints kept; the best one is kept besides.", label="Checkpoints kept", term="save total limit", ge=1, le=100
    )
    log_every: int = option(
        1, "Steps between points of the loss curve.", label="Log every", term="logging steps", to="sft.logging_steps", ge=1, le=1000
    )
    notes: str = option("", "Anything you want to remember about this run.", label="Notes")
    tags: Words = option((), "Words to find the run by.", label="Tags")
