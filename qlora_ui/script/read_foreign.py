"""Settings from the configuration files of TRL, axolotl and LLaMA-Factory, with everything that was not understood listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qlora_ui.base.errors import SettingsError
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig

Source = Literal["trl", "axolotl", "llama-factory"]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file of another program as settings of ours."""

    source: Source
    config: RunConfig
    ignored: dict[str, str]
    """Key of theirs to why it has no effect here, in words."""


def read_foreign(text: str, where: str = "the file") -> Foreign:
    """Settings from YAML text of another program; raises SettingsError where it is none, or a value is impossible here.

    Values outside of what an option allows are errors, not guesses; keys that mean nothing here are listed.
    """
    document = read_yaml(text, where)
    source = _recognise(document, where)
    reader = _READERS[source]
    values: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for key, value in document.items():
        if value is None:
            continue
        rule = reader.get(key)
        if rule is None:
            ignored[key] = _SILENT.get(key, "this program has nothing that corresponds")
            continue
        made = rule(value) if callable(rule) else {rule: value}
        if isinstance(made, str):
            ignored[key] = made
            continue
        values |= made
    _settle(values)
    return Foreign(source, RunConfig().changed(values), ignored)


Made = dict[str, Any] | str
"""Option paths with values, or the reason why the key is ignored."""
Rule = str | Callable[[Any], Made]


def _recognise(document: Mapping[str, Any], where: str) -> Source:
    if "base_model" in document:
        return "axolotl"
    if "finetuning_type" in document or "cutoff_len" in document or "lora_target" in document:
        return "llama-factory"
    if "model_name_or_path" in document:
        return "trl"
    raise SettingsError(
        "this is no configuration of TRL, axolotl or LLaMA-Factory",
        why="It names no base model in their ways (model_name_or_path, base_model)",
        fix="Choose the YAML file that you train with there",
        where=where,
        code="foreign",
    )


def _settle(values: dict[str, Any]) -> None:
    """What only makes sense together."""
    share = values.pop("_warmup_ratio", None)
    if share is not None and "train.warmup" not in values:
        values["train.warmup"] = share
    if values.get("train.max_steps") in (-1, 0):
        del values["train.max_steps"]


def _true_only(reason: str) -> Rule:
    """A switch that must be on here: off is told, on is nothing."""
    return lambda value: {} if value else reason


def _schedule(value: Any) -> Made:
    known = ("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr")
    return {"train.schedule": value} if value in known else f"the schedule “{value}” does not exist here"


def _optimizer(value: Any) -> Made:
    table = {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_8bit": "adamw_8bit",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_8bit": "paged_adamw_8bit",
        "paged_adamw_32bit": "paged_adamw_32bit",
        "paged_adamw": "paged_adamw_32bit",
    }
    return {"train.optimizer": table[value]} if value in table else f"the optimizer “{value}” does not exist here"


def _checkpointing(value: Any) -> Made:
    return {"train.checkpointing": "all" if value else "none"}


def _packing(value: Any) -> Made:
    return {"train.packing": "on" if value else "off"}


def _targets(value: Any) -> Made:
    if value in ("all", "all-linear", True):
        return {"lora.targets": ("all-linear",)}
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value or ())
    return {"lora.targets": tuple(map(str, names))} if names else {}


def _dtype(value: Any) -> Made:
    name = str(value).removeprefix("torch.")
    known = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16", "half": "float16", "float32": "float32"}
    return {"quant.compute_dtype": known[name]} if name in known else {}


def _warmup_steps(value: Any) -> Made:
    return {"train.warmup": float(value)}


def _sources(names: list[dict[str, Any]]) -> Made:
    return {"data.sources": tuple(names)} if names else {}


def _hub(name: str) -> str:
    return f"hub:{name}" if "/" in name and not name.startswith((".", "/", "~")) and "." not in name.rsplit("/", maxsplit=1)[-1] else name


def _axolotl_datasets(value: Any) -> Made:
    made = []
    for item in value or ():
        source: dict[str, Any] = {"id": _hub(str(item.get("data_files") or item.get("path", "")))}
        if isinstance(item.get("split"), str):
            source["split"] = item["split"]
        made.append(source)
    return _sources(made)


def _trl_datasets(value: Any) -> Made:
    made = []
    for item in value or ():
        files = item.get("data_files")
        names = files if isinstance(files, list) else [files or _hub(str(item.get("path", "")))]
        made += [{"id": str(name)} for name in names]
    return _sources(made)


def _factory_dataset(value: Any) -> Made:
    return f"“{value}” is a name in LLaMA-Factory's dataset_info.json; choose the file itself on the Data tab"


def _template(value: Any) -> Made:
    table = {
        "llama3": "llama-3",
        "mistral": "mistral",
        "gemma": "gemma",
        "phi": "phi",
        "zephyr": "zephyr",
        "chatml": "chatml",
        "alpaca": "alpaca",
    }
    return {"model.template": table[value]} if value in table else "the model's own chat template is used"


