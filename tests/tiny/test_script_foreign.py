"""Configurations of other programs become settings; what has no meaning here is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ui.base.errors import SettingsError
from qlora_ui.cli import main
from qlora_ui.script.read_foreign import read_foreign
from qlora_ui.script.render import ScriptFacts
from qlora_ui.script.trl_yaml import render_trl_yaml
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.presets import list_presets, read_yaml
from qlora_ui.settings.run_config import RunConfig

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 1
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
warmup_steps: 10
flash_attention: true
deepspeed: null
wandb_project: mine
"""
FACTORY = """
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
quantization_bit: 4
stage: sft
finetuning_type: lora
lora_target: all
lora_rank: 8
dataset: identity,alpaca_en_demo
template: qwen
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""


def test_axolotl() -> None:
    got = read_foreign(AXOLOTL)
    config = got.config
    assert got.source == "axolotl" and config.model.id == "NousResearch/Llama-3.2-1B"
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (32, 16, ("all-linear",))
    assert (config.train.batch_size, config.train.accumulation, config.train.warmup, config.train.packing) == (2, 4, 10.0, "on")
    assert (config.data.max_length, config.eval.share, config.train.optimizer) == (2048, 0.1, "paged_adamw_32bit")
    assert config.data.sources[0].id == "hub:teknium/GPT4-LLM-Cleaned"
    assert set(got.ignored) == {"flash_attention", "wandb_project"}


def test_llama_factory() -> None:
    got = read_foreign(FACTORY)
    config = got.config
    assert got.source == "llama-factory" and config.train.learning_rate == 1e-4 and config.train.warmup == 0.1
    assert (config.lora.rank, config.data.max_length, config.quant.compute_dtype) == (8, 2048, "bfloat16")
    assert "dataset_info.json" in got.ignored["dataset"] and "template" in got.ignored


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_our_trl_yaml_comes_back(preset) -> None:  # type: ignore[no-untyped-def]
    facts = ScriptFacts("owner/model", intervals(preset.config, 1000, 50), True)
    got = read_foreign(render_trl_yaml(preset.config, facts, on_gpu=True, compute_dtype="bfloat16"))
    assert got.source == "trl"
    for section in ("lora", "quant"):
        ours, theirs = getattr(preset.config, section), getattr(got.config, section)
        changed = {"alpha": preset.config.alpha, "compute_dtype": "bfloat16"}
        known = {name: value for name, value in changed.items() if name in type(ours).model_fields}
        assert theirs == ours.model_copy(update=known)
    for name in ("learning_rate", "batch_size", "accumulation", "schedule", "warmup", "optimizer", "seed", "max_steps"):
        assert getattr(got.config.train, name) == getattr(preset.config.train, name), name


def test_wrong_values_and_unknown_files_are_said() -> None:
    with pytest.raises(SettingsError) as caught:
        read_foreign("model_name_or_path: a/b\nlora_r: 99999\nlearning_rate: -1\n")
    assert {problem.where for problem in caught.value.problems} == {"lora.rank", "train.learning_rate"}
    with pytest.raises(SettingsError, match="no configuration"):
        read_foreign("foo: 1\n")
    assert "does not exist" in read_foreign("model_name_or_path: a/b\noptim: lion_8bit\n").ignored["optim"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "axolotl.yml"
    file.write_text(AXOLOTL)
    words = ["script", "--from", str(file), "--format", "settings", "--lora.rank", "64", "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--workspace", str(tmp_path / "workspace")]) == 0
    row = json.loads(capsys.readouterr().out)
    config = RunConfig.parse(read_yaml(Path(row["path"]).read_text(), "settings.yaml"))
    assert config.lora.rank == 64 and config.data.max_length == 2048 and "wandb_project" in row["ignored"]
