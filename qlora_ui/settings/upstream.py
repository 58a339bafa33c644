"""A RunConfig in the words of bitsandbytes, peft and trl, as plain data: the engine adds dtypes, the script prints it."""

from __future__ import annotations

from typing import Any

from qlora_ui.settings.run_config import RunConfig, option_by_path

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_fp32": "adamw_torch_fused",  # on fp32 copies: `engine/master_weights.py`
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
}


def upstream_arguments(config: RunConfig, target: str) -> dict[str, Any]:
    """The arguments of `target` (`bnb`, `lora` or `sft`) that options name in `to=`, with values upstream understands."""
    arguments = {}
    for path, option in option_by_path().items():
        owner, _, name = option.meta.to.partition(".")
        if owner == target:
            arguments[name] = config.get(path)
    return arguments


def bnb_arguments(config: RunConfig, compute_dtype: str) -> dict[str, Any]:
    """Keyword arguments of transformers.BitsAndBytesConfig; dtypes by name (`bfloat16`)."""
    return {**upstream_arguments(config, "bnb"), "load_in_4bit": True, "bnb_4bit_compute_dtype": compute_dtype}


def lora_arguments(config: RunConfig) -> dict[str, Any]:
    """Keyword arguments of peft.LoraConfig."""
    arguments = upstream_arguments(config, "lora")
    targets = config.lora.targets
    arguments["target_modules"] = "all-linear" if targets == ("all-linear",) else list(targets)
    arguments["lora_alpha"] = config.alpha
    arguments["modules_to_save"] = list(config.lora.modules_to_save) or None
    return {**arguments, "bias": "none", "task_type": "CAUSAL_LM"}


def optimizer_on(config: RunConfig, *, is_cpu: bool) -> str:
    """The optimizer that trains: bitsandbytes' need an NVIDIA card, and AdamW stands in for them on a CPU."""
    chosen = config.train.optimizer
    return "adamw" if is_cpu and chosen != "adamw_fp32" else chosen


def optimizer_words(config: RunConfig, *, on_gpu: bool) -> str:
    """A sentence where another optimizer than the chosen one will train; else empty."""
    chosen = config.train.optimizer
    if optimizer_on(config, is_cpu=not on_gpu) == chosen:
        return ""
    return f"On a CPU plain AdamW trains: {option_by_path()['train.optimizer'].meta.choices[chosen]} needs an NVIDIA card."


def sft_arguments(config: RunConfig, *, on_gpu: bool, compute_dtype: str) -> dict[str, Any]:
    """Keyword arguments of trl.SFTConfig that follow from the settings alone; the job adds paths and intervals."""
    arguments = upstream_arguments(config, "sft")
    train = config.train
    arguments["optim"] = OPTIMIZERS[train.optimizer] if on_gpu else "adamw_torch"
    arguments["max_steps"] = train.max_steps if train.max_steps is not None else -1
    arguments["neftune_noise_alpha"] = train.neftune or None
    # How many steps there are is known to those who call: `intervals.warmup_argument`.
    del arguments["warmup_steps"]
    if train.schedule == "cosine_with_min_lr":
        arguments["lr_scheduler_kwargs"] = {"min_lr_rate": 0.1}
    return {
        **arguments,
        "data_seed": train.seed,
        "gradient_checkpointing": train.checkpointing != "none",
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if train.checkpointing != "none" else None,
        "bf16": on_gpu and compute_dtype == "bfloat16",
        "fp16": on_gpu and compute_dtype == "float16",
        "use_cpu": not on_gpu,
    }
