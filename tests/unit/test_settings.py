"""One option, one declaration: what the line promises is what every reader of it gets."""

from __future__ import annotations

import pytest
import yaml

from qlora_ui.base.errors import SettingsError
from qlora_ui.settings.consistency import without_effect
from qlora_ui.settings.intervals import num_warmup_steps, warmup_argument, warmup_words
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.settings.source import DataSource
from qlora_ui.settings.upstream import bnb_arguments, lora_arguments, sft_arguments


def problems(values: dict[str, object]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        RunConfig().changed(values)
    return {problem.where: problem.sentence() for problem in caught.value.problems}


def test_defaults_are_the_ones_of_the_qlora_paper_and_lesson() -> None:
    config = RunConfig()
    assert (config.quant.type, config.quant.double_quant) == ("nf4", True)
    assert (config.lora.rank, config.alpha, config.lora.dropout, config.lora.targets) == (16, 32, 0.05, ("all-linear",))
    assert (config.train.learning_rate, config.train.schedule, config.train.warmup) == (2e-4, "cosine", 0.03)
    assert config.effective_batch == 16


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ('"C:\\My models\\one"', "C:\\My models\\one"),
        ("'/models/one'", "/models/one"),
        ("/models/it's mine'", "/models/it's mine'"),
        ("https://huggingface.co/Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("https://hf.co/Qwen/Qwen3-4B/tree/main?library=transformers", "Qwen/Qwen3-4B"),
        ("https://huggingface.co/Qwen/Qwen3-4B/tree/other", "https://huggingface.co/Qwen/Qwen3-4B/tree/other"),
        ("builtin:smollm2-135m-instruct", "builtin:smollm2-135m-instruct"),
    ],
)
def test_a_pasted_model_is_the_one_that_is_meant(pasted: str, meant: str) -> None:
    assert RunConfig().changed({"model.id": pasted}).model.id == meant


def test_every_wrong_setting_is_named_at_once_with_what_to_do() -> None:
    found = problems({"lora.rank": "0", "train.learning_rate": "fast", "quant.type": "nf5", "lora.ranc": 8, "data.max_length": "1.5"})
    assert set(found) == {"lora.rank", "train.learning_rate", "quant.type", "lora.ranc", "data.max_length"}
    assert "from 1 to 512" in found["lora.rank"]
    assert "a number above 0 and at most 0.1" in found["train.learning_rate"]
    assert "from 16 to 131,072" in found["data.max_length"]
    assert "nf4, fp4" in found["quant.type"]
    assert "Did you mean lora.rank?" in found["lora.ranc"]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"train.learning_rate": "nan"}, "train.learning_rate"),
        ({"train.learning_rate": "inf"}, "train.learning_rate"),
        ({"lora.targets": ""}, "lora.targets"),
        ({"lora.targets": "all-linear,q_proj"}, "lora.targets"),
        ({"lora.targets": "q_proj,lm_head"}, "lora.targets"),
        ({"train.checkpointing": "partly"}, "train.kept_layers"),
        ({"eval.patience": 2, "eval.share": 0}, "eval.patience"),
        ({"launch.num_processes": 2}, "launch.num_processes"),
        ({"launch.machine_rank": 1}, "launch.machine_rank"),
        ({"data.sources": "[]"}, "data.sources"),
        ({"data.format": "columns", "data.mapping": '{"q": "user"}'}, "data.mapping"),
    ],
)
def test_contradictions_name_the_control_to_change(values: dict[str, object], where: str) -> None:
    assert where in problems(values)


def test_an_option_without_effect_is_known_with_the_option_that_decides() -> None:
    all_count = RunConfig().changed({"eval.probes": ("How are you?",), "launch.where": "process", "launch.num_machines": 2})
    assert without_effect(all_count) == {}
    assert without_effect(all_count.changed({"train.max_steps": 30})) == {"train.epochs": "“Number of steps” is 30 and decides"}
    assert set(without_effect(RunConfig().changed({"eval.share": 0}))) == {
        "launch.machine_rank", "launch.main_host",
        "eval.every", "eval.batch_size", "eval.keep_best", "eval.probe_every", "eval.probe_tokens"
    }  # fmt: skip


def test_yaml_round_trip_keeps_every_option() -> None:
    config = RunConfig().changed(
        {
            "lora.alpha": "64",
            "data.sources": '[{"id": "a.jsonl", "weight": 2, "rows": "20 %"}]',
            "output.tags": "a,b",
            "eval.probes": "one\ntwo",
        }
    )
    assert RunConfig.parse(read_yaml(config.to_yaml(), "x")) == config
    assert RunConfig.parse(read_yaml(config.to_yaml(only_changed=True), "x")) == config
    assert yaml.safe_load(config.to_yaml(only_changed=True))["lora"] == {"alpha": 64}


