"""Each component of the memory estimate against bytes counted by hand, and its reaction to every option that claims to move it."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest

from qlora_ui.base.units import GIB, MIB
from qlora_ui.estimate.activations import logit_tile, tile_rows
from qlora_ui.estimate.adapter import adapter_of, optimizer_bytes
from qlora_ui.estimate.check import replay
from qlora_ui.estimate.deltas import deltas
from qlora_ui.estimate.memory import PARTS, MemoryEstimate, estimate_memory, quantized_bytes, saved_bytes
from qlora_ui.estimate.precision import adapter_bytes, compute_dtype
from qlora_ui.estimate.quantization import explain
from qlora_ui.estimate.trace import Depth, Trace
from qlora_ui.estimate.workload import DataShape, model_problems, workload_of
from qlora_ui.hardware.devices import cpu_profile, named_device
from qlora_ui.models.architecture import builtin_facts, facts_from_config
from qlora_ui.settings.run_config import RunConfig

QWEN = facts_from_config({
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True})  # fmt: skip
CARD = named_device("RTX 4090")
PLAIN = RunConfig().changed({"train.fast_path": "off", "eval.share": 0, "data.max_length": 512})


def total(config: RunConfig, **named: Any) -> int:
    return estimate_memory(QWEN, config, CARD, **named).total_bytes


def test_parts_add_up_and_are_named() -> None:
    for config in (RunConfig(), PLAIN, RunConfig().changed({"train.checkpointing": "none"})):
        estimate = estimate_memory(QWEN, config, CARD)
        assert tuple(estimate.parts) == PARTS
        assert sum(estimate.parts.values()) == estimate.total_bytes
        assert estimate.low_bytes < estimate.total_bytes < estimate.high_bytes


def test_quantized_weights_by_hand() -> None:
    # One layer of 1536 x 256: 196,608 bytes packed, 6,144 blocks. Without double quantization 4 bytes a block and a table of 512.
    key = next(linear for linear in QWEN.linears if linear.name == "k_proj")
    assert key.num_weights == 1536 * 256
    plain, double = quantized_bytes(QWEN, double_quant=False), quantized_bytes(QWEN, double_quant=True)
    weights = QWEN.num_quantized_params
    assert plain == pytest.approx(weights * (0.5 + 4 / 64), rel=1e-3)
    assert double == pytest.approx(weights * (0.5 + 1 / 64 + 4 / 64 / 256), rel=1e-3)
    assert (plain - double) / MIB == pytest.approx(58, abs=1)


def test_weights_in_16_bits_by_hand() -> None:
    parts = estimate_memory(QWEN, PLAIN, CARD).parts
    biases, norms = 28 * (1536 + 2 * 256), 28 * 2 * 1536 + 1536
    assert parts["weights_16bit"] == 2 * (151936 * 1536 + biases + norms)


def test_adapter_gradients_and_optimizer_by_hand() -> None:
    params = 28 * 16 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    parts = estimate_memory(QWEN, PLAIN, CARD).parts
    assert adapter_of(QWEN, PLAIN.lora).num_params == params
    assert (parts["adapter"], parts["gradients"], parts["optimizer"]) == (2 * params, 2 * params, 4 * params)


def test_optimizers() -> None:
    assert optimizer_bytes("adamw", 1000, 4) == 8000
    assert optimizer_bytes("paged_adamw_32bit", 1000, 2) == 8000
    assert (optimizer_bytes("adamw_fp32", 1000, 2), optimizer_bytes("adamw_fp32", 1000, 4)) == (12000, 8000)
    assert optimizer_bytes("adamw_8bit", 25600, 2) == 2 * 25600 + 8 * 100


def test_targets_dora_and_modules_to_save() -> None:
    lora = PLAIN.changed({"lora.targets": "q_proj,v_proj,nothing_proj"}).lora
    adapter = adapter_of(QWEN, lora)
    assert adapter.num_params == 28 * 16 * (1536 + 1536 + 1536 + 256)
    assert adapter.unknown == ("nothing_proj",)
    nested = PLAIN.changed({"lora.targets": "self_attn.q_proj,self_attn.v_proj,embed_tokens"}).lora
    assert adapter_of(QWEN, nested).num_params == adapter.num_params + 16 * (151936 + 1536)
    assert adapter_of(QWEN, nested).unknown == ()
    dora = adapter_of(QWEN, PLAIN.changed({"lora.dora": True}).lora)
    assert dora.num_params - adapter_of(QWEN, PLAIN.lora).num_params == 28 * sum(linear.num_out for linear in QWEN.linears)
    saved = adapter_of(QWEN, PLAIN.changed({"lora.modules_to_save": "lm_head"}).lora)
    assert saved.trains_head and saved.num_saved_params == 151936 * 1536


def test_trained_norms_and_a_weight_decomposed_embedding_by_hand() -> None:
    """As peft makes them of a two-layer model: a name takes every layer that ends so."""

    def params(**lora: Any) -> int:
        return adapter_of(QWEN, RunConfig().changed({f"lora.{name}": value for name, value in lora.items()}).lora).num_params

    of_norms = {name: params(modules_to_save=name) - params() for name in ("norm", "input_layernorm", "input_layernorm,norm")}
    assert of_norms == {"norm": QWEN.num_norm_params, "input_layernorm": 28 * 1536, "input_layernorm,norm": QWEN.num_norm_params}
    assert params(targets="embed_tokens", dora=True) - params(targets="embed_tokens") == 1536


def test_activations_of_a_layer_by_hand() -> None:
    # Published list for 1.5B: 97,560 bytes a token without dropout; a layer more or less kept is that and not its input.
    few = PLAIN.changed({"lora.dropout": 0, "train.checkpointing": "partly", "train.kept_layers": 10})
    more = few.changed({"train.kept_layers": 11})
    tokens = 4 * 512
    grown = estimate_memory(QWEN, more, CARD).parts["activations"] - estimate_memory(QWEN, few, CARD).parts["activations"]
    assert grown / tokens == pytest.approx(97_560 - 2 * 1536, rel=0.002)


def test_tiles_only_where_they_save_memory() -> None:
    # Llama-3.1-8B is 4,096 wide: three matrices of that many rows are dequantized for all tiles.
    assert [tile_rows(n, 4096) for n in (2048, 4096, 5120)] == [2048, 4096, 5120]
    assert tile_rows(8192, 4096) == 1024
    assert tile_rows(6000, 4096) == 1024  # six even shares of 1,000, in steps of 64
    assert tile_rows(4096, 1536) == 4096 and tile_rows(8192, 1536) == 2752
    assert tile_rows(40000, 16384) == 576
    assert tile_rows(5600, 896) == 5600


def test_dropout_keeps_outputs_and_masks_on_the_plain_path_only() -> None:
    without = {"lora.dropout": 0, "train.checkpointing": "none"}
    with_dropout = {**without, "lora.dropout": 0.05}
    tokens, widths = 4 * 512, 3 * 1536 + 1536 + 2 * 1536 + 8960
    shared = 1536 + 1536 + 8960
    grown = (
        estimate_memory(QWEN, PLAIN.changed(with_dropout), CARD).parts["activations"]
        - estimate_memory(QWEN, PLAIN.changed(without), CARD).parts["activations"]
    )
    assert grown == 28 * tokens * (3 * widths - 2 * shared)
    fast = RunConfig().changed({"data.max_length": 512})
    parts = [estimate_memory(QWEN, fast.changed(values), CARD).parts for values in (with_dropout, without)]
    assert parts[0]["activations"] == parts[1]["activations"]


def test_logits_come_in_tiles_of_words_where_the_step_is_exact_and_of_tokens_where_not() -> None:
    assert logit_tile(300, 32001, 2, exact=True) == logit_tile(300, 32001, 2, exact=False) == (300, 32064)
    assert logit_tile(8192, 32000, 2, exact=True) == (2048, 32000)
    assert logit_tile(8192, 128256, 2, exact=True) == (2048, 32768)
    assert logit_tile(8192, 128256, 2, exact=False) == (640, 128256)


@pytest.mark.parametrize(
    "more",
    [
        {"lora.rank": 64},
        {"train.batch_size": 8},
        {"data.max_length": 1024},
        {"train.checkpointing": "none"},
        {"train.checkpointing": "partly", "train.kept_layers": 5},
        {"quant.double_quant": False},
        {"lora.dropout": 0.1, "lora.rank": 17},
        {"lora.dora": True},
        {"lora.modules_to_save": ("lm_head",)},
        {"model.attention": "eager"},
        {"quant.compute_dtype": "float32"},
        {"eval.share": 0.1, "eval.batch_size": 256, "train.packing": "off"},
        {"train.packing": "off"},
    ],
)
def test_what_needs_more_is_said_to_need_more(more: dict[str, Any]) -> None:
    assert total(PLAIN.changed(more)) > total(PLAIN)


def test_rows_shorter_than_the_limit_need_less() -> None:
    padded = PLAIN.changed({"train.packing": "off"})
    assert total(padded, data=DataShape(longest_tokens=128)) < total(padded)
    assert total(PLAIN, data=DataShape(longest_tokens=128)) == total(PLAIN)  # a packed row is filled up


def test_old_cards_compute_in_fp16_with_fp32_adapters_and_unfused_attention() -> None:
    work = workload_of(QWEN, RunConfig(), named_device("T4"))
    assert (work.dtype, work.adapter_bytes, work.attention, work.is_fast) == ("float16", 4, "math", False)
    assert compute_dtype(RunConfig().quant, is_cpu=True, supports_bf16=True) == "float32" and adapter_bytes("bfloat16") == 2


@pytest.mark.parametrize(
    ("changes", "checked_mib"),
    [
        ({"data.max_length": 4096, "eval.batch_size": 4}, 12105),
        ({"data.max_length": 4096, "eval.batch_size": 4, "train.fast_path": "off"}, 9396),
        ({"data.max_length": 2048, "eval.batch_size": 8}, 7171),
        ({"data.max_length": 4096, "eval.batch_size": 1}, 6893),
    ],
)
def test_a_check_of_capped_scores_is_foretold_as_the_simulated_code_has_it(changes: dict[str, Any], checked_mib: int) -> None:
    """Gemma 2 2B on an H100, without the context: what `tests/bench/vram_families.py` found for a row trained and several checked."""
    facts = facts_from_config({
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 256000, "head_dim": 256})  # fmt: skip
    card = replace(named_device("H100"), grows_segments=True)
    config = RunConfig().changed({
        "train.batch_size": 1, "train.packing": "off", "train.checkpointing": "all", "train.optimizer": "adamw", "train.accumulation": 1,
        "lora.rank": 16, "lora.dropout": 0.0, "lora.targets": "all-linear", "eval.share": 0.1, **changes})  # fmt: skip
    estimate = estimate_memory(facts, config, card)
    assert (estimate.total_bytes - estimate.parts["context"]) / MIB == pytest.approx(checked_mib, rel=0.02)


def test_context_and_correction_show() -> None:
    from dataclasses import replace

    larger = replace(CARD, context_bytes=CARD.context_bytes + 100 * MIB)
    assert estimate_memory(QWEN, PLAIN, larger).total_bytes == total(PLAIN) + 100 * MIB
    corrected = estimate_memory(QWEN, PLAIN, replace(CARD, correction=1.1))
    assert corrected.total_bytes - CARD.context_bytes == pytest.approx(1.1 * (total(PLAIN) - CARD.context_bytes), rel=1e-6)


def test_two_hundred_random_settings_in_under_50_ms_each() -> None:
    # The thread's own time: what other programs take of the processor meanwhile is not the estimate's.
    draw = random.Random(1)
    slowest = 0.0
    for _ in range(200):
        config = RunConfig().changed({
            "lora.rank": draw.choice([4, 16, 64, 256]), "train.batch_size": draw.choice([1, 2, 8, 16]),
            "data.max_length": draw.choice([64, 512, 4096]), "lora.dropout": draw.choice([0.0, 0.1]),
            "train.checkpointing": draw.choice(["all", "none"]), "quant.double_quant": draw.random() < 0.5,
            "train.fast_path": draw.choice(["auto", "off"]), "train.packing": draw.choice(["auto", "on", "off"])})  # fmt: skip
        began = time.thread_time()
        estimate = estimate_memory(QWEN, config, CARD)
        slowest = max(slowest, time.thread_time() - began)
        assert 0 < estimate.total_bytes < 1000 * GIB
    assert slowest < 0.05


def test_delta_of_the_rank() -> None:
    delta = deltas(QWEN, PLAIN, CARD, "lora.rank", 64)
    assert delta.trainable_params == 3 * adapter_of(QWEN, PLAIN.lora).num_params
    assert delta.after.adapter_bytes == 4 * delta.before.adapter_bytes
    assert delta.memory_bytes > 0


def test_explainer_of_the_builtin_model() -> None:
    explanation = explain(builtin_facts())
    nf4 = next(row for row in explanation.rows if row.name == "NF4")
    assert nf4.bits_per_weight == pytest.approx(4.5, abs=0.05)
    assert explanation.rows[0].layers_bytes == 2 * builtin_facts().num_quantized_params
    assert "% of the weights become 4-bit; embeddings and norms stay in 16 bits." in explanation.sentences[0]


def test_what_was_not_measured_is_doubted_and_given_twice_the_range() -> None:
    sure, unsure = estimate_memory(QWEN, PLAIN, CARD), estimate_memory(QWEN, PLAIN.changed({"lora.dora": True}), CARD)
    assert sure.doubts == () and unsure.doubts == ("no run with DoRA",)
    for estimate, share in ((sure, 0.05), (unsure, 0.1)):
        assert (estimate.high_bytes - estimate.total_bytes) == pytest.approx(share * (estimate.total_bytes - CARD.context_bytes), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora.targets": "q_proj,W_pack"}, "The model has no layer named W_pack"),
        ({"lora.modules_to_save": "embed_token"}, "embed_token cannot be trained in full"),
        ({"lora.modules_to_save": "q_proj"}, "Linear layers are kept in 4 bits"),
        ({"lora.targets": "self_attn.q_proj,embed_tokens", "lora.modules_to_save": "lm_head,model.norm"}, ""),
    ],
)
def test_layers_that_the_model_does_not_have_are_named(changes: dict[str, str], says: str) -> None:
    problems = model_problems(QWEN, PLAIN.changed(changes))
    assert says in " ".join(problem.sentence() for problem in problems) and bool(problems) == bool(says)


def test_sdpa_is_refused_where_the_model_caps_its_scores() -> None:
    # transformers refuses to build such a model with it, hours of download later.
    capped, config = replace(QWEN, attention_softcap=50.0), PLAIN.changed({"model.attention": "sdpa"})
    assert [problem.where for problem in model_problems(capped, config)] == ["model.attention"]
    assert not model_problems(QWEN, config) and not model_problems(capped, PLAIN)


def test_a_base_that_is_split_over_cards_or_machines_need_not_fit_one() -> None:
    def split(processes: int, machines: int) -> MemoryEstimate:
        values = {"launch.num_processes": processes, "launch.num_machines": machines, "launch.sharding": "fsdp"}
        config = PLAIN.changed({"launch.where": "process", "quant.storage": "bfloat16", **values})
        return estimate_memory(QWEN, config, CARD)

    whole = estimate_memory(QWEN, PLAIN, CARD).parts["weights_4bit"]
    two, over_machines, eight = split(2, 1), split(1, 2), split(8, 1)
    assert two.parts == over_machines.parts
    assert two.parts["weights_4bit"] == whole // 2 + whole // 28 and eight.parts["weights_4bit"] == whole // 8 + whole // 28
    assert two.moment != "loading" != eight.moment and eight.total_bytes < two.total_bytes


def test_processes_on_one_processor_need_a_model_each() -> None:
    config = PLAIN.changed({"launch.device": "cpu", "launch.where": "process"})
    two = config.changed({"launch.num_processes": 2})
    alone, both = (estimate_memory(QWEN, some, cpu_profile()) for some in (config, two))
    assert both.total_bytes == sum(both.parts.values()) == 2 * alone.total_bytes == 2 * both.process_bytes
    assert both.low_bytes < both.total_bytes < both.high_bytes and not alone.notes
    assert "2 processes" in both.notes[0] and saved_bytes(both, two) == saved_bytes(alone, config)
    # Cards have a memory each, and so have the machines that share the work.
    assert estimate_memory(QWEN, two, CARD).num_sharing == 1
    machines = config.changed({"launch.num_machines": 2})
    assert estimate_memory(QWEN, machines, cpu_profile()).total_bytes == alone.total_bytes
    # The precise check counts them as well.
    depth = Depth.of(QWEN.num_layers, 0)
    found = [replay(Trace(), depth, QWEN, some, cpu_profile(), workload_of(QWEN, some, cpu_profile())) for some in (config, two)]
    assert found[1].total_bytes == 2 * found[0].total_bytes > 0
