"""How many rows, steps and interruptions a run has: what the job does, the estimate counts, the page says and the script writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlora_ui.settings.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Intervals:
    """Steps of a run and between its interruptions."""

    num_steps: int
    eval_every: int
    """0: nothing is held back, so nothing is checked."""
    save_every: int
    probe_every: int
    """0: there are no probe questions."""


def intervals(config: RunConfig, num_train_rows: int, num_eval_rows: int) -> Intervals:
    """The intervals for that many rows (packed rows where packing is on): 0 in the settings means about ten checks a run, a
    save each tenth of it but at least every 100 steps, and about five answers to the probe questions."""
    num_steps = count_steps(config, num_train_rows)
    eval_every = (config.eval.every or max(round(num_steps / 10), 1)) if num_eval_rows else 0
    return Intervals(
        num_steps=num_steps,
        eval_every=min(eval_every, num_steps),
        save_every=min(config.output.save_every or min(max(num_steps // 10, 1), 100), num_steps),
        probe_every=min(config.eval.probe_every or max(round(num_steps / 5), 1), num_steps) if config.eval.probes else 0,
    )


def count_steps(config: RunConfig, num_train_rows: int) -> int:
    """Corrections of the weights in a run over that many training rows (packed rows where packing is on).

    As upstream has it, a number of steps takes the place of the passes, whether it is fewer or more.
    """
    if config.train.max_steps is not None:
        return config.train.max_steps
    steps_per_epoch = max(math.ceil(num_train_rows / config.effective_batch), 1)
    return max(math.ceil(config.train.epochs * steps_per_epoch), 1)


def num_held_back(num_rows: int, share: float) -> int:
    """Rows that are kept from training: at least one where any are to be, and never all."""
    return min(max(round(num_rows * share), 1), num_rows - 1) if share > 0 and num_rows > 1 else 0


def num_warmup_steps(config: RunConfig, num_steps: int) -> int:
    """Steps with a rising learning rate, the first with none; a share below 1 is rounded up as transformers does, but leaves a step.

    All of a run of one step would else be a step of size 0, from which nothing is learned.
    """
    warmup = config.train.warmup
    if config.train.schedule == "constant":
        return 0
    return min(math.ceil(num_steps * warmup), num_steps - 1) if warmup < 1 else round(warmup)


def warmup_argument(config: RunConfig, num_steps: int) -> float | int:
    """`warmup_steps` of transformers' arguments: a share of all steps as it was chosen, unless that would be all of them."""
    warmup = config.train.warmup
    # An int is a number of steps: 5.0 would be rejected.
    return warmup if warmup < 1 and math.ceil(num_steps * warmup) < num_steps else num_warmup_steps(config, num_steps)


def warmup_words(config: RunConfig, num_steps: int) -> str:
    """A sentence where the run ends before the learning rate has risen; else empty."""
    warmup = num_warmup_steps(config, num_steps)
    if warmup < max(num_steps, 1):
        return ""
    reached = config.train.learning_rate * (num_steps - 1) / warmup
    run = "1 step" if num_steps == 1 else f"{num_steps} steps"
    got = f"ends at {reached:.2g}" if reached else "stays at 0, and nothing is learned"
    return f"The warm-up takes {warmup} steps and the run has {run}: the learning rate of {config.train.learning_rate:g} {got}."
