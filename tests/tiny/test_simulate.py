"""The precise check against the closed form, and its extension from a few layers to many against the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ui.estimate.check import check_memory, replay, request_of, run_simulation
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.trace import Depth
from qlora_ui.estimate.workload import workload_of
from qlora_ui.hardware.devices import named_device
from qlora_ui.models.architecture import facts_from_config
from qlora_ui.settings.run_config import RunConfig

QWEN = facts_from_config({
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "tie_word_embeddings": True})  # fmt: skip
CARD = named_device("H100")


@pytest.mark.parametrize("changes", [{"train.fast_path": "off"}, {}])
def test_agrees_with_the_closed_form(changes: dict[str, str]) -> None:
    config = RunConfig().changed({"data.max_length": 1024, "train.batch_size": 2, **changes})
    closed, checked = estimate_memory(QWEN, config, CARD), check_memory(QWEN, config, CARD)
    assert checked.total_bytes == pytest.approx(closed.total_bytes, rel=0.05)
    assert checked.allocated_bytes < checked.reserved_bytes < checked.total_bytes


def test_a_few_layers_stand_for_many() -> None:
    facts = replace(QWEN, num_layers=10)
    config = RunConfig().changed(
        {"train.fast_path": "off", "data.max_length": 256, "train.batch_size": 1, "train.checkpointing": "partly", "train.kept_layers": 5}
    )
    work = workload_of(facts, config, CARD)
    short, whole = Depth.of(5, 5), Depth(tuple(range(10)))
    assert short.num_run == 8
    found = []
    for depth in (short, whole):
        request = request_of(facts, config, work, depth)
        request["kept_layers"] = depth.num_kept_run(5) if depth is short else 5
        found.append(replay(run_simulation(request), depth, facts, config, CARD, work))
    assert found[0] == found[1]
