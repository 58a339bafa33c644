"""“Make it fit” at twenty sizes of card: settings that do not fit are changed by its advice, then trained under the allocator's own limit.

    python tests/bench/vram_fit.py plan                                                                 (anywhere: what it would do)
    python tests/bench/vram_fit.py measure --models /dev/shm/models --out fit.json                      (on a GPU machine)
    python tests/bench/vram_fit.py report fit.json --out tests/bench/results/vram-fit-H100.json         (anywhere)

A card of N bytes leaves the allocator N less the CUDA context, which `set_per_process_memory_fraction` makes a hard limit: a job that
needs more fails, or heals itself and is counted as failed here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vram_grid import GRID, context_of  # noqa: E402
from vram_jobs import Bench, Row, case, config_of, data_shape, device_of, facts_of  # noqa: E402

GIB, MIB = 2**30, 2**20
PLAIN: dict[str, Any] = {"train__fast_path": "off"}
FULL: dict[str, Any] = {"train__checkpointing": "none"}
SHORT: dict[str, Any] = {"train__accumulation": 1, "train__max_steps": 2, "eval__every": 2}
POINTS: list[tuple[float, Row]] = [
    (1.9, case("qwen2.5-0.5b", 8, 512, **FULL, **SHORT)),
    (2.5, case("qwen2.5-0.5b", 8, 1024, **PLAIN, **FULL, **SHORT)),
    (3.5, case("qwen2.5-0.5b", 4, 2048, **FULL, **SHORT, lora__rank=64)),
    (3, case("qwen2.5-1.5b", 8, 512, **PLAIN, **FULL, **SHORT, train__packing="off")),
    (4, case("qwen2.5-1.5b", 8, 512, **FULL, **SHORT)),
    (5, case("qwen2.5-1.5b", 4, 2048, **PLAIN, **FULL, **SHORT)),
    (6, case("qwen2.5-1.5b", 8, 1024, **FULL, **SHORT, lora__rank=128)),
    (8, case("qwen2.5-1.5b", 2, 8192, **SHORT, **FULL)),
    (10, case("qwen2.5-1.5b", 16, 512, **PLAIN, **FULL, **SHORT, train__packing="off")),
    (4, case("smollm2-1.7b", 4, 1024, **PLAIN, **FULL, **SHORT)),
    (6, case("smollm2-1.7b", 8, 1024, **FULL, **SHORT)),
    (8, case("smollm2-1.7b", 8, 512, **PLAIN, **FULL, **SHORT, train__packing="off", lora__dropout=0.0)),
    (12, case("smollm2-1.7b", 4, 4096, **FULL, **SHORT)),
    (8, case("qwen2.5-7b", 4, 1024, **PLAIN, **FULL, **SHORT)),
    (10, case("qwen2.5-7b", 4, 2048, **FULL, **SHORT)),
    (12, case("qwen2.5-7b", 8, 512, **PLAIN, **FULL, **SHORT, train__packing="off", train__optimizer="paged_adamw_32bit")),
    (8, case("llama-3.1-8b", 4, 1024, **FULL, **SHORT, quant__double_quant=False)),
    (10, case("llama-3.1-8b", 2, 4096, **PLAIN, **FULL, **SHORT)),
    (16, case("llama-3.1-8b", 8, 1024, **FULL, **SHORT)),
    (24, case("llama-3.1-8b", 4, 2048, **PLAIN, **FULL, **SHORT, train__packing="off")),
]
"""GiB of the card and what the user asks for; the effective batch is the micro-batch, so that splitting it is what costs least."""


def planned(context_bytes: int) -> list[Row]:
    """The cases as the advice changes them, each with its card and the allocator's limit."""
    from qlora_ui.estimate.advice import make_it_fit

    items = []
    for gib, item in POINTS:
        cap = round(gib * GIB)
        before = config_of(item)
        advice = make_it_fit(facts_of(item), before, device_of(context_bytes, cap), data_shape(item))
        after = {path: new for path, (_, new) in advice.changes.items()}
        batch, tokens = after.pop("train.batch_size", item["batch"]), after.pop("data.max_length", item["tokens"])
        items.append({
            **item, "batch": batch, "tokens": tokens, "changed": {**item["changed"], "eval.batch_size": item["batch"], **after},
            "asked": item, "cap_bytes": cap, "limit_bytes": cap - context_bytes, "fits": advice.fits,
            "advice": {path: list(pair) for path, pair in advice.changes.items()},
            "before_bytes": advice.before.total_bytes, "predicted_bytes": advice.after.total_bytes,
        })  # fmt: skip
    return items


