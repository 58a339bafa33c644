"""How long the precise check takes: `python tests/bench/check_speed.py [--out FILE]`; no card, no weights.

Beside the wall clock stands the processor time of the check's process, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vram_jobs import Row, case, config_of, data_shape, device_of, facts_of  # noqa: E402

PLAIN: dict[str, Any] = {"train__fast_path": "off"}
CASES: list[Row] = [
    case("qwen2.5-0.5b", 1, 256, **PLAIN),
    case("qwen2.5-1.5b", 4, 512),
    case("qwen2.5-1.5b", 4, 512, **PLAIN, train__packing="off", train__checkpointing="none"),
    case("qwen2.5-7b", 1, 4096, train__checkpointing="partly", train__kept_layers=9),
    case("llama-3.1-8b", 2, 2048, **PLAIN, train__checkpointing="partly", train__kept_layers=9),
    case("llama-3.1-8b", 1, 8192),
]


def processor_s() -> float:
    """Of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return float(sum(usage.ru_utime + usage.ru_stime for usage in used))


def main() -> int:
    """Check every case and print what it took."""
    from qlora_ui.estimate.check import check_memory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for item in CASES:
        before, began = processor_s(), time.monotonic()
        check_memory(facts_of(item), config_of(item), device_of(742 * 2**20), data_shape(item))
        row = {"config": item, "wall_s": round(time.monotonic() - began, 2), "processor_s": round(processor_s() - before, 2)}
        rows.append({**row, "load": os.getloadavg()[0]})
        print(rows[-1], flush=True)
    times = [row["processor_s"] for row in rows]
    summary = {"cores": os.cpu_count(), "processor_s": {"median": statistics.median(times), "longest": max(times)}, "rows": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
