"""A run's settings as the YAML that `trl sft --config` reads."""

from __future__ import annotations

from typing import Any

import yaml

from qlora_ui.script.render import ScriptFacts, as_one_program, otherwise_words, run_arguments
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import sft_arguments


def render_trl_yaml(config: RunConfig, facts: ScriptFacts, *, on_gpu: bool, compute_dtype: str) -> str:
    """The text of `trl_sft.yaml` for the folder `tokens/` beside it; TRL's parser knows all keys (unknown ones are fatal there).

    TRL has no key for the adapter's number format (it is bf16 always) and none for packing across plain attention, so on a
    CPU its curve is close to the app's and not equal to the digit.
    """
    otherwise = otherwise_words(config, facts)
    config = as_one_program(config, facts.rows_in_one)
    document: dict[str, Any] = {
        "model_name_or_path": facts.model,
        "dtype": compute_dtype,
        # Without the key transformers takes what the app takes: SDPA, and eager where a model caps its scores (Gemma 2).
        **({} if config.model.attention == "auto" else {"attn_implementation": config.model.attention}),
        **_quantization(config),
        **_adapter(config),
        "dataset_name": "tokens",
        "dataset_train_split": "train",
        **_training(config, facts, on_gpu=on_gpu, compute_dtype=compute_dtype),
    }
    if config.model.revision:
        document["model_revision"] = config.model.revision
    if facts.has_eval:
        document["dataset_test_split"] = "test"
    head = (
        f"# QLoRA fine-tuning of {facts.model}{f', as in the run {facts.run_id}' if facts.run_id else ''}. In this folder:\n"
        "#   pip install -r requirements.txt && trl sft --config trl_sft.yaml\n"
        "# model_name_or_path may also be the folder of the base model. tokens/ holds input_ids and labels (-100: not learned).\n"
    )
    head += "".join(f"# {line}\n" for line in otherwise.splitlines())
    if config.train.optimizer == "adamw_fp32":
        head += "# The run's optimizer kept fp32 master weights of a bf16 adapter; TRL has no word for that, the curve will be close.\n"
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _quantization(config: RunConfig) -> dict[str, Any]:
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": config.quant.type,
        "use_bnb_nested_quant": config.quant.double_quant,
        "bnb_4bit_quant_storage": config.quant.storage,
    }


def _adapter(config: RunConfig) -> dict[str, Any]:
    lora = config.lora
    values: dict[str, Any] = {
        "use_peft": True,
        "lora_r": lora.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": lora.dropout,
        "lora_target_modules": "all-linear" if lora.targets == ("all-linear",) else list(lora.targets),
        "lora_task_type": "CAUSAL_LM",
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
    }
    if lora.modules_to_save:
        values["lora_modules_to_save"] = list(lora.modules_to_save)
    return values


def _training(config: RunConfig, facts: ScriptFacts, *, on_gpu: bool, compute_dtype: str) -> dict[str, Any]:
    values = sft_arguments(config, on_gpu=on_gpu, compute_dtype=compute_dtype)
    values |= {"output_dir": "output", **run_arguments(config, facts), "dataloader_pin_memory": on_gpu}
    return {name: value for name, value in values.items() if value is not None}
