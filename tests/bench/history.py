"""How fast the history stays: thousands of runs on the disk, read as the Runs tab reads them.

python tests/bench/history.py --runs 3000 --out tests/bench/results/history.json
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from qlora_ui.runs.listing import RunList
from qlora_ui.runs.read import RunReaders
from qlora_ui.runs.storage import measure as measure_disk
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.run_lists import RunLists
from qlora_ui.ui.views.compare import comparison_html
from qlora_ui.ui.views.curves import new_points
from qlora_ui.ui.views.runs_table import PAGE_ROWS, found, table_html
from tests.journals import write_run

NUM_STEPS = 120
LONG_STEPS = 200_000


def fill(workspace: Workspace, num_runs: int) -> None:
    """So many runs of 120 steps; the newest two differ in a setting."""
    first = write_run(workspace, num_steps=NUM_STEPS)
    for number in range(num_runs - 2):
        hour, minute, second = number // 3600, number // 60 % 60, number % 60
        shutil.copytree(first.path, workspace.runs / f"20250101-{hour:02d}{minute:02d}{second:02d}-copy-{number:04x}")
    write_run(workspace, values={"lora.rank": 64}, num_steps=NUM_STEPS, seed=1)


def in_ms(work: Callable[[], object], times: int) -> dict[str, float]:
    """Median and worst of several calls, and the median of what they took of the processor, whatever else it had to do."""
    took, worked = [], []
    for _ in range(times):
        began, before = time.perf_counter(), time.process_time()
        work()
        took.append(1000 * (time.perf_counter() - began))
        worked.append(1000 * (time.process_time() - before))
    median, processor = (round(statistics.median(values), 1) for values in (took, worked))
    return {"median_ms": median, "worst_ms": round(max(took), 1), "processor_ms": processor}


def measure(workspace: Workspace) -> dict[str, Any]:
    """What a user waits for, in the order of a visit."""
    began = time.perf_counter()
    readers = RunReaders(workspace)
    lists = RunLists(workspace, readers)
    lists.rows()
    # A page does not wait for the rest, which a thread reads.
    page_s = time.perf_counter() - began
    while lists.num_unread:
        time.sleep(0.2)
        lists.forget()
        lists.rows()
    rows = lists.rows()
    first_s = time.perf_counter() - began
    newest = rows[:2]

    def look() -> None:
        lists.forget()
        lists.rows()

    every_second = RunList(workspace)
    every_second.rows()

    def draw() -> str:
        shown = found(lists.rows(), "copy", "done")[:PAGE_ROWS]
        return table_html(shown, {row.id: lists.config(row.id) for row in shown}, [], page=0, num_found=len(rows), num_all=len(rows))

    def compare() -> str:
        for row in newest:
            view = readers.view(next(run for run in runs if run.id == row.id))
            new_points(view, None)
        return comparison_html(newest, [lists.config(row.id) for row in newest], only_different=True)

    from qlora_ui.runs.registry import list_runs

    runs = list_runs(workspace)[:2]
    long = write_run(workspace, num_steps=LONG_STEPS)
    open_first = in_ms(lambda: readers.view(long), 1)
    open_again = in_ms(lambda: RunReaders(workspace).view(long), 10)
    measured = in_ms(lambda: measure_disk(workspace), 5)
    restarted = time.perf_counter()
    RunLists(workspace, RunReaders(workspace)).rows()
    return {
        "runs": len(rows),
        "steps_each": NUM_STEPS,
        "first_list_on_a_page_s": round(page_s, 2),
        "first_list_whole_s": round(first_s, 2),
        "list_of_the_next_start_s": round(time.perf_counter() - restarted, 2),
        "list_again": in_ms(look, 10),
        "list_each_second_of_a_page": in_ms(every_second.rows, 30),
        "find_and_draw_a_page_of_the_table": in_ms(draw, 10),
        "compare_two": in_ms(compare, 10),
        f"open_a_run_of_{LONG_STEPS}_steps": open_first,
        "open_it_after_the_next_start": open_again,
        "what_the_workspace_takes": measured,
        "differences": "Adapter size" in compare(),
    }


def main() -> int:
    """Fill a workspace, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.at(folder)
        fill(workspace, arguments.runs)
        load = os.getloadavg()[0]
        result = measure(workspace)
    head = {
        "what": "history",
        "command": f"python tests/bench/history.py --runs {arguments.runs}",
        "device": f"CPU, {os.cpu_count()} cores",
    }
    text = json.dumps({**head, **result, "load": round(load, 1), "python": platform.python_version()}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
