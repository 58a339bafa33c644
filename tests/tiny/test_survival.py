"""Short forms of tests/bench/survival.py; the long ones are `python tests/bench/survival.py resume|stops|cycles`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "survival.py"


def measured(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The bench in a process of its own, as a user of the command has it."""
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, str(BENCH), *words, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.mark.slow
def test_training_stopping_failing_and_chatting_leave_the_process_as_it_was(tmp_path: Path) -> None:
    result = measured(tmp_path, "cycles", "--cycles", "2")
    assert result["cycles"] == 2
    assert result["rss_growth_pct"] <= 3, result["rows"]
    assert result["threads_added"] <= 0 and result["files_added"] <= 0, result["rows"]


@pytest.mark.slow
def test_a_stop_in_any_phase_costs_a_step_and_a_save_at_most(tmp_path: Path) -> None:
    result = measured(tmp_path, "stops", "--trials", "9")
    assert result["problems"] == []
    assert {"download", "map", "load", "step", "accumulation", "evaluation", "save"} <= set(result["by_phase"])
    assert result["most_steps_after"] <= 1 and result["most_evaluation_batches_after"] <= 1
    assert result["worst_s"] < 30
