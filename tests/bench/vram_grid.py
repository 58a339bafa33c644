"""Predicted against measured memory: every configuration is a job of the product, in a process of its own, watched through NVML.

    python tests/bench/vram_grid.py measure --grid full --models /dev/shm/models --out rows.json      (on a GPU machine)
    python tests/bench/vram_grid.py compare rows.json --out tests/bench/results/vram-H100.json        (anywhere)

`measure` runs as many configurations side by side as fit the card: NVML counts each process for itself. `compare` adds what the closed
form and the precise check say, with the CUDA context taken from the first small run, as the app does on a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from vram_models import SHAPES, make_model  # noqa: E402

Row = dict[str, Any]


def case(model: str, rows: int, tokens: int, **options: Any) -> Row:
    """A configuration: shape, micro-batch, length and what differs from the defaults (`lora__dropout=0`)."""
    changed = {key.replace("__", "."): value for key, value in options.items()}
    return {"model": model, "batch": rows, "tokens": tokens, "changed": changed}


PLAIN = {"train__fast_path": "off"}
NO_EVAL = {"eval__share": 0}
CALIBRATION = [
    case("qwen2.5-0.5b", 1, 256, **PLAIN, **NO_EVAL, lora__dropout=0.0),
    case("qwen2.5-0.5b", 4, 512, **PLAIN, **NO_EVAL, train__packing="off"),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, **NO_EVAL, lora__dropout=0.0),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, **NO_EVAL, lora__dropout=0.05),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, train__checkpointing="none", train__packing="off"),
    case("qwen2.5-1.5b", 2, 2048, **PLAIN, train__checkpointing="partly", train__kept_layers=8, quant__double_quant=False),
    case("smollm2-1.7b", 4, 1024, **PLAIN, train__packing="off", train__optimizer="adamw_8bit", lora__rank=64),
    case("smollm2-1.7b", 1, 4096, **PLAIN, **NO_EVAL),
    case("llama-3.1-8b", 1, 2048, **PLAIN, **NO_EVAL),
    case("llama-3.1-8b", 2, 2048, **PLAIN, lora__dropout=0.0, train__packing="off"),
    case("qwen2.5-7b", 1, 8192, **PLAIN, **NO_EVAL),
    case("qwen2.5-0.5b", 1, 256, **NO_EVAL),
    case("qwen2.5-0.5b", 4, 1024),
    case("qwen2.5-1.5b", 4, 512, **NO_EVAL, lora__dropout=0.0),
    case("qwen2.5-1.5b", 4, 512, train__checkpointing="none"),
    case("smollm2-1.7b", 4, 1024, train__packing="off", train__checkpointing="partly", train__kept_layers=6),
    case("llama-3.1-8b", 2, 2048),
    case("qwen2.5-7b", 1, 4096, **NO_EVAL, train__checkpointing="none"),
]
FULL = [
    *CALIBRATION,
    case("qwen2.5-0.5b", 16, 256, **PLAIN, train__packing="off"),
    case("qwen2.5-0.5b", 8, 1024, **PLAIN, train__checkpointing="none", lora__dropout=0.0),
    case("qwen2.5-0.5b", 1, 8192, **PLAIN),
    case("qwen2.5-0.5b", 2, 4096, quant__double_quant=False),
    case("qwen2.5-0.5b", 16, 512, train__packing="off", train__optimizer="adamw_8bit"),
    case("qwen2.5-1.5b", 1, 1024, **PLAIN, train__accumulation=1),
    case("qwen2.5-1.5b", 8, 512, **PLAIN, train__packing="off", lora__rank=64, train__optimizer="adamw_8bit"),
    case("qwen2.5-1.5b", 1, 8192, **PLAIN, quant__double_quant=False),
    case("qwen2.5-1.5b", 2, 1024, **PLAIN, lora__targets="q_proj,k_proj,v_proj,o_proj"),
    case("qwen2.5-1.5b", 2, 1024, **PLAIN, lora__targets="q_proj,v_proj", train__checkpointing="none", lora__rank=8),
    case("qwen2.5-1.5b", 8, 512),
    case("qwen2.5-1.5b", 1, 8192, train__checkpointing="partly", train__kept_layers=10),
    case("qwen2.5-1.5b", 16, 256, train__packing="off", train__checkpointing="none", lora__dropout=0.0),
    case("qwen2.5-1.5b", 2, 2048, lora__rank=128, train__optimizer="adamw_8bit"),
    case("smollm2-1.7b", 8, 512, **PLAIN, train__checkpointing="none"),
    case("smollm2-1.7b", 2, 2048, **PLAIN, train__checkpointing="partly", train__kept_layers=12, lora__dropout=0.0),
    case("smollm2-1.7b", 1, 8192),
    case("smollm2-1.7b", 16, 256, lora__rank=32),
    case("smollm2-1.7b", 4, 1024, quant__double_quant=False, train__checkpointing="none"),
    case("qwen2.5-7b", 4, 512, **PLAIN, train__packing="off"),
    case("qwen2.5-7b", 1, 2048, **PLAIN, train__checkpointing="partly", train__kept_layers=7),
    case("qwen2.5-7b", 2, 1024, **PLAIN, lora__dropout=0.0, quant__double_quant=False),
    case("qwen2.5-7b", 8, 256, train__optimizer="adamw_8bit", lora__rank=64),
    case("qwen2.5-7b", 2, 4096),
    case("llama-3.1-8b", 1, 512, **PLAIN),
    case("llama-3.1-8b", 4, 1024, **PLAIN, train__packing="off", train__optimizer="adamw_8bit"),
    case("llama-3.1-8b", 1, 2048, **PLAIN, train__checkpointing="none"),
    case("llama-3.1-8b", 1, 8192, lora__dropout=0.0),
    case("llama-3.1-8b", 8, 256, train__packing="off", quant__double_quant=False),
    case("llama-3.1-8b", 2, 1024, train__checkpointing="partly", train__kept_layers=16, lora__targets="q_proj,k_proj,v_proj,o_proj"),
]
GRIDS = {"calibration": CALIBRATION, "full": FULL, "first": CALIBRATION[:1]}


def config_of(item: Row, model_folder: str, data_file: str) -> Any:
    """The RunConfig of a case."""
    from qlora_ui.settings.run_config import RunConfig

    base = {
        "model.id": model_folder,
        "data.sources": json.dumps([{"id": data_file}]),
        "data.max_length": item["tokens"],
        "data.train_on": "everything",
        "train.batch_size": item["batch"],
        "train.accumulation": 2,
        "train.max_steps": 3,
        "eval.share": 0.2,
        "eval.every": 3,
        "eval.batch_size": item["batch"],
        "eval.keep_best": False,
    }
    return RunConfig().changed({**base, **item["changed"]})


def data_shape(item: Row) -> Any:
    """What the data of a case is known to be."""
    from qlora_ui.estimate.workload import DataShape

    return DataShape(longest_tokens=item["tokens"], trained_share=1.0)


def write_data(item: Row, path: Path) -> None:
    """Enough conversations for the steps: every fourth as long as allowed, the rest shorter, so that padding happens."""
    draw = random.Random(7)
    count = max(24, 8 * item["batch"])
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            share = 1.3 if number % 4 == 0 or item["changed"].get("train.packing") != "off" else draw.uniform(0.3, 0.9)
            text = "".join(draw.choices(string.ascii_lowercase, k=int(item["tokens"] * share)))
            messages = [{"role": "user", "content": f"{number} {text[:8]}"}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": messages}) + "\n")


def run_one(item: Row, models: Path) -> Row:
    """One job in this process; returns what torch and the journal say of it."""
    import torch

    from qlora_ui.engine import job
    from qlora_ui.runs.events import Failed, MemoryMeasured, Planned
    from qlora_ui.runs.journal import read_events
    from qlora_ui.runs.registry import create_run
    from qlora_ui.runs.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_data(item, data)
        config = config_of(item, str(models / item["model"]), str(data))
        workspace = Workspace.at(Path(folder) / "workspace")
        run = create_run(workspace, config)
        job.run(run.path)
        events = read_events(run.journal_path)
    memory = [event for event in events if isinstance(event, MemoryMeasured)]
    failure = next((event for event in events if isinstance(event, Failed)), None)
    planned = next((event for event in events if isinstance(event, Planned)), None)
    contexts = [e.process_bytes - e.reserved_bytes for e in memory if e.process_bytes and e.reserved_bytes]
    return {
        "failed": f"{failure.what} {failure.why} {failure.traceback[-1500:]}" if failure else None,
        "is_fast": bool(planned and planned.fast_path),
        "fast_reasons": list(planned.fast_path_reasons) if planned else [],
        "allocated_bytes": max([e.peak_allocated_bytes or 0 for e in memory], default=0),
        "reserved_bytes": max([e.reserved_bytes or 0 for e in memory], default=0),
        "max_reserved_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        "context_bytes": contexts,
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "journal": [[e.at, e.step, e.allocated_bytes, e.reserved_bytes, e.peak_allocated_bytes, e.process_bytes] for e in memory],
    }


class Watch:
    """NVML's largest figure for each process, polled."""

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not self._done.wait(0.02):
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                self.peaks[process.pid] = max(self.peaks.get(process.pid, 0), process.usedGpuMemory or 0)


