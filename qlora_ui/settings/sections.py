"""Every option of the product, one line each. A new option is a new line here and nothing else."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.source import DataSource

QLORA = "arXiv 2305.14314"
BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
BUILTIN_DATA = "builtin:plain-pirate"


def _words(value: Any) -> Any:
    """Words split by commas, as a flag gives them."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _lines(value: Any) -> Any:
    """One entry a line, as a text box gives them."""
    return tuple(line.strip() for line in value.splitlines() if line.strip()) if isinstance(value, str) else value


def _json_or(value: Any) -> Any:
    """JSON where a flag gives a list or a mapping; a text that is none is one entry."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, DataSource) else value
    return json.loads(value) if value.lstrip().startswith(("[", "{")) else (value,) if value.strip() else ()


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Sources = Annotated[tuple[DataSource, ...], BeforeValidator(_json_or)]
Mapping = Annotated[dict[str, str], BeforeValidator(_json_or)]


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


class QuantSection(Section):
    """How small the base is kept."""

    type: Literal["nf4", "fp4"] = option(
        "nf4",
        "NF4's 16 levels follow the spread of trained weights and lose less than FP4's.",
        label="4-bit format",
        term="quant type",
        tier="basic",
        to="bnb.bnb_4bit_quant_type",
        source=QLORA,
        affects=("memory", "quality"),
        choices={"nf4": "NF4", "fp4": "FP4"},
    )
    double_quant: bool = option(
        True,
        "Also shrinks the scale numbers of the 4-bit blocks: about 0.4 bit a weight less memory, a little slower.",
        label="Compress the scales too",
        term="double quantization",
        tier="basic",
        to="bnb.bnb_4bit_use_double_quant",
        source=QLORA,
        affects=("memory", "time"),
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "The number format of the arithmetic. Automatic: bf16, fp16 on cards before Ampere, fp32 on a CPU.",
        label="Arithmetic",
        term="compute dtype",
        to="bnb.bnb_4bit_compute_dtype",
        source=QLORA,
        affects=("memory", "time"),
        choices={"auto": "Automatic", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"},
    )
    storage: Literal["uint8", "bfloat16"] = option(
        "uint8",
        "How the packed 4-bit numbers are stored; only sharding over several cards (FSDP) needs bf16.",
        label="Storage of the 4-bit weights",
        term="quant storage",
        to="bnb.bnb_4bit_quant_storage",
        choices={"uint8": "uint8", "bfloat16": "bf16 (for FSDP)"},
    )


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
        choices={
            "auto": "Detect",
            "messages": "Messages",
            "sharegpt": "ShareGPT",
            "alpaca": "Alpaca",
            "prompt-completion": "Prompt and completion",
            "columns": "Columns that I map",
            "text": "Plain text",
            "preference": "Preference pairs, chosen answer only",
        },
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
        "Stops after this many steps, whatever the number of passes.",
        label="Step limit",
        term="max steps",
        to="sft.max_steps",
        affects=("time",),
        ge=1,
        le=10_000_000,
    )
    learning_rate: float = option(
        2e-4,
        "Size of each correction. 2e-4 suits LoRA; 1e-3 is bold, 1e-5 hardly moves.",
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
        label="At once",
        term="micro-batch",
        to="sft.per_device_train_batch_size",
        affects=("memory", "time"),
        ge=1,
        le=1024,
    )
    accumulation: int = option(
        4,
        "Micro-batches added up before a correction. Effective batch = at once × this.",
        label="Added up",
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
        0.0, "Pulls the adapter towards zero; 0 to 0.1.", label="Weight decay", to="sft.weight_decay", affects=("quality",), ge=0, le=1
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
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = option(
        "adamw",
        "AdamW is fastest; the 8-bit and paged ones save memory when the adapter is very large.",
        label="Optimizer",
        to="sft.optim",
        affects=("memory", "time"),
        choices={
            "adamw": "AdamW",
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
        affects=("quality",),
        ge=0,
        le=50,
    )
    seed: int = option(
        42,
        "Start of all random numbers: the same seed, data and machine give the same run.",
        label="Seed",
        to="sft.seed",
        ge=0,
        le=2**31 - 1,
    )


class EvalSection(Section):
    """How it is watched."""

    share: float = option(
        0.05,
        "Share of the rows that is kept from training, to see whether the model learned or memorised.",
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


class LaunchSection(Section):
    """Where the job runs."""

    where: Literal["thread", "process"] = option(
        "thread",
        "Thread: inside the app, shares the card with chat. Process: on its own, outlives the app, uses several cards.",
        label="Run in",
        term="launcher",
        choices={"thread": "This app", "process": "Its own process (accelerate launch)"},
    )
    device: Literal["auto", "cuda", "cpu"] = option(
        "auto",
        "Automatic takes the card if there is one.",
        label="Device",
        choices={"auto": "Automatic", "cuda": "Graphics card", "cpu": "CPU"},
        affects=("memory", "time"),
    )
    num_processes: int = option(
        1,
        "Cards of this machine that share the work; needs its own process.",
        label="Cards",
        term="num processes",
        affects=("memory", "time"),
        ge=1,
        le=64,
    )
    sharding: Literal["none", "fsdp"] = option(
        "none",
        "FSDP splits the base over the cards when it does not fit one.",
        label="Split the base",
        term="FSDP",
        choices={"none": "No", "fsdp": "FSDP"},
        affects=("memory", "time"),
    )
    num_machines: int = option(1, "Hosts that share the work.", label="Machines", ge=1, le=64)
    machine_rank: int = option(0, "Number of this host, from 0.", label="This machine's number", term="machine rank", ge=0, le=63)
    main_host: str = option("127.0.0.1", "Address of host 0.", label="Main host")
    main_port: int = option(0, "Port on which the hosts meet; 0 picks a free one.", label="Main port", ge=0, le=65535)
