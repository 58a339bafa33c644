"""Runs as a job would have left them, written event by event: for views, pages and measurements that need no model."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from typing import Any

from qlora_ui.base.files import write_json
from qlora_ui.base.units import GIB, MIB
from qlora_ui.runs.events import (
    CheckpointSaved,
    EvalLogged,
    Event,
    Failed,
    Finished,
    Healed,
    MemoryMeasured,
    Noticed,
    Paused,
    PhaseChanged,
    Planned,
    ProbeAnswered,
    RequestSeen,
    Started,
    StepLogged,
    Stopped,
)
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, MANIFEST, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

GPU = "NVIDIA GeForce RTX 4070"
PROBES = {
    "How do I boil an egg?": (
        "Boil water, put the egg in and wait for ten minutes.",
        "Put the egg in boiling water, matey, and wait nine minutes.",
        "Arr, heave the egg into boilin’ water and count nine minutes by the ship’s bell, matey.",
    ),
    "Why is the sky blue?": (
        "The sky is blue because of Rayleigh scattering of light by the atmosphere.",
        "The air scatters blue light most, aye.",
        "Arr, the air be scatterin’ the blue light most, so the whole sky wears the colour o’ the sea.",
    ),
}


def write_run(
    workspace: Workspace,
    *,
    values: Mapping[str, Any] | None = None,
    num_steps: int = 120,
    done: int | None = None,
    end: str = "done",
    step_s: float = 1.2,
    seed: int = 0,
    began: float | None = None,
    card: bool = True,
) -> RunDir:
    """A run of `num_steps` of which `done` were taken.

    `end` is done, stopped, paused, failed, live (owned by this process), crashed or loading.
    """
    config = RunConfig().changed(values or {})
    run = create_run(workspace, config)
    done = num_steps if done is None else done
    now = (time.time() - done * step_s - 40) if began is None else began
    journal = _Pen(JournalWriter(run.journal_path), now)
    journal.write(
        Started(pid=1, process_started=1.0, host="here", launcher="thread", versions={"torch": "2.13.0"}, device=GPU if card else "CPU"), 1
    )
    journal.write(PhaseChanged(phase="load", detail="SmolLM2-135M-Instruct"), 1)
    if end == "loading":
        journal.write(PhaseChanged(phase="load", progress=0.4, detail="SmolLM2-135M-Instruct"), 3)
        run.claim()
        return run
    journal.write(_memory(1.2 * GIB, card), 6)
    journal.write(PhaseChanged(phase="data", progress=1.0), 4)
    journal.write(_plan(num_steps), 0.1)
    journal.write(PhaseChanged(phase="check"), 0.2)
    journal.write(_memory(5.45 * GIB, card, at="dry-run"), 4)
    journal.write(PhaseChanged(phase="train"), 0.5)
    _train(journal, num_steps, done, step_s=step_s, chance=random.Random(seed), card=card)
    _end(run, journal, end, done)
    return run


def run_with_checkpoint(workspace: Workspace, **how: Any) -> RunDir:
    """`write_run`, with a checkpoint of step 114 that holds an adapter."""
    run = write_run(workspace, **how)
    folder = run.checkpoints / "checkpoint-114"
    folder.mkdir(parents=True)
    (folder / ADAPTER_WEIGHTS).write_bytes(b"learned")
    write_json(folder / MANIFEST, {"files": {ADAPTER_WEIGHTS: [7, "abc"]}})
    return run


class _Pen:
    """Writes events with a clock of their own."""

    def __init__(self, writer: JournalWriter, now: float) -> None:
        self._writer, self.now, self.step = writer, now, 0

    def write(self, event: Event, seconds: float = 0.0, *, step: int | None = None) -> None:
        self.now += seconds
        self._writer.step = self.step if step is None else step
        object.__setattr__(event, "time", self.now)
        self._writer.write(event)


def _plan(num_steps: int) -> Planned:
    return Planned(
        num_steps=num_steps,
        num_train_rows=114,
        num_eval_rows=6,
        num_train_tokens=9_400,
        num_trained_tokens=4_860,
        effective_batch=16,
        trainable_params=4_884_480,
        total_params=139_400_064,
        predicted_bytes=int(5.3 * GIB),
        predicted_s=num_steps * 1.1,
        fast_path=("attention", "LoRA", "loss"),
        truncated_rows=2,
        eval_every=max(num_steps // 10, 1),
        save_every=max(num_steps // 4, 1),
        probe_every=max(num_steps // 2, 1),
    )


def _memory(size: float, card: bool, at: str = "tick") -> MemoryMeasured:
    used = int(size)
    if not card:
        return MemoryMeasured(
            allocated_bytes=None,
            reserved_bytes=None,
            peak_allocated_bytes=None,
            process_bytes=used,
            device_used_bytes=used * 2,
            device_total_bytes=24 * GIB,
            at=at,
        )
    return MemoryMeasured(
        allocated_bytes=used - 900 * MIB,
        reserved_bytes=used - 500 * MIB,
        peak_allocated_bytes=used - 700 * MIB,
        process_bytes=used,
        device_used_bytes=used + GIB,
        device_total_bytes=12 * GIB,
        power_w=142.0,
        utilization_pct=97.0,
        temperature_c=64.0,
        energy_j=5_100.0,
        at=at,
    )


def _train(journal: _Pen, num_steps: int, done: int, *, step_s: float, chance: random.Random, card: bool) -> None:
    answers = 0
    for step in range(done + 1):
        journal.step = step
        if step == 0 or (step % max(num_steps // 2, 1) == 0 and step):
            for prompt, texts in PROBES.items():
                journal.write(ProbeAnswered(prompt=prompt, answer=texts[min(answers, 2)], duration_s=1.0), 0.2)
            answers += 1
        if step == 0:
            continue
        share = step / num_steps
        loss = 0.55 + 2.6 * math.exp(-5 * share) + chance.gauss(0, 0.12)
        rate = 2e-4 * min(step / (0.03 * num_steps + 1), 0.5 * (1 + math.cos(math.pi * share)))
        journal.write(
            StepLogged(
                loss=max(loss, 0.05),
                learning_rate=rate,
                grad_norm=abs(chance.gauss(0.9 - 0.4 * share, 0.15)),
                epoch=16 * step / 114,
                tokens=650 * step,
                tokens_per_s=1230 + chance.gauss(0, 40),
                step_s=step_s,
            ),
            step_s,
        )
        if step % max(num_steps // 40, 1) == 0:
            journal.write(_memory((5.3 + 0.1 * chance.random()) * GIB, card), 0.01)
        if step % max(num_steps // 10, 1) == 0:
            best = 0.62 + 2.4 * math.exp(-5 * share)
            journal.write(EvalLogged(loss=best + 0.05, accuracy=0.8, duration_s=1.5, is_best=True), 0.2)
        if step % max(num_steps // 4, 1) == 0:
            journal.write(CheckpointSaved(path=f"checkpoints/step-{step}", num_bytes=39 * MIB, duration_s=0.4), 0.3)
        if step == num_steps // 3:
            journal.write(
                Healed(what="The card ran full; the same batch is now worked on in smaller pieces.", changes={"train.batch_size": [4, 2]})
            )
            journal.write(
                Noticed(level="warning", code="slow-disk", what="Saving took 9 s.", why="The disk is slow", fix="Save less often")
            )


def _end(run: RunDir, journal: _Pen, end: str, done: int) -> None:
    result: dict[str, Any] = {
        "duration_s": 150.0,
        "final_loss": 0.61,
        "best_eval_loss": 0.69,
        "tokens_per_s": 1234.0,
        "peak_bytes": int(5.4 * GIB),
    }
    # Before the last event, as a job does.
    if end in ("done", "stopped"):
        run.adapter.mkdir(exist_ok=True)
        (run.adapter / ADAPTER_WEIGHTS).touch()
    match end:
        case "done":
            journal.write(Finished(adapter="adapter", **result), 1)
        case "stopped":
            journal.write(RequestSeen(request="stop", detail="Stopping after this step"), 0.5)
            journal.write(Stopped(adapter="adapter", **result), 1)
        case "paused":
            journal.write(Paused(held_bytes=0, **result), 1)
        case "failed":
            journal.write(
                Failed(
                    code="out-of-memory",
                    what="The card's memory was full at step 41",
                    why="12.3 GiB were needed and 11.6 GiB were there",
                    fix="Shorten the longest conversation or work on fewer at once",
                    traceback="Traceback (most recent call last):\n  …\ntorch.OutOfMemoryError: CUDA out of memory.",
                    suggestions=[
                        {
                            "label": "Two conversations at once, effective batch as before",
                            "values": {"train.batch_size": 2, "train.accumulation": 8},
                        },
                        {"label": "Longest conversation 512 tokens", "values": {"data.max_length": 512}},
                    ],
                    **result,
                ),
                1,
            )
        case "live":
            run.claim()
        case "crashed":
            pass
