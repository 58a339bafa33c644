"""Make it fit and its reverse, on cards that people have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_ui.data.report import DataReport
from qlora_ui.estimate.advice import make_it_fit, use_the_memory
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.workload import DataShape
from qlora_ui.hardware.devices import named_device
from qlora_ui.models.architecture import builtin_facts, facts_from_config
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.draft import data_shape
from qlora_ui.ui.views.recipe import nothing_changed

LLAMA = facts_from_config({
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False})  # fmt: skip
LARGE = RunConfig().changed({"data.max_length": 4096, "train.batch_size": 8, "train.checkpointing": "none", "lora.rank": 64})


@pytest.mark.parametrize("card", ["RTX 4060", "RTX 3060", "RTX 4080", "RTX 3090", "A100 40 GB"])
@pytest.mark.parametrize("config", [RunConfig(), LARGE])
def test_fits_and_uses_what_there_is(card: str, config: RunConfig) -> None:
    device = named_device(card)
    advice = make_it_fit(LLAMA, config, device)
    changed = config.changed({path: new for path, (_, new) in advice.changes.items()})
    assert advice.fits and estimate_memory(LLAMA, changed, device).total_bytes <= device.free_bytes
    assert changed.effective_batch == config.effective_batch
    if advice.changes and changed.train.checkpointing != "none":
        assert advice.after.total_bytes > 0.85 * device.free_bytes
    assert advice.sentences


def test_nothing_changes_where_it_fits_already() -> None:
    advice = make_it_fit(LLAMA, RunConfig(), named_device("H100"))
    assert advice.fits and not advice.changes


def test_says_when_nothing_is_enough() -> None:
    advice = make_it_fit(LLAMA, RunConfig(), named_device("4GB"))
    assert not advice.fits and "smaller model" in advice.sentences[-1]


def test_changes_without_effect_on_the_result_come_first() -> None:
    advice = make_it_fit(LLAMA, RunConfig(), named_device("RTX 4060"))
    assert not {"lora.rank", "lora.targets", "data.max_length", "train.optimizer"} & set(advice.changes)


def test_a_shorter_length_says_what_it_cuts() -> None:
    data = DataShape(num_rows=4, longest_tokens=4000, lengths=(100, 300, 3000, 4000))
    advice = make_it_fit(LLAMA, LARGE.changed({"lora.rank": 16}), named_device("7GB"), data)
    assert "data.max_length" in advice.changes
    assert advice.share_of_rows_cut is not None and 0 <= advice.share_of_rows_cut <= 0.5
    left_out = make_it_fit(LLAMA, LARGE.changed({"lora.rank": 16, "data.too_long": "drop"}), named_device("7GB"), data)
    assert any(sentence.endswith("would be left out.") for sentence in left_out.sentences) and "cut" not in " ".join(left_out.sentences)


def test_the_memory_cannot_be_used_where_there_is_too_little() -> None:
    # The same settings that “Make it fit” makes fit.
    device = named_device("RTX 4060")
    heading, words = nothing_changed(use_the_memory(LLAMA, LARGE, device), "use")
    assert heading == "No memory is left to use" and "Make it fit" in words and make_it_fit(LLAMA, LARGE, device).fits
    assert nothing_changed(make_it_fit(LLAMA, RunConfig(), named_device("H100")), "fit")[0] == "Nothing to change"


def test_using_the_memory_keeps_the_result() -> None:
    advice = use_the_memory(LLAMA, RunConfig(), named_device("RTX 4090"))
    assert advice.fits and advice.after.total_bytes > advice.before.total_bytes
    assert set(advice.changes) <= {
        "train.checkpointing", "train.kept_layers", "train.batch_size", "train.accumulation", "quant.double_quant"}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "T4", "RTX 4090"])
@pytest.mark.parametrize("shape", [DataShape(120, 60.0, 138), DataShape(2000, 250.0, 1200), DataShape()])
def test_using_the_memory_makes_no_run_slower(device: str, shape: DataShape) -> None:
    # On a CPU the larger batch pads more: 469 s became 482 s.
    facts, config = builtin_facts(), RunConfig()
    card = replace(named_device(device), total_bytes=64 << 30, free_bytes=64 << 30)
    advice = use_the_memory(facts, config, card, shape)
    changed = config.changed({path: new for path, (_, new) in advice.changes.items()})
    before, after = (estimate_duration(facts, one, card, shape.num_rows, shape.mean_tokens) for one in (config, changed))
    assert after.total_s < before.total_s and changed.effective_batch == config.effective_batch


def test_quantiles_of_the_lengths_say_what_a_shorter_limit_cuts() -> None:
    lengths = tuple(range(0, 4020, 20))  # 201 quantiles of rows between 0 and 4,000 tokens, as many of each
    shape = data_shape(
        report_with({"usable": {"rows": 2000, "mean": 2000.0, "longest": 4000, "trained_share": 0.5}, "quantiles": list(lengths)})
    )
    assert shape is not None and shape.lengths == lengths and shape.longest_tokens == 4000
    advice = make_it_fit(LLAMA, LARGE.changed({"lora.rank": 16}), named_device("7GB"), shape)
    new = advice.changes["data.max_length"][1]
    assert advice.share_of_rows_cut == pytest.approx(1 - new / 4000, abs=0.01)
    assert any("would be cut" in sentence for sentence in advice.sentences)


def report_with(tokens: dict[str, Any]) -> DataReport:
    """A report of which only what was counted in tokens matters."""
    return DataReport(sources=(), num_rows=2000, findings=(), content_hash="", tokens=tokens)
