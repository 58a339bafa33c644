"""Predicted against measured memory: every configuration is a job of the product, in a process of its own, watched through NVML.

    python tests/bench/vram_grid.py measure --models /dev/shm/models --out rows.json                    (on a GPU machine)
    python tests/bench/vram_grid.py compare rows.json --out tests/bench/results/vram-H100.json          (anywhere)

`compare` adds what the closed form and the precise check say, with the CUDA context taken from the smallest run, as the app does on a
machine. Configurations of HOLDOUT were never looked at while the estimate was made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vram_jobs import Bench, Row, case, config_of, data_shape, device_of, facts_of  # noqa: E402

PLAIN = {"train__fast_path": "off"}
NO_EVAL = {"eval__share": 0}
GRID = [
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
HOLDOUT = [
    case("qwen2.5-0.5b", 6, 384, **PLAIN, train__packing="off", lora__rank=24),
    case("qwen2.5-0.5b", 2, 6144, lora__rank=8),
    case("qwen2.5-1.5b", 3, 768, **PLAIN, lora__rank=48, train__optimizer="adamw_8bit"),
    case("qwen2.5-1.5b", 12, 320, **PLAIN, train__packing="off", train__checkpointing="partly", train__kept_layers=3),
    case("qwen2.5-1.5b", 5, 640, train__checkpointing="partly", train__kept_layers=17),
    case("qwen2.5-1.5b", 10, 448, train__packing="off", lora__targets="q_proj,v_proj", lora__rank=96),
    case("smollm2-1.7b", 3, 1536, **PLAIN, train__packing="off", lora__dropout=0.0),
    case("smollm2-1.7b", 1, 3072, **PLAIN, train__checkpointing="none", quant__double_quant=False),
    case("smollm2-1.7b", 6, 768, lora__rank=12, train__optimizer="adamw_8bit"),
    case("qwen2.5-7b", 3, 1280, **PLAIN, lora__rank=32),
    case("qwen2.5-7b", 1, 6144, quant__double_quant=False, lora__dropout=0.0),
    case("llama-3.1-8b", 2, 640, **PLAIN, train__packing="off", train__checkpointing="partly", train__kept_layers=5),
    case("llama-3.1-8b", 1, 3072, train__checkpointing="partly", train__kept_layers=9, lora__rank=40),
    case("llama-3.1-8b", 1, 5120, **PLAIN, **NO_EVAL, train__optimizer="adamw_8bit"),
]
"""Of other lengths, ranks, batches and depths of recomputation than the grid."""

MASTERS = {"train__optimizer": "adamw_fp32"}
OPTIMIZERS = [
    case("qwen2.5-0.5b", 1, 256, **PLAIN, **NO_EVAL, lora__dropout=0.0),
    case("qwen2.5-1.5b", 4, 512, **MASTERS),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, **MASTERS, train__packing="off"),
    case("qwen2.5-1.5b", 2, 2048, **MASTERS, lora__rank=128),
    case("qwen2.5-1.5b", 1, 256, **MASTERS, **NO_EVAL, lora__rank=256),
    case("qwen2.5-1.5b", 4, 512, train__optimizer="paged_adamw_32bit", lora__rank=64),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, train__optimizer="paged_adamw_8bit", lora__rank=64),
    case("llama-3.1-8b", 2, 2048, **MASTERS),
]
"""Those that neither the grid nor the fit of the constants has."""
SETS = {
    "all": [*GRID, *({**item, "holdout": True} for item in HOLDOUT)],
    "optimizers": [{**item, "holdout": bool(number)} for number, item in enumerate(OPTIMIZERS)],
}


def need_bytes(item: Row) -> int:
    """Room that a job is given beside others: its prediction and some more."""
    from qlora_ui.estimate.memory import estimate_memory

    estimate = estimate_memory(facts_of(item), config_of(item), device_of(742 * 2**20), data_shape(item))
    num_bytes: int = estimate.total_bytes
    return num_bytes * 115 // 100


def compare(rows: list[Row], *, check: bool) -> list[Row]:
    """Rows with the closed form's and the check's figures."""
    from qlora_ui.estimate.check import check_memory
    from qlora_ui.estimate.memory import estimate_memory

    good = [row for row in rows if row.get("nvml_bytes") and not row.get("failed") and not row.get("healed")]
    device = device_of(context_of(good))
    result = []
    for row in good:
        item = row["config"]
        facts, config = facts_of(item), config_of(item)
        estimate = estimate_memory(facts, config, device, data_shape(item))
        checked = check_memory(facts, config, device, data_shape(item)) if check else None
        compared = {
            "config": {key: item[key] for key in ("model", "batch", "tokens", "changed")},
            "holdout": bool(item.get("holdout")),
            "is_fast": row["is_fast"],
            "predicted_bytes": estimate.total_bytes,
            "checked_bytes": checked.total_bytes if checked else None,
            "predicted_allocated_bytes": estimate.allocated_bytes,
            "checked_allocated_bytes": checked.allocated_bytes if checked else None,
            "allocated_bytes": row["allocated_bytes"],
            "reserved_bytes": row["reserved_bytes"],
            "nvml_bytes": row["nvml_bytes"],
            "parts": estimate.parts,
            "moment": estimate.moment,
            "error": round(estimate.total_bytes / row["nvml_bytes"] - 1, 4),
            "checked_error": round(checked.total_bytes / row["nvml_bytes"] - 1, 4) if checked else None,
        }
        result.append(compared)
        show(compared)
    return result


def context_of(rows: list[Row]) -> int:
    """The CUDA context as the smallest plain run shows it."""
    first = min((row for row in rows if not row["is_fast"]), key=lambda row: row["nvml_bytes"])
    context: float = statistics.median(first["context_bytes"])
    return round(context)


def show(row: Row) -> None:
    """A line for the eye."""
    item, mib = row["config"], {key: value >> 20 for key, value in row.items() if key.endswith("_bytes") and value}
    checked = f" check {row['checked_error']:+.1%}" if row["checked_error"] is not None else ""
    path = "fast" if row["is_fast"] else "plain"
    print(
        f"{'HOLDOUT ' if row['holdout'] else ''}{item['model']} {item['batch']}x{item['tokens']} {path} {item['changed']}: nvml "
        f"{mib['nvml_bytes']} reserved {mib['reserved_bytes']} allocated {mib['allocated_bytes']} closed {row['error']:+.1%}{checked} "
        f"{row['moment']}",
        flush=True,
    )


def summary(rows: list[Row]) -> Row:
    """Median and worst error of both, over all rows and over kinds of them."""
    kinds = {
        "all": rows,
        "holdout": [row for row in rows if row["holdout"]],
        "fast": [row for row in rows if row["is_fast"]],
        "plain packed": [row for row in rows if not row["is_fast"] and row["config"]["changed"].get("train.packing") != "off"],
        "plain padded": [row for row in rows if not row["is_fast"] and row["config"]["changed"].get("train.packing") == "off"],
    }
    return {name: _errors(chosen) for name, chosen in kinds.items() if chosen}


def _errors(rows: list[Row]) -> Row:
    report: Row = {"rows": len(rows)}
    for key in ("error", "checked_error"):
        errors = sorted(abs(row[key]) for row in rows if row[key] is not None)
        if errors:
            report[key] = {"median": round(statistics.median(errors), 4), "worst": round(errors[-1], 4)}
    return report


def measure(arguments: argparse.Namespace) -> None:
    """All configurations, side by side."""
    began = time.time()
    bench = Bench(arguments.models, arguments.out.parent / "log.txt", arguments.cards)
    items = SETS[arguments.set][:: arguments.every]
    bench.make_models([item["model"] for item in items])
    print("models made", round(time.time() - began, 1), "s", flush=True)
    budget = round(arguments.budget_gib * 2**30)
    rows = bench.run(
        items, need_bytes, workers=arguments.workers, budget_bytes=budget, until=began + 60 * arguments.minutes, out=arguments.out
    )
    print("measured", len(rows), round(time.time() - began, 1), "s", flush=True)


def main() -> int:
    """Measure on a card, or compare what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    many = words.add_parser("measure")
    many.add_argument("--set", default="all", choices=list(SETS))
    many.add_argument("--every", type=int, default=1, help="take only every n-th configuration")
    many.add_argument("--models", type=Path, default=Path("/dev/shm/models"))
    many.add_argument("--out", type=Path, required=True)
    many.add_argument("--workers", type=int, default=12)
    many.add_argument("--budget-gib", type=float, default=70, help="of each card")
    many.add_argument("--cards", type=int, default=1)
    many.add_argument("--minutes", type=float, default=6)
    both = words.add_parser("compare")
    both.add_argument("rows", type=Path)
    both.add_argument("--out", type=Path)
    both.add_argument("--no-check", action="store_true")
    arguments = parser.parse_args()
    if arguments.word == "measure":
        measure(arguments)
        return 0
    measured = json.loads(arguments.rows.read_text())
    rows = compare(measured, check=not arguments.no_check)
    report = {
        "card": measured[0].get("card"),
        "torch": measured[0].get("torch"),
        "allocator": measured[0].get("allocator"),
        **summary(rows),
    }
    print(json.dumps(report, indent=1))
    if arguments.out:
        failed = [row["config"] for row in measured if row.get("failed") or row.get("healed")]
        arguments.out.write_text(json.dumps({**report, "failed": failed, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