@pytest.mark.parametrize(
    "text",
    ["2e-4", "1E3", "-3e+2", "1_0.5e2", "yes", "null", "0x10", "1_000", "2026-01-01", "a: b", "#x", "*x", "a\u2028b", "x\ty", "日本語"],
)
def test_whatever_a_text_looks_like_it_reads_back_as_that_text(text: str) -> None:
    config = RunConfig().changed({"output.name": text, "output.tags": [text], "eval.probes": [text, "and more"]})
    assert RunConfig.parse(read_yaml(config.to_yaml(), "x")) == config


def test_flag_texts_read_as_their_types() -> None:
    config = RunConfig().changed(
        {"lora.alpha": "none", "quant.double_quant": "false", "train.learning_rate": "1e-3", "lora.targets": "q_proj, v_proj"}
    )
    assert config.lora.alpha is None and config.quant.double_quant is False
    assert config.train.learning_rate == 1e-3 and config.lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    "text",
    ["a: &x [1]\nb: *x", "!!python/object/apply:os.system ['true']", "lora: [", "- 1\n- 2", "lora:\n" + "  " * 200_000],
    ids=["alias", "object", "syntax", "list", "large"],
)
def test_hostile_yaml_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(SettingsError):
        read_yaml(text, "preset.yaml")


def test_settings_of_a_newer_version_say_so() -> None:
    with pytest.raises(SettingsError, match="Update QLoRA UI"):
        RunConfig.parse({"version": 99})


def test_numbers_with_exponents_are_numbers_in_presets() -> None:
    assert RunConfig.parse(read_yaml("train:\n  learning_rate: 2e-4\n", "x")).train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("", (0, 10)), ("first 3", (0, 3)), ("3", (0, 3)), (3, (0, 3)), ("2-4", (1, 4)), ("20 %", (0, 2)), ("8-99", (7, 10))],
)
def test_slices_count_rows_from_one(rows: object, expected: tuple[int, int]) -> None:
    picked = DataSource.model_validate({"id": "x", "rows": rows}).row_range(10)
    assert (picked.start, picked.stop) == expected


@pytest.mark.parametrize(("part", "value", "label"), [("rows", "some", "Rows"), ("weight", 0, "Weight")])
def test_a_wrong_part_of_a_dataset_is_named_as_the_page_names_it(part: str, value: object, label: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunConfig.parse({"data": {"sources": [{"id": "a.jsonl", part: value}]}})
    assert [problem.what for problem in caught.value.problems] == [f"{label} cannot be “{value}”"]


def test_upstream_arguments_follow_the_lesson() -> None:
    config = RunConfig().changed({"lora.targets": "q_proj,v_proj", "train.warmup": 5})
    assert bnb_arguments(config, "bfloat16") == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
    }
    assert lora_arguments(config)["target_modules"] == ["q_proj", "v_proj"] and lora_arguments(config)["lora_alpha"] == 32
    sft = sft_arguments(config, on_gpu=True, compute_dtype="bfloat16")
    assert sft["bf16"] and not sft["fp16"] and "warmup_steps" not in sft
    steps = warmup_argument(config, 100)
    assert steps == 5 and isinstance(steps, int)
    assert sft_arguments(config, on_gpu=False, compute_dtype="float32")["use_cpu"]


def test_a_run_is_never_all_warm_up_by_a_share_of_it() -> None:
    """The first step of a warm-up has the size 0: a run of one step learned nothing, and ended as done."""
    config = RunConfig()
    assert [num_warmup_steps(config, steps) for steps in (1, 2, 33, 34, 100)] == [0, 1, 1, 2, 3]
    assert (warmup_argument(config, 1), warmup_argument(config, 2)) == (0, 0.03)
    assert not any(warmup_words(config, steps) for steps in (1, 2, 100))
    chosen = config.changed({"train.warmup": 50, "train.learning_rate": 0.01})
    assert warmup_words(chosen, 26) == "The warm-up takes 50 steps and the run has 26 steps: the learning rate of 0.01 ends at 0.005."
    assert "stays at 0, and nothing is learned" in warmup_words(chosen, 1) and not warmup_words(chosen, 51)
    constant = chosen.changed({"train.schedule": "constant"})
    assert not warmup_words(constant, 26) and "train.warmup" in without_effect(constant)


def test_every_option_speaks_to_a_person() -> None:
    for path, option in option_by_path().items():
        assert option.meta.label and option.meta.help.endswith("."), path
        assert len(option.meta.help) < 160, path
        assert not option.literal_values or set(option.literal_values) == set(option.meta.choices), path
