"""Run a list of speed rows, each in a process of its own, and collect them as JSON with a short table last.

usage: python tests/bench/speed_all.py OUT_FILE MODELS_FOLDER PLAN...
PLAN: "name|extra PYTHONPATH or -|timeout s|arguments of speed_train.py"; MODELS in the arguments stands for the folder
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(plan: str, models: str, turn: Path) -> tuple[str, float, subprocess.Popen[str], list[str]]:
    """Start one row's process; it imports its libraries and then waits for the file `turn`."""
    name, path, limit, words = (part.strip() for part in plan.split("|"))
    env = dict(os.environ)
    if path != "-":
        env["PYTHONPATH"] = path + os.pathsep + env.get("PYTHONPATH", "")
    command = [sys.executable, "tests/bench/speed_train.py", *words.replace("MODELS", models).split(), "--tag", name]
    log = open(turn.with_suffix(".log"), "w", encoding="utf-8")  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen([*command, "--turn", str(turn)], env=env, stdout=log, stderr=subprocess.STDOUT, text=True)
    return name, float(limit), process, command


def main() -> None:
    out, models, plans = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    folder = Path(tempfile.mkdtemp())
    started = {0: start(plans[0], models, folder / "0")}
    rows = []
    for index in range(len(plans)):
        if index + 1 < len(plans):
            started[index + 1] = start(plans[index + 1], models, folder / str(index + 1))
        name, limit, process, command = started.pop(index)
        (folder / str(index)).touch()
        clock = time.perf_counter()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines = (folder / f"{index}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        found = [json.loads(line[4:]) for line in lines if line.startswith("ROW ")]
        for row in found:
            rows.append({**row, "command": " ".join(command[1:])})
            peak, nvml = row["peak_bytes"] / 2**30, row["nvml_bytes"] / 2**30
            print(f"{name:30s} {row['tok_s']:7d} tok/s  step {row['step_s']:.3f} s  peak {peak:.3f} GiB  nvml {nvml:.2f}", flush=True)
            print(
                f"    loss {row['losses'][0]:.4f} {row['losses'][-1]:.4f}  first steps {row['first_steps_s']} {row['notes'][5:]}",
                flush=True,
            )
        for line in lines:
            if line.startswith("PROFILE") or (line.startswith("  ") and " ms " in line):
                print(line[:900] if line.startswith("PROFILE") else line[:110], flush=True)
        if not found:
            print(f"{name}: failed after {time.perf_counter() - clock:.0f} s\n" + "\n".join(line[:300] for line in lines[-14:]), flush=True)
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
