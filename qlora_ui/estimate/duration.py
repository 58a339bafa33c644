"""How long a run takes and what energy it uses: arithmetic and launches, then what this machine has shown so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlora_ui.estimate.adapter import adapter_of
from qlora_ui.estimate.workload import DataShape, Workload, workload_of
from qlora_ui.hardware.devices import FAST, PLAIN, DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.intervals import Intervals, intervals, num_held_back
from qlora_ui.settings.run_config import RunConfig

FAST_EFFICIENCY, PLAIN_EFFICIENCY, CPU_EFFICIENCY = 0.55, 0.45, 1.0
"""Share of the data sheet's throughput that large products reach."""
FAST_LAUNCHES_PER_LAYER, PLAIN_LAUNCHES_PER_LAYER = 0, 310
"""Kernels of one layer, forward and backward with recomputation; a captured step launches none from Python."""
FORWARD_SHARE = 0.3
"""Of those kernels, a pass forward alone."""
LAUNCH_S = 4.8e-5
"""Python's share of one operation on the plain path: two runs on an H100 whose host is a virtual machine; a fast desktop may need half."""
FAST_ERROR, PLAIN_ERROR, CPU_ERROR, LEARNED_ERROR = 0.3, 0.6, 0.5, 0.2
"""Shares by which a first estimate may be off: the fast path's four shapes on an H100 (`speed-H100.json`) were within 25 %.

The last is the least that is claimed after three runs; a wider spread of theirs counts instead."""
CPU_STEP_S = 0.05


@dataclass(frozen=True, slots=True)
class DurationEstimate:
    """Time and energy of a run; it may take longer by `error_share` of it, or be shorter by as many times."""

    total_s: float
    step_s: float
    """One correction of the weights, all its micro-batches."""
    num_steps: int
    passes: float
    """How often each training row is seen; below 1 where the steps end before all were."""
    tokens_per_s: float
    energy_j: float | None
    """None where nobody knows the power of the device."""
    error_share: float
    basis: str
    """`measured` on this machine with a like run, else `estimated`."""

    @property
    def low_s(self) -> float:
        """The shortest that it may take: above nothing however far earlier runs lay apart."""
        return self.total_s / (1 + self.error_share)

    @property
    def high_s(self) -> float:
        """The longest that it may take."""
        return self.total_s * (1 + self.error_share)


def estimate_duration(
    facts: ModelFacts,
    config: RunConfig,
    device: DeviceProfile,
    num_rows: int | None,
    mean_tokens: float | None,
) -> DurationEstimate:
    """Time of a whole run on `num_rows` conversations of `mean_tokens` tokens (unknown: 1,000 rows of half the longest length).

    What earlier runs on the device have shown of its speed counts. Saves are counted as a share.
    """
    mean = min(mean_tokens or config.data.max_length / 2, config.data.max_length)
    rows = num_rows if num_rows is not None else 1000
    held_back = num_held_back(rows, config.eval.share)
    train_rows = max(1, rows - held_back)
    work = workload_of(facts, config, device, DataShape(num_rows=rows, mean_tokens=mean))
    rows_per_pass = math.ceil(train_rows * mean / (0.95 * config.data.max_length)) if work.is_packed else train_rows
    plan = intervals(config, rows_per_pass, held_back)
    num_steps = plan.num_steps
    tokens_per_step, positions = _batch(config, work, mean)
    micro = micro_step_s(facts, config, device, work, positions)
    learned = device.speeds.get(FAST if work.is_fast else PLAIN)
    factor = learned.factor if learned else 1.0
    step = micro * config.train.accumulation * factor
    eval_positions = held_back * (mean if work.is_packed else min(mean * 1.4, config.data.max_length))
    evaluations = math.ceil(num_steps / plan.eval_every) if plan.eval_every else 0  # The last step is checked in any case.
    evaluation = evaluations * eval_positions * _flop_per_token(facts, 2) / _throughput(device, work) * factor
    total = _starting_s(facts, device) + num_steps * step * 1.03 + evaluation + _answering_s(facts, config, device, work, plan)
    power = device.watts * 0.8 if device.watts is not None else None
    return DurationEstimate(
        total_s=total,
        step_s=step,
        num_steps=num_steps,
        passes=_passes(num_steps, rows_per_pass, config.effective_batch),
        tokens_per_s=tokens_per_step / step,
        energy_j=total * power if power is not None else None,
        error_share=max(LEARNED_ERROR, learned.spread) if learned and learned.spread is not None else _first_error(work),
        basis="measured" if learned else "estimated",
    )


