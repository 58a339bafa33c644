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


def measure(changes: dict[str, Any], folder: str) -> int:
    """Bytes by which this process grows over a short run."""
    import resource

    from qlora_ui.engine import job
    from qlora_ui.hardware.system import process_bytes
    from qlora_ui.runs.registry import create_run
    from qlora_ui.runs.workspace import Workspace

    workspace = Workspace.at(folder)
    before = process_bytes()
    job.run(create_run(workspace, config_of(changes)).path)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def config_of(changes: dict[str, Any]) -> Any:
    """The demo, cut to four steps."""
    from qlora_ui.settings.presets import find_preset

    return find_preset("demo").config.changed({"train.max_steps": 4, "eval.every": 2, **changes})


def main() -> int:
    """Measure every case, or one of them in this process."""
    from qlora_ui.estimate.memory import estimate_memory
    from qlora_ui.hardware.devices import cpu_profile
    from qlora_ui.models.architecture import builtin_facts

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one")
    parser.add_argument("--workspace", default=str(Path(tempfile.gettempdir()) / "qlora-ui-vram-cpu"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps({"growth_bytes": measure(json.loads(arguments.one), arguments.workspace)}))
        return 0
    rows = []
    for changes in CASES:
        command = [sys.executable, __file__, "--workspace", arguments.workspace, "--one", json.dumps(changes)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured = json.loads(text.strip().splitlines()[-1])["growth_bytes"]
        predicted = estimate_memory(builtin_facts(), config_of(changes), cpu_profile()).total_bytes
        row = {"changes": changes, "predicted_bytes": predicted, "measured_bytes": measured, "error": round(predicted / measured - 1, 4)}
        rows.append(row)
        print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"worst": max(abs(row["error"]) for row in rows), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
