"""How long `python app.py` takes to its first page, and whether torch was imported by then.

usage: python tests/bench/startup.py [--repeats 5]      prints a table and writes tests/bench/results/startup-HOST.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def first_page_s(workspace: Path) -> float:
    """Seconds from the start of the process to a complete first page."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "app.py", "ui", "--no-browser", "--workspace", str(workspace)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                urllib.request.urlopen(match[0], timeout=10).read()
                return time.perf_counter() - started
        raise RuntimeError("the app ended without an address")
    finally:
        process.terminate()
        process.wait(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        times = [first_page_s(Path(folder) / "workspace") for _ in range(repeats + 1)]
    row = {
        "what": "process start to first page, warm disk",
        "median_s": round(statistics.median(times[1:]), 2),
        "worst_s": round(max(times[1:]), 2),
        "cold_s": round(times[0], 2),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "command": "python tests/bench/startup.py",
    }
    (ROOT / "tests" / "bench" / "results" / "startup.json").write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