def _passes(num_steps: int, rows_per_pass: int, effective_batch: int) -> float:
    """Passes over the rows; only the last batch of each may be smaller than the others."""
    whole, begun = divmod(num_steps, math.ceil(rows_per_pass / effective_batch))
    return whole + begun * effective_batch / rows_per_pass


def _first_error(work: Workload) -> float:
    if work.is_cpu:
        return CPU_ERROR
    return FAST_ERROR if work.is_fast else PLAIN_ERROR


def micro_step_s(facts: ModelFacts, config: RunConfig, device: DeviceProfile, work: Workload, positions: float) -> float:
    """Seconds of one micro-step over that many token positions: arithmetic, dequantization, and launches where Python is slower."""
    recomputed = (facts.num_layers - work.kept_layers) / facts.num_layers
    # What is trained has a gradient of its own beside that of its input.
    flop = _flop_per_token(facts, 4 + 2 * recomputed) * positions
    flop += (6 + 2 * recomputed) * adapter_of(facts, config.lora).num_lora_params * positions
    passes = 2 + recomputed
    dequantized = facts.num_quantized_params * 2.5 * passes / device.bandwidth_bytes_per_s
    if work.is_cpu:
        return CPU_STEP_S + flop / _throughput(device, work) + dequantized
    per_layer = FAST_LAUNCHES_PER_LAYER if work.is_fast else PLAIN_LAUNCHES_PER_LAYER * (1 - FORWARD_SHARE + FORWARD_SHARE * recomputed)
    if config.lora.dora:
        flop *= 1.6
    launching = LAUNCH_S * per_layer * facts.num_layers
    return max(flop / _throughput(device, work) + dequantized, launching) + 0.003


def _answering_s(facts: ModelFacts, config: RunConfig, device: DeviceProfile, work: Workload, plan: Intervals) -> float:
    """Seconds of all answers to the probe questions, each as long as it may be: a token is a pass forward through transformers' own layers.

    Two questions to the built-in model on a CPU took 0.10 s a token; this says 0.08.
    """
    if not plan.probe_every or config.launch.sharding != "none":
        return 0.0
    dequantized = facts.num_quantized_params * 2.5 / device.bandwidth_bytes_per_s
    launching = CPU_STEP_S if work.is_cpu else LAUNCH_S * PLAIN_LAUNCHES_PER_LAYER * FORWARD_SHARE * facts.num_layers
    token = launching + dequantized + _flop_per_token(facts, 2) / _throughput(device, work)
    learned = device.speeds.get(PLAIN)
    rounds = plan.num_steps // plan.probe_every + 1  # The first before anything was learned.
    return rounds * len(config.eval.probes) * config.eval.probe_tokens * token * (learned.factor if learned else 1.0)


def _batch(config: RunConfig, work: Workload, mean: float) -> tuple[float, float]:
    """(real tokens of a step, positions of a micro-batch): padding costs time, packing fills rows."""
    if work.is_packed:
        positions = float(work.tokens)
        return positions * 0.95 * config.train.accumulation * work.num_devices, positions
    # A batch is as long as its longest row: about the mean times a factor that grows with the batch, for lengths as chats have them.
    stretch = 1 + 0.45 * math.log2(work.num_rows) if work.num_rows > 1 else 1.0
    return mean * config.effective_batch, work.num_rows * min(mean * stretch, config.data.max_length)


def _flop_per_token(facts: ModelFacts, per_weight: float) -> float:
    """FLOP of the frozen layers and the output layer; without the adapter's own products."""
    return per_weight * facts.num_quantized_params + 4 * facts.vocab_size * facts.hidden_size


def _throughput(device: DeviceProfile, work: Workload) -> float:
    efficiency = CPU_EFFICIENCY if work.is_cpu else FAST_EFFICIENCY if work.is_fast else PLAIN_EFFICIENCY
    return device.tflops * 1e12 * efficiency * (0.1 if work.dtype == "float32" and not work.is_cpu else 1.0)


def _starting_s(facts: ModelFacts, device: DeviceProfile) -> float:
    """Imports, reading the base at 1 GB/s and quantizing it."""
    return 12 + 2 * facts.num_params / 1e9 * (1.5 if device.is_cpu else 1.0)
