"""The time estimate against steps measured on an H100 (tests/bench/results/speed-H100.json)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_ui.base.units import format_duration
from qlora_ui.estimate.duration import CPU_ERROR, FAST_ERROR, PLAIN_ERROR, estimate_duration, micro_step_s
from qlora_ui.estimate.learned import learn_speed
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.workload import otherwise, workload_of
from qlora_ui.hardware.devices import Speed, cpu_profile, forget_learned, named_device, stored_speeds
from qlora_ui.models.architecture import builtin_facts, facts_from_config
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.run_config import RunConfig

QWEN = facts_from_config({
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True})  # fmt: skip
LLAMA = facts_from_config({
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False})  # fmt: skip
CARD = named_device("H100")


@pytest.mark.parametrize(
    ("facts", "rows", "tokens", "changes", "measured_s", "error"),
    [
        (QWEN, 4, 512, {}, 0.1861 / 4, FAST_ERROR),
        (QWEN, 4, 512, {"train.checkpointing": "none"}, 0.1551 / 4, FAST_ERROR),
        (LLAMA, 2, 2048, {}, 0.7011 / 2, FAST_ERROR),
        (LLAMA, 1, 8192, {}, 0.7901, FAST_ERROR),
        (QWEN, 4, 512, {"train.fast_path": "off"}, 2.2179 / 4, PLAIN_ERROR),
    ],
)
def test_a_micro_step_is_within_the_error_that_is_declared(  # noqa: PLR0917
    facts: Any, rows: int, tokens: int, changes: dict[str, Any], measured_s: float, error: float
) -> None:
    config = RunConfig().changed({"train.batch_size": rows, "data.max_length": tokens, **changes})
    work = workload_of(facts, config, CARD)
    assert micro_step_s(facts, config, CARD, work, work.tokens) == pytest.approx(measured_s, rel=error)


def test_the_error_is_that_of_the_path() -> None:
    fast, plain = RunConfig(), RunConfig().changed({"train.fast_path": "off"})
    assert estimate_duration(QWEN, fast, CARD, 1000, 200).error_share == FAST_ERROR
    assert estimate_duration(QWEN, plain, CARD, 1000, 200).error_share == PLAIN_ERROR


def test_embedding_noise_takes_the_plain_path() -> None:
    plain, noisy = (RunConfig().changed(values) for values in ({"train.fast_path": "off"}, {"train.neftune": 5}))
    assert estimate_duration(QWEN, noisy, CARD, 1000, 200) == estimate_duration(QWEN, plain, CARD, 1000, 200)
    assert estimate_memory(QWEN, noisy, CARD).total_bytes == estimate_memory(QWEN, plain, CARD).total_bytes
    assert otherwise(QWEN, noisy, CARD) == ("The fast path will be off: embedding noise changes with every forward pass.",)
    assert not otherwise(QWEN, plain, CARD) and not otherwise(QWEN, RunConfig(), CARD)


def test_earlier_runs_on_a_machine_set_the_pace(workspace: Workspace) -> None:
    # 1.5B, plain: steps took half as long again as was estimated, the first two longer still.
    config = RunConfig().changed({"train.fast_path": "off", "eval.share": 0})
    card = replace(CARD, uuid="GPU-1")
    first = estimate_duration(QWEN, config, card, 1000, 200)
    for share in (1.5, 1.4, 1.8):
        times = [9.0, 9.0, *[first.step_s * share] * 6]
        learn_speed(workspace, card, first.step_s, times, is_fast=False)
    learn_speed(workspace, card, first.step_s, [first.step_s] * 4, is_fast=False)  # too short to teach anything
    speed = stored_speeds(workspace, "GPU-1")["plain"]
    assert (speed.factor, speed.num_runs) == (pytest.approx(1.5), 3) and speed.spread == pytest.approx(0.2)
    learned = estimate_duration(QWEN, config, replace(card, speeds=stored_speeds(workspace, "GPU-1")), 1000, 200)
    assert learned.step_s == pytest.approx(1.5 * first.step_s) and learned.total_s > first.total_s
    assert (learned.basis, learned.error_share) == ("measured", pytest.approx(0.2))
    fast = config.changed({"train.fast_path": "auto"})
    assert estimate_duration(QWEN, fast, replace(card, speeds=stored_speeds(workspace, "GPU-1")), 1000, 200).basis == "estimated"
    forget_learned(workspace)
    assert stored_speeds(workspace, "GPU-1") == {}


def test_one_run_sets_the_pace_and_not_the_error(workspace: Workspace) -> None:
    cpu = cpu_profile(workspace)
    config = RunConfig()
    first = estimate_duration(QWEN, config, cpu, 100, 200)
    learn_speed(workspace, cpu, first.step_s, [first.step_s * 3] * 5, is_fast=False)
    learned = estimate_duration(QWEN, config, cpu_profile(workspace), 100, 200)
    assert learned.step_s == pytest.approx(3 * first.step_s) and learned.basis == "measured"
    assert learned.error_share == first.error_share == CPU_ERROR


@pytest.mark.parametrize("max_steps", [None, 5, 1000])
@pytest.mark.parametrize("packing", ["on", "off"])
def test_the_estimate_counts_the_steps_that_the_job_takes(max_steps: int | None, packing: str) -> None:
    # 120 rows and three passes: 24 steps. A number of steps takes their place, a larger one too.
    config = RunConfig().changed({"train.max_steps": max_steps, "train.packing": packing, "data.max_length": 512})
    num_rows, packed_rows = 120, 15
    num_steps = estimate_duration(QWEN, config, CARD, num_rows, 60).num_steps
    assert num_steps == intervals(config, packed_rows if packing == "on" else 114, 6).num_steps
    assert max_steps in (None, num_steps)


def test_runs_that_lay_far_apart_leave_a_shortest_time_that_can_be_said() -> None:
    card = replace(CARD, speeds={"fast": Speed(1.0, 3, 1.4), "plain": Speed(1.0, 3, 1.4)})
    duration = estimate_duration(QWEN, RunConfig(), card, 1000, 200)
    assert duration.error_share == 1.4
    assert 0 < duration.low_s < duration.total_s < duration.high_s
    assert format_duration(duration.low_s) != "unknown"


@pytest.mark.parametrize(
    ("changes", "num_checks"), [({}, 12), ({"train.max_steps": 4}, 4), ({"eval.every": 10}, 3), ({"eval.every": 500}, 1)]
)
def test_as_many_checks_are_counted_as_a_run_makes(changes: dict[str, Any], num_checks: int) -> None:
    """Of 24 steps; the last is checked in any case, and a run of four steps is not checked ten times."""

    def checking_s(**more: Any) -> float:
        config = RunConfig().changed({"train.packing": "off", "train.max_steps": 24, **changes, **more})
        with_checks, without = (estimate_duration(QWEN, config.changed({"eval.share": share}), CARD, 400, 200) for share in (0.5, 0))
        return with_checks.total_s - without.total_s

    assert checking_s() / checking_s(**{"train.max_steps": 1}) == pytest.approx(num_checks, rel=1e-3)


def test_answers_to_probe_questions_take_time(workspace: Workspace) -> None:
    """Two questions to the built-in model, before the run and after each of its two steps: 35.6 s of 58.7 s on one thread."""
    cpu, facts = cpu_profile(workspace), builtin_facts()
    config = RunConfig().changed({"train.max_steps": 2, "eval.probe_every": 1, "launch.device": "cpu"})
    asked = config.changed({"eval.probes": ["How do I boil an egg?", "Why is the sky blue?"]})
    answering = estimate_duration(facts, asked, cpu, 100, 100).total_s - estimate_duration(facts, config, cpu, 100, 100).total_s
    assert answering == pytest.approx(35.6, rel=CPU_ERROR)