def report(measured: list[Row]) -> Row:
    """Which fit and trained, and how much of the card they left unused."""
    rows = []
    for row in measured:
        item = row["config"]
        limit_used = row.get("reserved_bytes", 0) / item["limit_bytes"]
        fits = item["fits"] and not row.get("failed") and not row.get("healed")
        unused = 1 - row["nvml_bytes"] / item["cap_bytes"] if row["nvml_bytes"] else None
        rows.append({
            "asked": item["asked"], "cap_bytes": item["cap_bytes"], "advice": item["advice"], "before_bytes": item["before_bytes"],
            "predicted_bytes": item["predicted_bytes"], "nvml_bytes": row["nvml_bytes"], "reserved_bytes": row.get("reserved_bytes"),
            "allocated_bytes": row.get("allocated_bytes"), "is_fast": row.get("is_fast"), "fit_and_trained": fits,
            "unused_share": round(unused, 4) if unused is not None else None, "limit_used_share": round(limit_used, 4),
            "failed": (row.get("failed") or "")[:300] or None, "healed": row.get("healed"),
        })  # fmt: skip
    rows.sort(key=lambda row: (row["asked"]["model"], row["cap_bytes"]))
    good = [row for row in rows if row["fit_and_trained"]]
    return {
        "points": len(POINTS),
        "measured": len(rows),
        "fit_and_trained": len(good),
        "under_15_pct_unused": sum(row["unused_share"] is not None and row["unused_share"] < 0.15 for row in good),
        "rows": rows,
    }


def measure(arguments: argparse.Namespace) -> None:
    """The context from one small run, then all points side by side."""
    began = time.time()
    bench = Bench(arguments.models, arguments.out.parent / "log.txt", arguments.cards)
    bench.make_models([item["model"] for _, item in POINTS])
    until = began + 60 * arguments.minutes
    context = arguments.context_mib * MIB or context_of(bench.run(GRID[:1], lambda item: GIB, workers=1, budget_bytes=GIB, until=until))
    print("context", context / MIB, "MiB", flush=True)
    budget = round(arguments.budget_gib * GIB)
    rows = bench.run(
        planned(context),
        lambda item: int(item["cap_bytes"]),
        workers=arguments.workers,
        budget_bytes=budget,
        until=until,
        out=arguments.out,
    )
    print("measured", len(rows), round(time.time() - began, 1), "s", flush=True)


def main() -> int:
    """Plan, measure on a card, or report what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    words.add_parser("plan")
    many = words.add_parser("measure")
    many.add_argument("--models", type=Path, default=Path("/dev/shm/models"))
    many.add_argument("--out", type=Path, required=True)
    many.add_argument("--workers", type=int, default=10)
    many.add_argument("--budget-gib", type=float, default=70, help="of each card")
    many.add_argument("--cards", type=int, default=1)
    many.add_argument("--context-mib", type=int, default=0, help="0: measured first")
    many.add_argument("--minutes", type=float, default=5)
    said = words.add_parser("report")
    said.add_argument("rows", type=Path)
    said.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.word == "measure":
        measure(arguments)
        return 0
    if arguments.word == "plan":
        for item in planned(742 * MIB):
            before, after, cap = (item[name] / GIB for name in ("before_bytes", "predicted_bytes", "cap_bytes"))
            details = f"fits {item['fits']}, unused {1 - after / cap:.0%} {item['model']} {item['advice']}"
            print(f"{cap:.1f} GiB: {before:.2f} -> {after:.2f} {details}")
        return 0
    measured = json.loads(arguments.rows.read_text())
    result = {"card": measured[0].get("card"), "torch": measured[0].get("torch"), **report(measured)}
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    for row in result["rows"]:
        details = f"unused {row['unused_share']} limit used {row['limit_used_share']} {row['advice']}"
        verdict = "ok" if row["fit_and_trained"] else f"NO {row['failed']} {row['healed']}"
        print(f"{row['asked']['model']} {row['cap_bytes'] / GIB:.1f} GiB {details} {verdict}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
