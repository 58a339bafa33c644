"""Options: how much the adapter can learn."""

from __future__ import annotations

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.papers import QLORA
from qlora_ui.settings.sections.values import Words


class LoraSection(Section):
    """How much the adapter can learn."""

    rank: int = option(
        16,
        "Size of the update. 4 to 16 teach a style or format, 64 and more new facts; memory and file grow with it.",
        label="Adapter size",
        term="LoRA rank r",
        tier="basic",
        to="lora.r",
        source=QLORA,
        affects=("memory", "time", "quality"),
        ge=1,
        le=512,
    )
    alpha: int | None = option(
        None,
        "Strength of the update; empty keeps it at twice the rank, a good standard value.",
        label="Adapter strength",
        term="LoRA alpha",
        to="lora.lora_alpha",
        affects=("quality",),
        ge=1,
        le=4096,
    )
    dropout: float = option(
        0.05,
        "Share of inputs hidden from the adapter at random while it learns; guards small datasets against learning by heart.",
        label="Adapter dropout",
        term="LoRA dropout",
        to="lora.lora_dropout",
        source=QLORA,
        affects=("memory", "time", "quality"),
        ge=0,
        le=0.5,
    )
    targets: Words = option(
        ("all-linear",),
        "Which layers get an adapter. All linear layers is what the QLoRA paper found necessary to match full fine-tuning.",
        label="Layers that learn",
        term="target modules",
        tier="basic",
        to="lora.target_modules",
        source=QLORA,
        affects=("memory", "time", "quality"),
    )
    rslora: bool = option(
        False,
        "Scales by the root of the rank instead of the rank: steadier for ranks of 64 and more.",
        label="Rank-stabilised",
        term="rsLoRA",
        to="lora.use_rslora",
        source="arXiv 2312.03732",
        affects=("quality",),
    )
    dora: bool = option(
        False,
        "Learns size and direction of the weights apart: sometimes better at small ranks, clearly slower, needs more memory.",
        label="Weight-decomposed",
        term="DoRA",
        to="lora.use_dora",
        source="arXiv 2402.09353",
        affects=("memory", "time", "quality"),
    )
    modules_to_save: Words = option(
        (),
        "Layers trained in full beside the adapter, such as embed_tokens for new words; needs much memory.",
        label="Also train in full",
        term="modules_to_save",
        to="lora.modules_to_save",
        affects=("memory", "time", "quality"),
    )
    start_from: str = option(
        "",
        "A run's id or an adapter's folder to go on from: its weights instead of fresh ones. Base, size and strength must be the same.",
        label="Start from an adapter",
        term="initial adapter",
        affects=("quality",),
    )