def measure(  # noqa: PLR0917
    items: list[Row], models: Path, out: Path, workers: int, budget_bytes: int, until: float
) -> None:
    """Run the cases side by side and write a row for each as it ends."""
    rows: list[Row] = []
    waiting = sorted(enumerate(items), key=lambda pair: (pair[0] != 0, -_guess(pair[1])))
    running: dict[int, tuple[subprocess.Popen[str], Row, int, float]] = {}
    makers = {name: _make(name, models) for name in dict.fromkeys(item["model"] for item in items)}
    with Watch() as watch:
        while waiting or running:
            used = sum(entry[2] for entry in running.values())
            for pair in list(waiting):
                need = _guess(pair[1])
                if makers[pair[1]["model"]].poll() is None:
                    continue
                if len(running) >= workers or (running and used + need > budget_bytes) or time.time() > until:
                    continue
                waiting.remove(pair)
                used += need
                command = [sys.executable, __file__, "one", json.dumps(pair[1]), "--models", str(models)]
                log = (out.parent / "log.txt").open("a")
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
                running[child.pid] = (child, pair[1], need, time.time())
            if time.time() > until and not running:
                break
            for pid, (child, item, _, began) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[pid]
                text = child.stdout.read() if child.stdout else ""
                last = next((line for line in reversed(text.splitlines()) if line.startswith("{")), "{}")
                row = {"config": item, "nvml_bytes": watch.peaks.get(pid), **json.loads(last), "wall_s": round(time.time() - began, 1)}
                rows.append(row)
                out.write_text(json.dumps(rows))
                gib = (row["nvml_bytes"] or 0) / 2**30
                words = f"{item['model']} {item['batch']}x{item['tokens']} {item['changed']}: {gib:.2f} GiB {row['wall_s']} s"
                print(words, (row.get("failed") or "")[:300], flush=True)
            time.sleep(0.05)
    print("not run:", len(waiting))


