"""`app.py doctor`: what is here, what is wrong with it, and what to do."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from qlora_ui import __version__
from qlora_ui.base.errors import Problem, RunError, sentences
from qlora_ui.base.files import free_bytes
from qlora_ui.base.units import GIB, format_bytes
from qlora_ui.cli.config_flags import table
from qlora_ui.data.no_network import can_refuse_network
from qlora_ui.hardware.devices import FAST, PLAIN, card_profile, cpu_profile, forget_learned
from qlora_ui.hardware.gpu import driver_version, read_gpus
from qlora_ui.hardware.system import read_system, versions
from qlora_ui.models.builtin import gguf_path
from qlora_ui.runs.storage import free_remade, measure
from qlora_ui.runs.workspace import Workspace

HELP = "versions, cards, what was measured of them, and what is wrong"
NEEDED = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "gradio")
LITTLE_DISK_BYTES = 5 * GIB
TORCH_S = 120.0
"""How long PyTorch may take to be imported; a cold disk needs most of a minute."""
FITTING_TORCH = "Delete the folder .venv and run start.py again: it installs the PyTorch that fits the driver."
_ASK_TORCH = "import json, torch; print(json.dumps([torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0]))"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What was learned can be forgotten."""
    parser.add_argument("--forget", action="store_true", help="forget what earlier runs taught the estimates of memory and time")
    parser.add_argument(
        "--free", action="store_true", help="remove what was read of data files and is not in use: it is made again when needed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 where something keeps runs from working."""
    try:
        workspace, refusal = Workspace.at(arguments.workspace), None
    except RunError as error:
        # Who asks a doctor has reasons to: all else is told as well.
        if arguments.forget or arguments.free:
            raise
        workspace, refusal = Workspace.named(arguments.workspace), error.problems[0]
    if arguments.forget:
        forget_learned(workspace)
    freed = free_remade(workspace) if arguments.free else 0
    values = _look(workspace, refusal) | ({"freed_bytes": freed} if arguments.free else {})
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        _say(values)
    return 1 if any(problem["stops_runs"] for problem in values["problems"]) else 0


def _look(workspace: Workspace, refusal: Problem | None) -> dict[str, Any]:
    system, found = read_system(), versions()
    cards = [_card(gpu, workspace) for gpu in read_gpus(visible_only=False)]
    torch = _ask_torch() if cards and "torch" in found else None
    return {
        "app": __version__,
        "versions": found,
        "driver": driver_version(),
        "cards": cards,
        "torch": torch,
        "system": asdict(system),
        "device": asdict(cpu_profile(workspace)) if not cards else cards[0],
        "workspace": str(workspace.root),
        "workspace_free_bytes": free_bytes(workspace.root),
        "workspace_bytes": None if refusal else _holdings(workspace),
        "has_builtin_model": gguf_path() is not None,
        "files_read_without_network_by": "kernel" if can_refuse_network() else "python",
        "problems": _refused(refusal) + _problems(workspace, found, bool(cards), torch),
    }


def _refused(refusal: Problem | None) -> list[dict[str, Any]]:
    return [{"stops_runs": True, "what": sentences(refusal.what, refusal.why), "fix": refusal.fix}] if refusal else []


def _holdings(workspace: Workspace) -> dict[str, int]:
    """What the workspace takes of the disk, by kind; the models that were downloaded lie in the Hub's cache."""
    found = measure(workspace)
    return {
        "total": found.total_bytes,
        "runs": found.run_bytes,
        "checkpoints": found.checkpoint_bytes,
        "exports": found.export_bytes,
        "data_files": found.data_bytes,
        "models": found.model_bytes,
        "rows_and_tokens": found.remade_bytes,
        "working_files": found.working_bytes,
        "trash": found.trash_bytes,
        "downloaded_models": found.hub_bytes,
        "downloaded_data": found.hub_data_bytes,
    }


def _ask_torch() -> dict[str, Any]:
    """The CUDA that PyTorch was built for and how many cards it can use, asked in a process of its own; or why it cannot be imported."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, errors="replace", timeout=TORCH_S, check=False
        )
        cuda, num_cards = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"cuda": None, "num_cards": 0, "error": str(error)}
    except ValueError:
        return {"cuda": None, "num_cards": 0, "error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return {"cuda": cuda, "num_cards": num_cards, "error": ""}


def _torch_problem(torch: dict[str, Any] | None) -> tuple[str, str]:
    """What keeps PyTorch from the card, and what to do; empty where nothing does."""
    if torch is None or torch["num_cards"]:
        return "", ""
    if torch["error"]:
        return f"PyTorch cannot be started: {torch['error']}.", "Delete .venv and start again."
    if not read_gpus():
        return "CUDA_VISIBLE_DEVICES hides every card: runs go to the CPU.", f"It is “{os.environ.get('CUDA_VISIBLE_DEVICES', '')}” now."
    if torch["cuda"] is None:
        return "There is a card, but PyTorch was built without CUDA: runs go to the CPU.", FITTING_TORCH
    what = f"There is a card, but PyTorch, built for CUDA {torch['cuda']}, cannot use it with the driver {driver_version()}"
    return f"{what}: runs go to the CPU.", f"Update the NVIDIA driver. {FITTING_TORCH}"


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


def _problems(workspace: Workspace, found: dict[str, str], has_card: bool, torch: dict[str, Any] | None) -> list[dict[str, Any]]:
    missing = [name for name in NEEDED if name not in found]
    torch_what, torch_fix = _torch_problem(torch)
    candidates = (
        (bool(missing), True, f"Not installed: {', '.join(missing)}.", "Run “pip install -r requirements.txt”."),
        (bool(torch_what), bool(torch and torch["error"]), torch_what, torch_fix),
        (
            free_bytes(workspace.root) < LITTLE_DISK_BYTES,
            False,
            f"Only {format_bytes(free_bytes(workspace.root))} are free where the workspace lies.",
            "Free some space, or give another folder with --workspace DIR.",
        ),
        (not has_card, False, "No NVIDIA card answers: runs go to the CPU, which is slow for all but small models.", ""),
    )
    return [{"stops_runs": stops, "what": what, "fix": fix} for holds, stops, what, fix in candidates if holds]


def _holdings_in_words(sizes: dict[str, int]) -> str:
    """`It takes 12 GiB: runs 9.0 GiB (checkpoints 4.0 GiB), models 260 MiB, rows and tokens of data files 2.0 GiB (--free)`"""
    hints = {"rows_and_tokens": " (“doctor --free” removes what is not in use)", "trash": " (“runs empty-trash” removes it)"}
    hints["runs"] = f" (checkpoints {format_bytes(sizes['checkpoints'])}, exports {format_bytes(sizes['exports'])})"
    names = {
        "runs": "runs",
        "data_files": "data files",
        "models": "models",
        "rows_and_tokens": "rows and tokens that were read",
        "working_files": "working files",
        "trash": "trash",
    }
    parts = ", ".join(f"{words} {format_bytes(sizes[name])}{hints.get(name, '')}" for name, words in names.items() if sizes[name])
    hub = (
        f". Models that were downloaded, in the Hub's cache: {format_bytes(sizes['downloaded_models'])}"
        if sizes["downloaded_models"]
        else ""
    )
    return f"It takes {format_bytes(sizes['total'])}{f': {parts}' if parts else ''}{hub}"


def _say(values: dict[str, Any]) -> None:
    print(table([("QLoRA UI", values["app"]), *values["versions"].items(), ("driver", values["driver"] or "none")]))
    system = values["system"]
    print(f"{system['cpu']}, {system['num_cpus']} cores, {format_bytes(system['ram_available_bytes'])} of memory free")
    for card in values["cards"]:
        words = f"context {format_bytes(card['context_bytes'])} ({card['context_source']})"
        learned = f"memory × {card['correction']:.3f} after {card['num_learned']} runs{_speeds(card['speeds'])}"
        print(f"{card['name']}: {format_bytes(card['free_bytes'])} of {format_bytes(card['total_bytes'])} free, {words}, {learned}")
    if torch := values["torch"]:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else "no card"
        print(f"PyTorch can use {torch['num_cards']} of {len(values['cards'])} (built for {build})")
    if not values["cards"] and values["device"]["speeds"]:
        print(f"CPU: learned from earlier runs{_speeds(values['device']['speeds'])}")
    print(f"Workspace {values['workspace']}: {format_bytes(values['workspace_free_bytes'])} free")
    if values["workspace_bytes"]:
        print(_holdings_in_words(values["workspace_bytes"]))
    if values.get("freed_bytes"):
        print(f"{format_bytes(values['freed_bytes'])} are free again")
    refuser = "the kernel" if values["files_read_without_network_by"] == "kernel" else "only Python itself (an audit hook)"
    print(f"Datasets are read in a process to which {refuser} refuses the network")
    for problem in values["problems"]:
        print(f"! {problem['what']} {problem['fix']}".rstrip())
