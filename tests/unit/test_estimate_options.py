"""Every option that says it changes memory or time moves the estimate, or stands here with the reason why it does not."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.hardware.devices import named_device
from qlora_ui.models.architecture import facts_from_config
from qlora_ui.settings.run_config import RunConfig, option_by_path

QWEN = facts_from_config({
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True})  # fmt: skip
CARD = named_device("RTX 4090")
BASES: tuple[dict[str, Any], ...] = (
    {},
    {"train.fast_path": "off", "train.packing": "off", "train.batch_size": 1, "train.checkpointing": "none"},
)
"""A step that is all arithmetic, and one whose launches take longer."""
OTHERWISE: dict[str, Any] = {
    "model.attention": "eager", "quant.double_quant": False, "quant.compute_dtype": "float16", "lora.rank": 64, "lora.dropout": 0.0,
    "lora.targets": "q_proj", "lora.dora": True, "lora.modules_to_save": "lm_head", "data.max_length": 2048, "train.epochs": 5.0,
    "train.max_steps": 7, "train.batch_size": 8, "train.accumulation": 8, "train.optimizer": "adamw_8bit", "train.checkpointing": "none",
    "train.kept_layers": 9, "train.packing": "on", "train.fast_path": "auto", "train.neftune": 5.0, "eval.share": 0.2, "eval.every": 3,
    "eval.batch_size": 16, "eval.patience": 3, "eval.probes": ["Why?"], "eval.probe_every": 1, "eval.probe_tokens": 600,
    "output.save_every": 1, "launch.num_processes": 2, "launch.sharding": "fsdp"}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "train.kept_layers": {"train.checkpointing": "partly", "train.kept_layers": 2},
    "train.neftune": {"train.fast_path": "auto"},
    "train.packing": {"train.packing": "off", "train.batch_size": 4},
    "eval.batch_size": {"train.packing": "off", "train.checkpointing": "all"},
    "eval.probe_every": {"eval.probes": ["Why?"]},
    "eval.probe_tokens": {"eval.probes": ["Why?"]},
    "launch.num_processes": {"launch.where": "process"},
    "launch.sharding": {"launch.where": "process", "launch.num_processes": 2, "quant.storage": "bfloat16"},
}
GIVEN_APART = {"model.id": "as facts", "data.sources": "as rows and lengths", "launch.device": "as a profile"}
STILL = {
    ("quant.double_quant", "time"): "a hundredth of the dequantization",
    ("lora.dropout", "time"): "a mask beside large products",
    ("train.optimizer", "time"): "states of the adapter alone",
    ("eval.batch_size", "time"): "checks are a small share",
    ("eval.patience", "time"): "nobody knows when a run stops learning",
    ("output.save_every", "time"): "a checkpoint is small, and disks differ; saves count as a share",
    ("launch.sharding", "time"): "what cards tell each other was not measured",
}


def figures(changes: dict[str, Any]) -> dict[str, float]:
    config = RunConfig().changed(changes)
    return {
        "memory": estimate_memory(QWEN, config, CARD).total_bytes,
        "time": estimate_duration(QWEN, config, CARD, 1000, 200).total_s,
    }


MOVING = [(path, kind) for path, option in option_by_path().items() for kind in option.meta.affects if kind in ("memory", "time")]


@pytest.mark.parametrize(("path", "kind"), [pair for pair in MOVING if pair[0] not in GIVEN_APART])
def test_an_option_moves_what_it_says_that_it_changes(path: str, kind: str) -> None:
    moves = False
    for base in BASES:
        before = base | BESIDE.get(path, {})
        moves |= figures(before)[kind] != figures(before | {path: OTHERWISE[path]})[kind]
    assert moves != ((path, kind) in STILL)


def test_what_is_excused_is_an_option() -> None:
    assert set(STILL) | {(path, "time") for path in GIVEN_APART} <= set(MOVING)