def _make(name: str, models: Path) -> subprocess.Popen[bytes]:
    """A base model, written by a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "make", name, "--models", str(models)])


def _guess(item: Row) -> int:
    from qlora_ui.estimate.memory import estimate_memory
    from qlora_ui.hardware.devices import named_device
    from qlora_ui.models.architecture import facts_from_config

    config = config_of(item, "x", "x.jsonl")
    return round(1.15 * estimate_memory(facts_from_config(SHAPES[item["model"]]), config, named_device("H100")).total_bytes)


def compare(rows: list[Row], *, check: bool) -> list[Row]:
    """Rows with the closed form's and the check's figures."""
    from dataclasses import replace

    from qlora_ui.estimate.check import check_memory
    from qlora_ui.estimate.memory import estimate_memory
    from qlora_ui.hardware.devices import named_device
    from qlora_ui.models.architecture import facts_from_config

    good = [row for row in rows if row.get("nvml_bytes") and not row.get("failed")]
    first = min(good, key=lambda row: row["nvml_bytes"])
    context = round(statistics.median(first["context_bytes"]))
    device = replace(named_device("H100"), context_bytes=context, context_source="measured", others_bytes=0)
    result = []
    for row in good:
        item = row["config"]
        facts = facts_from_config(SHAPES[item["model"]])
        config = config_of(item, "x", "x.jsonl")
        estimate = estimate_memory(facts, config, device, data_shape(item))
        compared = {
            "config": item,
            "is_fast": row["is_fast"],
            "predicted_bytes": estimate.total_bytes,
            "checked_bytes": check_memory(facts, config, device, data_shape(item)).total_bytes if check else None,
            "predicted_allocated_bytes": estimate.allocated_bytes,
            "allocated_bytes": row["allocated_bytes"],
            "reserved_bytes": max(row["reserved_bytes"], row["max_reserved_bytes"]),
            "nvml_bytes": row["nvml_bytes"],
            "parts": estimate.parts,
            "moment": estimate.moment,
        }
        compared["error"] = compared["predicted_bytes"] / row["nvml_bytes"] - 1
        compared["checked_error"] = compared["checked_bytes"] / row["nvml_bytes"] - 1 if check else None
        result.append(compared)
    return result


def summary(rows: list[Row]) -> Row:
    """Median and worst error of both."""
    report: Row = {"rows": len(rows)}
    for key in ("error", "checked_error"):
        errors = sorted(abs(row[key]) for row in rows if row[key] is not None)
        if errors:
            report[key] = {"median": round(statistics.median(errors), 4), "worst": round(errors[-1], 4)}
    return report


def main() -> int:
    """Measure on a card, or compare what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    one = words.add_parser("one")
    one.add_argument("item")
    one.add_argument("--models", type=Path, required=True)
    make = words.add_parser("make")
    make.add_argument("name", choices=SHAPES)
    make.add_argument("--models", type=Path, required=True)
    many = words.add_parser("measure")
    many.add_argument("--grid", choices=GRIDS, default="full")
    many.add_argument("--models", type=Path, default=Path("/dev/shm/models"))
    many.add_argument("--out", type=Path, required=True)
    many.add_argument("--workers", type=int, default=7)
    many.add_argument("--budget-gib", type=float, default=70)
    many.add_argument("--minutes", type=float, default=8)
    both = words.add_parser("compare")
    both.add_argument("rows", type=Path)
    both.add_argument("--out", type=Path)
    both.add_argument("--no-check", action="store_true")
    arguments = parser.parse_args()
    if arguments.word == "one":
        print(json.dumps(run_one(json.loads(arguments.item), arguments.models)), flush=True)
        return 0
    if arguments.word == "make":
        began = time.time()
        make_model(arguments.name, arguments.models / arguments.name)
        print("made", arguments.name, round(time.time() - began, 1), "s", flush=True)
        return 0
    if arguments.word == "measure":
        began = time.time()
        items = GRIDS[arguments.grid]
        measure(
            items, arguments.models, arguments.out, arguments.workers, round(arguments.budget_gib * 2**30), began + 60 * arguments.minutes
        )
        return 0
    rows = compare(json.loads(arguments.rows.read_text()), check=not arguments.no_check)
    for row in rows:
        item = row["config"]
        checked = f" checked {row['checked_error']:+.1%}" if row["checked_error"] is not None else ""
        print(f"{item['model']} {item['batch']}x{item['tokens']} {'fast' if row['is_fast'] else 'plain'} {item['changed']}: nvml "
              f"{row['nvml_bytes'] >> 20} reserved {row['reserved_bytes'] >> 20} allocated {row['allocated_bytes'] >> 20} (predicted "
              f"{row['predicted_allocated_bytes'] >> 20}, {row['predicted_allocated_bytes'] / max(row['allocated_bytes'], 1) - 1:+.1%}) "
              f"closed {row['error']:+.1%}{checked} {row['moment']}")  # fmt: skip
    print(json.dumps(summary(rows)))
    if arguments.out:
        arguments.out.write_text(json.dumps({**summary(rows), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
