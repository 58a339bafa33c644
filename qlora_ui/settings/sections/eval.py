"""Options: how it is watched."""

from __future__ import annotations

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.values import Lines


class EvalSection(Section):
    """How it is watched."""

    share: float = option(
        0.05,
        "Share of the rows that is kept from training, to see whether the model learned or memorised; 0.05 is 5 %.",
        label="Held back for checking",
        term="eval share",
        tier="basic",
        affects=("time", "quality"),
        ge=0,
        le=0.5,
    )
    every: int = option(
        0, "Steps between checks; 0 picks about ten a run.", label="Check every", term="eval steps", affects=("time",), ge=0, le=1_000_000
    )
    batch_size: int = option(
        4,
        "Held-back conversations checked at once.",
        label="Checked at once",
        term="eval batch",
        to="sft.per_device_eval_batch_size",
        affects=("memory", "time"),
        ge=1,
        le=1024,
    )
    patience: int = option(
        0,
        "Stops when this many checks in a row bring no better loss; 0 never stops early.",
        label="Stop early after",
        term="patience",
        affects=("time", "quality"),
        ge=0,
        le=1000,
    )
    keep_best: bool = option(
        True,
        "The finished adapter is the one of the best check, not of the last step.",
        label="Keep the best",
        term="load best",
        affects=("quality",),
    )
    probes: Lines = option(
        (),
        "Questions that the model answers at step 0 and along the way, so that you see it learn.",
        label="Probe questions",
        term="probe prompts",
        affects=("time",),
    )
    probe_every: int = option(
        0,
        "Steps between answers to the probe questions; 0 picks about five a run.",
        label="Ask every",
        affects=("time",),
        ge=0,
        le=1_000_000,
    )
    probe_tokens: int = option(
        60, "Longest answer to a probe question, in tokens.", label="Probe answer length", affects=("time",), ge=8, le=1024
    )
