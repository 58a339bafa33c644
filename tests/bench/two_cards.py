"""The same run on one card and on two, through the app's own launcher: `accelerate launch`, DDP and FSDP.

    python tests/bench/two_cards.py --out tests/bench/results/two-cards.json          (a machine with two cards)
    python tests/bench/two_cards.py --device cpu --hidden 64                               (two processes over gloo)

DDP must give the losses of one card at the same effective batch; FSDP splits the 4-bit base, stored as bf16, over the cards.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from qlora_ui.hardware.system import versions
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.jobs import at_step, curve, launcher_of, tiny_config, when, write_rows

IN_PROCESSES: dict[str, Any] = {"launch.where": "process", "launch.num_processes": 2}
PLAIN: dict[str, Any] = {"quant.compute_dtype": "float32", "train.packing": "off", "train.fast_path": "off", "lora.dropout": 0.0}
SPLIT: dict[str, Any] = {**PLAIN, "quant.compute_dtype": "bfloat16", "quant.storage": "bfloat16", "launch.sharding": "fsdp"}
TIMEOUT_S = 180


def settings_of(folder: Path, model_dir: Path, device: str) -> RunConfig:
    """Six steps of four rows; 25 rows with a fifth held back, so that no process is given a row twice."""
    rows = write_rows(folder / "rows.jsonl", 25)
    return tiny_config(model_dir, rows, train__max_steps=6, launch__device=device)


def on_one(folder: Path, config: RunConfig) -> RunView:
    """One process, each step in two accumulated halves."""
    return _ended(launcher_of(Workspace.at(folder)), config.changed({**PLAIN, "launch.where": "process"}))


def on_one_in_bf16(folder: Path, config: RunConfig) -> RunView:
    """One process with the arithmetic and storage of the split base."""
    changes = {**PLAIN, "quant.compute_dtype": "bfloat16", "quant.storage": "bfloat16", "launch.where": "process"}
    return _ended(launcher_of(Workspace.at(folder)), config.changed(changes))


def data_parallel(folder: Path, config: RunConfig) -> RunView:
    """Two processes, each with half of the batch."""
    return _ended(launcher_of(Workspace.at(folder)), config.changed({**PLAIN, **IN_PROCESSES, "train.accumulation": 1}))


def data_parallel_as_chosen_by_default(folder: Path, config: RunConfig) -> RunView:
    """Two processes with packing and arithmetic as the app chooses them."""
    return _ended(launcher_of(Workspace.at(folder)), config.changed({**IN_PROCESSES, "train.accumulation": 1}))


def split(folder: Path, config: RunConfig) -> RunView:
    """Two processes that hold half of the base each."""
    return _ended(launcher_of(Workspace.at(folder)), config.changed({**SPLIT, **IN_PROCESSES, "train.accumulation": 1}))


LONG: dict[str, Any] = {**SPLIT, **IN_PROCESSES, "train.accumulation": 1, "train.max_steps": 60, "output.save_every": 30}


def split_for_long(folder: Path, config: RunConfig) -> RunView:
    """Two processes that hold half of the base each, for as many steps as the one that is stopped."""
    return _ended(launcher_of(Workspace.at(folder)), config.changed(LONG))


def split_stopped_and_continued(folder: Path, config: RunConfig) -> RunView:
    """The same, stopped on the way and taken up again."""
    launcher = launcher_of(Workspace.at(folder))
    run = launcher.start(config.changed(LONG))
    when(run, at_step(3), lambda: launcher.request(run, Request.STOP), launcher)
    left = read_run(run)
    if left.status is Status.STOPPED:
        launcher.resume(run)
        launcher.wait_until_idle(TIMEOUT_S)
    launcher.shutdown()
    return read_run(run)


KINDS = {
    "one card": on_one,
    "one card in bf16": on_one_in_bf16,
    "DDP on two": data_parallel,
    "DDP on two, default settings": data_parallel_as_chosen_by_default,
    "FSDP on two": split,
    "FSDP on two, 60 steps": split_for_long,
    "FSDP on two, stopped and continued": split_stopped_and_continued,
}
PAIRS = (
    ("DDP on two", "one card"),
    ("FSDP on two", "one card in bf16"),
    ("FSDP on two, stopped and continued", "FSDP on two, 60 steps"),
)


def _ended(launcher: Launcher, config: RunConfig) -> RunView:
    run = launcher.start(config)
    launcher.wait_until_idle(TIMEOUT_S)
    launcher.shutdown()
    return read_run(run)


def adapter_names(view: RunView) -> list[str]:
    """The tensors of a finished adapter."""
    from safetensors import safe_open

    with safe_open(view.run.adapter / "adapter_model.safetensors", "pt") as file:
        return sorted(file.keys())


def row_of(view: RunView, seconds: float) -> dict[str, Any]:
    """What came of a run."""
    started, planned, ended = view.started, view.planned, view.ended
    memory = {event.at: event.peak_allocated_bytes for event in view.memory if event.at in ("dry-run", "end")}
    row: dict[str, Any] = {
        "status": view.status.value,
        "device": started.device if started else "",
        "launcher": started.launcher if started else "",
        "processes": planned.num_processes if planned else None,
        "effective_batch": planned.effective_batch if planned else None,
        "resumed_from": started.resumed_from if started else None,
        "curve": curve(view),
        "held_back_losses": [event.loss for event in view.evals],
        "adapter_tensors": len(adapter_names(view)) if view.status is Status.DONE else None,
        "peak_allocated_bytes_of_the_first_card": memory,
        "seconds": round(seconds, 1),
    }
    if view.status is not Status.DONE:
        row["ended"] = f"{ended}"[:1500]
        row["log"] = view.run.log_path.read_text(encoding="utf-8", errors="replace")[-3000:] if view.run.log_path.exists() else ""
    return row


def largest_distance(one: RunView, two: RunView) -> dict[str, float]:
    """Between the curves of two runs, relative."""
    losses, norms = [], []
    for (_, loss, norm), (_, other_loss, other_norm) in zip(curve(one), curve(two), strict=False):
        losses.append(abs(loss / other_loss - 1))
        norms.append(abs((norm or 0.0) / (other_norm or 1.0) - 1))
    return {"loss": max(losses, default=1.0), "gradient_norm": max(norms, default=1.0)}


def main() -> int:
    """Run every kind and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(KINDS))
    parser.add_argument("--out", type=Path)
    words = sys.argv[1:]
    arguments = parser.parse_args(words)
    from tests.tiny_model import make_tiny_model

    views: dict[str, RunView] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(Path(folder), make_tiny_model(Path(folder) / "model", arguments.layers, arguments.hidden), arguments.device)

        def work(name: str) -> None:
            began = time.monotonic()
            views[name] = KINDS[name](Path(folder) / name.replace(" ", "-"), config)
            rows[name] = row_of(views[name], time.monotonic() - began)
            print(name, rows[name]["status"], rows[name]["seconds"], flush=True)

        # Most of a run's time is the start of its processes: on a card they share the wait. Numbers are compared, not times.
        with ThreadPoolExecutor(len(KINDS) if arguments.device == "cuda" else 1) as pool:
            list(pool.map(work, arguments.only))
        distances = {
            f"{name} - {other}": largest_distance(views[name], views[other]) for name, other in PAIRS if {name, other} <= set(views)
        }
    result = {
        "what": "one run on one card and on two, by the app's launcher",
        "command": shlex.join(["python", "tests/bench/two_cards.py", *words]),
        "largest_relative_distances": distances,
        "runs": {name: rows[name] for name in arguments.only},
        "python": platform.python_version(),
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(row["status"] == "done" for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
