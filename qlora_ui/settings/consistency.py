"""Settings that are right one by one and wrong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from qlora_ui.base.errors import Problem
from qlora_ui.catalog.formats.columns import standard_mapping

if TYPE_CHECKING:
    from qlora_ui.settings.run_config import RunConfig


Rule: TypeAlias = tuple[bool, str, str, str, str]
"""Whether it is broken, the option at fault, what, why, fix."""


def contradictions(config: RunConfig) -> list[Problem]:
    """Every pair of options that cannot both be meant, each with what to change."""
    rules = (*_adapter_rules(config), *_training_rules(config), *_launch_rules(config), *_data_rules(config))
    return [Problem(where, what, why, fix, "contradiction") for is_broken, where, what, why, fix in rules if is_broken]


def without_effect(config: RunConfig) -> dict[str, str]:
    """Options that nothing depends on beside the others as they are, each with the reason."""
    max_steps, evaluation = config.train.max_steps, config.eval
    rules = (
        (max_steps is not None, ("train.epochs",), f"“Number of steps” is {max_steps} and decides"),
        (config.train.schedule == "constant", ("train.warmup",), "“Constant” begins with the whole learning rate"),
        (evaluation.share == 0, ("eval.every", "eval.batch_size", "eval.keep_best"), "no rows are held back for checking"),
        (config.launch.num_machines == 1, ("launch.machine_rank", "launch.main_host"), "one machine works alone"),
        (not evaluation.probes, ("eval.probe_every", "eval.probe_tokens"), "there are no probe questions"),
    )
    return {path: reason for is_idle, paths, reason in rules if is_idle for path in paths}


def _adapter_rules(config: RunConfig) -> list[Rule]:
    lora, launch = config.lora, config.launch
    return [
        (
            not lora.targets,
            "lora.targets",
            "no layer gets an adapter",
            "Then nothing is trained",
            "Choose all-linear or at least one layer",
        ),
        (
            "all-linear" in lora.targets and len(lora.targets) > 1,
            "lora.targets",
            "all-linear is chosen together with single layers",
            "It already holds every linear layer",
            "Keep all-linear or the single layers",
        ),
        (
            "lm_head" in lora.targets,
            "lora.targets",
            "the output layer (lm_head) cannot have an adapter",
            "The loss works on it in tiles, without an adapter in between",
            "Put lm_head into “Also train in full” instead",
        ),
        (
            lora.dora and launch.sharding == "fsdp",
            "lora.dora",
            "DoRA does not work with a split base",
            "It needs the whole weight of a layer to measure its size",
            "Switch DoRA or FSDP off",
        ),
    ]


def _training_rules(config: RunConfig) -> list[Rule]:
    train, evaluation = config.train, config.eval
    return [
        (
            train.checkpointing == "partly" and train.kept_layers == 0,
            "train.kept_layers",
            "“some layers” is chosen but no layer is kept",
            "",
            "Give the number of layers to keep, or choose “every layer”",
        ),
        (
            train.optimizer == "adamw_fp32" and config.launch.sharding == "fsdp",
            "train.optimizer",
            "fp32 master weights do not work with a split base",
            "FSDP keeps the optimizer's states of the weights themselves, in shares",
            "Choose AdamW or another optimizer, or switch FSDP off",
        ),
        (
            evaluation.patience > 0 and evaluation.share == 0,
            "eval.patience",
            "stopping early needs held-back rows",
            "Nothing is held back for checking",
            "Hold back at least 5 %",
        ),
    ]


def _launch_rules(config: RunConfig) -> list[Rule]:
    launch = config.launch
    return [
        (
            launch.where == "thread" and (launch.num_processes > 1 or launch.num_machines > 1),
            "launch.num_processes",
            "several cards need a process each",
            "A thread of the app drives one card",
            "Choose “its own process”, or one card",
        ),
        (
            launch.machine_rank >= launch.num_machines,
            "launch.machine_rank",
            f"this machine has number {launch.machine_rank} of {launch.num_machines}",
            "Numbers count from 0",
            "Give a number below the number of machines",
        ),
        (
            launch.sharding == "fsdp" and (launch.device == "cpu" or launch.num_processes * launch.num_machines < 2),
            "launch.sharding",
            "the base can only be split over two or more graphics cards",
            "Each process drives one card and holds its part of the base",
            "Choose two or more processes on a machine with as many cards, or switch the splitting off",
        ),
        (
            launch.sharding == "fsdp" and config.quant.storage != "bfloat16",
            "quant.storage",
            "a split base needs 4-bit weights stored as bf16",
            "FSDP splits only tensors of the dtype of the others",
            "Set the storage of the 4-bit weights to bf16",
        ),
    ]


def _data_rules(config: RunConfig) -> list[Rule]:
    data = config.data
    return [
        (not data.sources, "data.sources", "no dataset is chosen", "", "Choose one on the Data tab"),
        (
            data.format == "columns" and bool(data.mapping) and "assistant" not in standard_mapping(data.mapping),
            "data.mapping",
            "no column is mapped to the answer",
            "The model learns from answers",
            "Say which column is the answer",
        ),
    ]
