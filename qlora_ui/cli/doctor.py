"""`app.py doctor`: what is here, what is wrong with it, and what to do."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from qlora_ui import __version__
from qlora_ui.base.files import free_bytes
from qlora_ui.base.units import GIB, format_bytes
from qlora_ui.cli.config_flags import table
from qlora_ui.data.no_network import can_refuse_network
from qlora_ui.hardware.devices import FAST, PLAIN, card_profile, cpu_profile, forget_learned
from qlora_ui.hardware.gpu import driver_version, read_gpus
from qlora_ui.hardware.system import read_system, versions
from qlora_ui.models.builtin import gguf_path
from qlora_ui.runs.workspace import Workspace

HELP = "versions, cards, what was measured of them, and what is wrong"
NEEDED = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "gradio")
LITTLE_DISK_BYTES = 5 * GIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What was learned can be forgotten."""
    parser.add_argument("--forget", action="store_true", help="forget what earlier runs taught the estimates of memory and time")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 where something keeps runs from working."""
    workspace = Workspace.at(arguments.workspace)
    if arguments.forget:
        forget_learned(workspace)
    values = _look(workspace)
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        _say(values)
    return 1 if any(problem["stops_runs"] for problem in values["problems"]) else 0


def _look(workspace: Workspace) -> dict[str, Any]:
    system, found = read_system(), versions()
    cards = [_card(gpu, workspace) for gpu in read_gpus(visible_only=False)]
    return {
        "app": __version__,
        "versions": found,
        "driver": driver_version(),
        "cards": cards,
        "system": asdict(system),
        "device": asdict(cpu_profile(workspace)) if not cards else cards[0],
        "workspace": str(workspace.root),
        "workspace_free_bytes": free_bytes(workspace.root),
        "has_builtin_model": gguf_path() is not None,
        "files_read_without_network_by": "kernel" if can_refuse_network() else "python",
        "problems": _problems(workspace, found, bool(cards)),
    }


def _card(gpu: Any, workspace: Workspace) -> dict[str, Any]:
    profile = card_profile(gpu, workspace)
    return {
        **asdict(gpu),
        "free_bytes": profile.free_bytes,
        "context_bytes": profile.context_bytes,
        "context_source": profile.context_source,
        "correction": profile.correction,
        "num_learned": profile.num_learned,
        "speeds": {way: asdict(speed) for way, speed in profile.speeds.items()},
        "supports_bf16": profile.supports_bf16,
    }


def _speeds(speeds: dict[str, Any]) -> str:
    """`, time × 1.130 after 3 runs (fast path)`, for each way to train that runs have timed."""
    names = {FAST: "fast path", PLAIN: "plain path"}
    return "".join(f", time × {speed['factor']:.3f} after {speed['num_runs']} runs ({names[way]})" for way, speed in speeds.items())


def _problems(workspace: Workspace, found: dict[str, str], has_card: bool) -> list[dict[str, Any]]:
    missing = [name for name in NEEDED if name not in found]
    torch_build = found.get("torch", "")
    candidates = (
        (bool(missing), True, f"Not installed: {', '.join(missing)}.", "Run “pip install -r requirements.txt”."),
        (
            has_card and torch_build.endswith("+cpu"),
            False,
            "There is a card, but torch was built without CUDA.",
            "Install torch from pytorch.org's index for your CUDA version.",
        ),
        (
            free_bytes(workspace.root) < LITTLE_DISK_BYTES,
            False,
            f"Only {format_bytes(free_bytes(workspace.root))} are free where the workspace lies.",
            "Free some space, or give another folder with --workspace DIR.",
        ),
        (not has_card, False, "No NVIDIA card answers: runs go to the CPU, which is slow for all but small models.", ""),
    )
    return [{"stops_runs": stops, "what": what, "fix": fix} for holds, stops, what, fix in candidates if holds]


def _say(values: dict[str, Any]) -> None:
    print(table([("QLoRA UI", values["app"]), *values["versions"].items(), ("driver", values["driver"] or "none")]))
    system = values["system"]
    print(f"{system['cpu']}, {system['num_cpus']} cores, {format_bytes(system['ram_available_bytes'])} of memory free")
    for card in values["cards"]:
        words = f"context {format_bytes(card['context_bytes'])} ({card['context_source']})"
        learned = f"memory × {card['correction']:.3f} after {card['num_learned']} runs{_speeds(card['speeds'])}"
        print(f"{card['name']}: {format_bytes(card['free_bytes'])} of {format_bytes(card['total_bytes'])} free, {words}, {learned}")
    if not values["cards"] and values["device"]["speeds"]:
        print(f"CPU: learned from earlier runs{_speeds(values['device']['speeds'])}")
    print(f"Workspace {values['workspace']}: {format_bytes(values['workspace_free_bytes'])} free")
    refuser = "the kernel" if values["files_read_without_network_by"] == "kernel" else "only Python itself (an audit hook)"
    print(f"Datasets are read in a process to which {refuser} refuses the network")
    for problem in values["problems"]:
        print(f"! {problem['what']} {problem['fix']}".rstrip())
