"""Predicted against measured resident memory of the demo on a CPU: `python tests/bench/vram_cpu.py [--out FILE]`.

Each case is the product's job in a process of its own; growth counts from the imported libraries to the kernel's peak (ru_maxrss). The
base has to be converted before: run the demo once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CASES: list[dict[str, Any]] = [{}, {"train.batch_size": 2}, {"train.checkpointing": "all"}, {"data.max_length": 64}]


def measure(changes: dict[str, Any], folder: str) -> dict[str, Any]:
    """Bytes by which this process grows over a short run, and what the job predicted with the lengths of its rows."""
    import resource

    import torch

    from qlora_ui.engine import job
    from qlora_ui.hardware.system import process_bytes
    from qlora_ui.runs.events import Planned
    from qlora_ui.runs.journal import read_events
    from qlora_ui.runs.registry import create_run
    from qlora_ui.runs.workspace import Workspace

    workspace = Workspace.at(folder)
    before = process_bytes()
    made = create_run(workspace, config_of(changes))
    job.run(made.path)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    planned = next(event for event in read_events(made.journal_path) if isinstance(event, Planned))
    return {"growth_bytes": growth, "predicted_bytes": planned.predicted_bytes, "threads": torch.get_num_threads()}


def config_of(changes: dict[str, Any]) -> Any:
    """The demo, cut to four steps."""
    from qlora_ui.settings.presets import find_preset

    return find_preset("demo").config.changed({"train.max_steps": 4, "eval.every": 2, **changes})


def main() -> int:
    """Measure every case, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one")
    parser.add_argument("--workspace", default=str(Path(tempfile.gettempdir()) / "qlora-ui-vram-cpu"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(json.loads(arguments.one), arguments.workspace)))
        return 0
    rows = []
    for changes in CASES:
        command = [sys.executable, __file__, "--workspace", arguments.workspace, "--one", json.dumps(changes)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(text.strip().splitlines()[-1])
        measured, predicted = found["growth_bytes"], found["predicted_bytes"]
        row = {"changes": changes, "threads": found["threads"], "predicted_bytes": predicted, "measured_bytes": measured,
               "error": round(predicted / measured - 1, 4)}  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"worst": max(abs(row["error"]) for row in rows), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
