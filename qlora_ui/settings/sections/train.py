"""Options: how it trains."""

from __future__ import annotations

from typing import Literal

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.papers import QLORA


class TrainSection(Section):
    """How it trains."""

    epochs: float = option(
        3.0,
        "How often the model sees every row. One to three is usual; more learns small datasets by heart.",
        label="Passes over the data",
        term="epochs",
        tier="basic",
        to="sft.num_train_epochs",
        affects=("time", "quality"),
        gt=0,
        le=1000,
    )
    max_steps: int | None = option(
        None,
        "Trains exactly this many steps, fewer or more than the passes over the data would take: those then do not count.",
        label="Number of steps",
        term="max steps",
        to="sft.max_steps",
        affects=("time",),
        ge=1,
        le=10_000_000,
    )
    learning_rate: float = option(
        2e-4,
        "Size of each correction. 0.0002 suits LoRA; 0.001 is bold, 0.00001 hardly moves.",
        label="Learning rate",
        tier="basic",
        to="sft.learning_rate",
        source=QLORA,
        affects=("quality",),
        gt=0,
        le=0.1,
    )
    batch_size: int = option(
        4,
        "Conversations worked on at once. More is faster and needs more memory; the result depends on the effective batch.",
        label="Rows at once",
        term="micro-batch",
        to="sft.per_device_train_batch_size",
        affects=("memory", "time"),
        ge=1,
        le=1024,
    )
    accumulation: int = option(
        4,
        "Micro-batches added up before a correction. Effective batch = rows at once × this.",
        label="Rounds added up",
        term="gradient accumulation",
        to="sft.gradient_accumulation_steps",
        affects=("time", "quality"),
        ge=1,
        le=4096,
    )
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr"] = option(
        "cosine",
        "How the learning rate falls over the run.",
        label="Schedule",
        term="learning-rate scheduler",
        to="sft.lr_scheduler_type",
        affects=("quality",),
        choices={
            "cosine": "Cosine",
            "linear": "Linear",
            "constant": "Constant",
            "constant_with_warmup": "Constant after warm-up",
            "cosine_with_min_lr": "Cosine to a tenth",
        },
    )
    warmup: float = option(
        0.03,
        "Start of the run with a rising learning rate: a share of all steps below 1, a number of steps from 1.",
        label="Warm-up",
        term="warm-up",
        to="sft.warmup_steps",
        source=QLORA,
        affects=("quality",),
        ge=0,
        le=100_000,
    )
    weight_decay: float = option(
        0.0,
        "Pulls the adapter towards zero; 0.1 is much, 0 is off.",
        label="Weight decay",
        to="sft.weight_decay",
        affects=("quality",),
        ge=0,
        le=1,
    )
    max_grad_norm: float = option(
        1.0,
        "Longest step direction that is followed; protects against a bad row.",
        label="Gradient clipping",
        term="max grad norm",
        to="sft.max_grad_norm",
        affects=("quality",),
        gt=0,
        le=1000,
    )
    optimizer: Literal["adamw", "adamw_fp32", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = option(
        "adamw",
        "AdamW is fastest. Master weights keep what bf16 rounds away of a step, for a little memory; the 8-bit and paged ones save some.",
        label="Optimizer",
        to="sft.optim",
        affects=("memory", "time"),
        choices={
            "adamw": "AdamW",
            "adamw_fp32": "AdamW, fp32 master weights",
            "adamw_8bit": "AdamW 8-bit",
            "paged_adamw_8bit": "AdamW 8-bit, paged",
            "paged_adamw_32bit": "AdamW 32-bit, paged",
        },
    )
    checkpointing: Literal["all", "partly", "none"] = option(
        "all",
        "Computes activations again in the backward pass instead of keeping them: far less memory, about a third more arithmetic.",
        label="Recompute to save memory",
        term="gradient checkpointing",
        affects=("memory", "time"),
        choices={"all": "Every layer", "partly": "Some layers", "none": "No layer"},
    )
    kept_layers: int = option(
        0,
        "With “some layers”: how many layers keep their activations and are not computed again.",
        label="Layers kept",
        term="selective checkpointing",
        affects=("memory", "time"),
        ge=0,
        le=1000,
    )
    packing: Literal["auto", "on", "off"] = option(
        "auto",
        "Puts short conversations into one row, unseen by each other, instead of padding. Automatic: where it pays.",
        label="Pack short conversations",
        term="packing",
        affects=("memory", "time"),
        choices={"auto": "Automatic", "on": "On", "off": "Off"},
    )
    fast_path: Literal["auto", "off"] = option(
        "auto",
        "Fused and captured training steps with the numerics of the plain ones. Off: the plain stack, for comparison.",
        label="Fast path",
        affects=("memory", "time"),
        choices={"auto": "Automatic", "off": "Off"},
    )
    neftune: float = option(
        0.0,
        "Noise on the word vectors while training; 5 can make answers richer, 0 is off.",
        label="Embedding noise",
        term="NEFTune alpha",
        to="sft.neftune_noise_alpha",
        source="arXiv 2310.05914",
        affects=("memory", "time", "quality"),
        ge=0,
        le=50,
    )
    seed: int = option(
        42,
        "Start of all random numbers: the same seed, data and machine give the same run; on a graphics card up to rounding.",
        label="Seed",
        to="sft.seed",
        ge=0,
        le=2**31 - 1,
    )
