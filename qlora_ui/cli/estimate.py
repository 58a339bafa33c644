"""`app.py estimate`: what a run would need, part by part, without starting it."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.units import format_bytes, format_count, format_duration
from qlora_ui.cli.config_flags import add_config_flags, config_from, table
from qlora_ui.data.load import inspect
from qlora_ui.estimate.adapter import adapter_of
from qlora_ui.estimate.check import check_memory
from qlora_ui.estimate.duration import DurationEstimate, estimate_duration
from qlora_ui.estimate.memory import PART_WORDS, MemoryEstimate, estimate_memory
from qlora_ui.estimate.workload import DataShape, beyond_context, model_problems, otherwise, workload_of
from qlora_ui.hardware.devices import DeviceProfile, current_device, named_device
from qlora_ui.models.catalogue import model_facts
from qlora_ui.models.facts import ModelFacts
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

HELP = "memory, time and energy of a run before it starts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, a device, and the precise check."""
    add_config_flags(parser)
    add_device_flag(parser)
    parser.add_argument("--check", action="store_true", help="also run the model's real code on tensors without data (some seconds)")


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """`--device`: a card that need not be here."""
    parser.add_argument("--device", metavar="NAME|SIZE", help="a card (“RTX 4060”), its memory (8GB) or cpu; default: this machine's")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate; 0 whether it fits or not."""
    workspace = Workspace.to_read(arguments.workspace)
    config = config_from(arguments, workspace)
    facts, device, data = facts_of(config, workspace), device_of(arguments, config, workspace), data_shape_of(config, workspace)
    memory = estimate_memory(facts, config, device, data)
    duration = estimate_duration(facts, config, device, data.num_rows, data.mean_tokens)
    values = as_values(facts, config, device, memory, duration)
    if arguments.check:
        began = time.monotonic()
        checked = check_memory(facts, config, device, data)
        values["checked_bytes"] = checked.total_bytes
        values["checked_allocated_bytes"] = checked.allocated_bytes
        values["checked_fits"] = checked.total_bytes <= device.free_bytes
        values["check_s"] = round(time.monotonic() - began, 2)
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False))
        return 0
    _say(values, memory, duration, device)
    return 0


def facts_of(config: RunConfig, workspace: Workspace) -> ModelFacts:
    """The model's facts; raises ModelError where they are not known without a download."""
    facts = model_facts(config.model.id, config.model.revision, workspace)
    if facts is None:
        raise ModelError(
            f"The shape of {config.model.id} is not known yet.",
            why="It was not downloaded.",
            fix="Download it on the Model tab, or give the folder that holds it.",
            where="model.id",
            code="model-unknown",
        )
    return facts


def device_of(arguments: argparse.Namespace, config: RunConfig, workspace: Workspace) -> DeviceProfile:
    """The device that was named, else the one that the run would use here."""
    return named_device(arguments.device, workspace) if arguments.device else current_device(workspace, config.launch.device)


def data_shape_of(config: RunConfig, workspace: Workspace) -> DataShape:
    """Rows of the dataset; lengths need a tokenizer and stay unknown here."""
    with tempfile.TemporaryDirectory(prefix="qlora-ui-") as aside:
        is_writable = os.access(workspace.cache, os.W_OK)
        report = inspect(config.data, workspace if is_writable else replace(workspace, aside=Path(aside)))
    return DataShape(num_rows=report.num_rows)


def as_values(
    facts: ModelFacts, config: RunConfig, device: DeviceProfile, memory: MemoryEstimate, duration: DurationEstimate | None
) -> dict[str, Any]:
    """The estimate as plain data, for `--json`."""
    adapter = adapter_of(facts, config.lora)
    values: dict[str, Any] = {
        "total_bytes": memory.total_bytes,
        "low_bytes": memory.low_bytes,
        "high_bytes": memory.high_bytes,
        "parts": memory.parts,
        "allocated_bytes": memory.allocated_bytes,
        "load_peak_bytes": memory.load_peak_bytes,
        "moment": memory.moment,
        "trainable_params": memory.trainable_params,
        "total_params": facts.num_params,
        "adapter_bytes": adapter.num_params * workload_of(facts, config, device).adapter_bytes,
        "fits": memory.fits(device),
        "device": device.name,
        "device_total_bytes": device.total_bytes,
        "device_free_bytes": device.free_bytes,
        "context_source": device.context_source,
        "correction": device.correction,
        "fast_path": memory.is_fast,
        "effective_batch": config.effective_batch,
        "notes": _notes(facts, config, device, memory),
    }
    if duration is not None:
        values |= {
            "num_steps": duration.num_steps,
            "step_s": round(duration.step_s, 4),
            "total_s": round(duration.total_s, 1),
            "tokens_per_s": round(duration.tokens_per_s, 1),
            "energy_j": duration.energy_j,
            "duration_error_share": duration.error_share,
            "duration_basis": duration.basis,
        }
    return values


def _notes(facts: ModelFacts, config: RunConfig, device: DeviceProfile, memory: MemoryEstimate) -> list[str]:
    """What there is to say of the settings and of the numbers, in sentences."""
    wrong = [problem.sentence() for problem in model_problems(facts, config)]
    beyond = beyond_context(facts, config, None)
    return [*wrong, *otherwise(facts, config, device), *([beyond] if beyond else []), *memory.notes]


def _say(values: dict[str, Any], memory: MemoryEstimate, duration: DurationEstimate, device: DeviceProfile) -> None:
    rows = [(PART_WORDS[name], format_bytes(size)) for name, size in memory.parts.items() if size]
    print(table(rows))
    verdict = "fits" if values["fits"] else "does not fit"
    print(f"{format_bytes(memory.total_bytes)} of {format_bytes(device.free_bytes)} free on {device.name}: {verdict}.")
    if "checked_bytes" in values:
        print(f"The check says {format_bytes(values['checked_bytes'])} ({values['check_s']} s).")
    share = memory.trainable_params / values["total_params"]
    print(
        f"{format_count(memory.trainable_params)} trained numbers, {share:.2%} of the model; "
        f"adapter {format_bytes(values['adapter_bytes'])}."
    )
    span = f"{format_duration(duration.low_s)} to {format_duration(duration.high_s)}"
    print(f"{duration.num_steps} steps, about {format_duration(duration.total_s)} ({span}).")
    for note in values["notes"]:
        print(note)