def _validation(value: Any) -> Made:
    share = float(value)
    return {"eval.share": share} if share < 1 else "a number of rows cannot be given here, only a share"


def _evaluation(value: Any) -> Made:
    return {"eval.share": 0.0} if value in ("no", False) else {}


_COMMON: dict[str, Rule] = {
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "gradient_accumulation_steps": "train.accumulation",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "lr_scheduler_type": _schedule,
    "warmup_steps": _warmup_steps,
    "warmup_ratio": lambda value: {"_warmup_ratio": float(value)},
    "optim": _optimizer,
    "gradient_checkpointing": _checkpointing,
    "activation_checkpointing": _checkpointing,
    "neftune_noise_alpha": "train.neftune",
    "seed": "train.seed",
    "packing": _packing,
    "logging_steps": "output.log_every",
    "save_steps": "output.save_every",
    "save_total_limit": "output.keep_last",
    "eval_steps": "eval.every",
    "bf16": lambda value: {"quant.compute_dtype": "bfloat16"} if value is True else {},
    "fp16": lambda value: {"quant.compute_dtype": "float16"} if value is True else {},
}

_READERS: dict[Source, dict[str, Rule]] = {
    "trl": {
        **_COMMON,
        "model_name_or_path": "model.id",
        "model_revision": "model.revision",
        "dtype": _dtype,
        "attn_implementation": lambda value: {"model.attention": value} if value in ("sdpa", "eager") else f"“{value}” is not used here",
        "load_in_4bit": _true_only("here the base is always in 4 bits"),
        "bnb_4bit_quant_type": "quant.type",
        "use_bnb_nested_quant": "quant.double_quant",
        "bnb_4bit_quant_storage": "quant.storage",
        "use_peft": _true_only("here an adapter is always trained"),
        "lora_r": "lora.rank",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target_modules": _targets,
        "lora_modules_to_save": "lora.modules_to_save",
        "use_rslora": "lora.rslora",
        "use_dora": "lora.dora",
        "max_length": "data.max_length",
        "dataset_name": lambda value: _sources([{"id": _hub(str(value))}]),
        "datasets": _trl_datasets,
        "test_split_size": _validation,
        "eval_strategy": _evaluation,
        "load_best_model_at_end": "eval.keep_best",
    },
    "axolotl": {
        **_COMMON,
        "base_model": "model.id",
        "revision_of_model": "model.revision",
        "adapter": lambda value: {} if value in ("qlora", "lora") else f"the adapter “{value}” does not exist here",
        "load_in_4bit": _true_only("here the base is always in 4 bits"),
        "sequence_len": "data.max_length",
        "sample_packing": _packing,
        "lora_r": "lora.rank",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target_modules": _targets,
        "lora_target_linear": lambda value: _targets("all") if value else {},
        "lora_modules_to_save": "lora.modules_to_save",
        "peft_use_rslora": "lora.rslora",
        "peft_use_dora": "lora.dora",
        "micro_batch_size": "train.batch_size",
        "eval_batch_size": "eval.batch_size",
        "num_epochs": "train.epochs",
        "lr_scheduler": _schedule,
        "optimizer": _optimizer,
        "chat_template": _template,
        "datasets": _axolotl_datasets,
        "val_set_size": _validation,
        "train_on_inputs": lambda value: {"data.train_on": "everything" if value else "answers"},
        "early_stopping_patience": "eval.patience",
    },
    "llama-factory": {
        **_COMMON,
        "model_name_or_path": "model.id",
        "model_revision": "model.revision",
        "stage": lambda value: {} if value == "sft" else f"the stage “{value}” does not exist here, only sft",
        "do_train": lambda value: {},
        "finetuning_type": lambda value: {} if value == "lora" else f"“{value}” does not exist here, only LoRA on a 4-bit base",
        "quantization_bit": lambda value: {} if value == 4 else "here the base is always in 4 bits",
        "quantization_method": lambda value: {} if value in ("bnb", "bitsandbytes") else f"“{value}” is not used here",
        "quantization_type": "quant.type",
        "double_quantization": "quant.double_quant",
        "lora_rank": "lora.rank",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target": _targets,
        "additional_target": "lora.modules_to_save",
        "use_rslora": "lora.rslora",
        "use_dora": "lora.dora",
        "cutoff_len": "data.max_length",
        "template": _template,
        "dataset": _factory_dataset,
        "val_size": _validation,
        "train_on_prompt": lambda value: {"data.train_on": "everything" if value else "answers"},
        "eval_strategy": _evaluation,
    },
}

_SILENT = {
    "output_dir": "runs have their folder in the workspace",
    "report_to": "nothing is reported to anybody",
    "push_to_hub": "uploading is a step of its own, after the run",
    "wandb_project": "nothing is reported to anybody",
    "special_tokens": "the tokenizer keeps its own",
    "flash_attention": "the attention kernel is chosen by itself",
    "trust_remote_code": "code from a model's folder is never run",
}
