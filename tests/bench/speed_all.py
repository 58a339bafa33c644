"""Run a list of speed rows, each in a process of its own, and collect them as JSON with a short table last.

usage: python tests/bench/speed_all.py OUT_FILE MODELS_FOLDER [--together N] PLAN...
PLAN: "name|extra PYTHONPATH or -|seconds to get ready|arguments of speed_train.py"; MODELS in the arguments stands for the folder.
N processes load, compile and take two steps side by side and then wait; one after the other goes on alone and is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROW_LIMIT_S = 90.0
"""What a row may take once it goes on alone."""


@dataclass
class Row:
    """A started row."""

    name: str
    ready_limit_s: float
    gate: Path
    process: subprocess.Popen[str]
    command: list[str]
    started: float

    def is_ready(self) -> bool:
        """Whether it waits at its gate, or has ended."""
        return Path(f"{self.gate}.ready").exists() or self.process.poll() is not None

    def lines(self) -> list[str]:
        """What it printed."""
        return self.gate.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()

    def stop(self, limit_s: float) -> None:
        """Wait for its end, and end it after the limit."""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(plan: str, models: str, gate: Path) -> Row:
    """Start one row's process."""
    name, path, limit, words = (part.strip() for part in plan.split("|"))
    # Unsloth writes its compiled modules into the working folder unless told otherwise; several processes would share them
    env = {**os.environ, "UNSLOTH_COMPILE_LOCATION": f"{gate}-compiled"}
    if path != "-":
        env["PYTHONPATH"] = path + os.pathsep + env.get("PYTHONPATH", "")
    command = [sys.executable, "tests/bench/speed_train.py", *words.replace("MODELS", models).split(), "--tag", name]
    log = open(gate.with_suffix(".log"), "w", encoding="utf-8")  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen([*command, "--gate", str(gate)], env=env, stdout=log, stderr=subprocess.STDOUT, text=True)
    return Row(name, float(limit), gate, process, command, time.perf_counter())


def wait_ready(rows: list[Row]) -> None:
    """Wait until all are at their gates; those over their limit are ended."""
    while waiting := [row for row in rows if not row.is_ready()]:
        for row in waiting:
            if time.perf_counter() - row.started > row.ready_limit_s:
                row.stop(0)
        time.sleep(0.1)


def report(row: Row) -> list[dict[str, object]]:
    """Print a finished row and return what it measured."""
    lines = row.lines()
    found = [json.loads(line[4:]) for line in lines if line.startswith("ROW ")]
    for data in found:
        peak = data["peak_bytes"] / 2**30
        print(f"{row.name:34s} {data['tok_s']:7d} tok/s  step {data['step_s']:.3f} s  peak {peak:.3f} GiB", flush=True)
        print(f"    loss {data['losses'][0]:.4f} {data['losses'][-1]:.4f}  {data['notes'][5:]}", flush=True)
    for line in lines:
        if line.startswith("PROFILE"):
            print(line[:900], flush=True)
    if not found:
        print(f"{row.name}: failed after {time.perf_counter() - row.started:.0f} s\n" + "\n".join(s[:300] for s in lines[-14:]), flush=True)
    return [{**data, "command": " ".join(row.command[1:])} for data in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("models")
    parser.add_argument("--together", type=int, default=2)
    parser.add_argument("plans", nargs="+")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    waiting = list(enumerate(given.plans))
    ahead: list[Row] = []
    rows: list[dict[str, object]] = []
    while waiting or ahead:
        while waiting and len(ahead) < given.together:
            index, plan = waiting.pop(0)
            ahead.append(start(plan, given.models, folder / str(index)))
        wait_ready(ahead)
        row = ahead.pop(0)
        row.gate.touch()
        row.stop(ROW_LIMIT_S)
        rows += report(row)
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
