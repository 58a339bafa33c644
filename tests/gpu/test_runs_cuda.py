"""Runs on a card: exact continuation in deterministic mode, memory that comes back, a pause that holds nothing, energy on the receipt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BENCH = Path(__file__).parents[1] / "bench" / "survival.py"
MIB = 2**20


def measured(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The bench in a process of its own: deterministic mode and the levels of memory are those of a whole process."""
    out = tmp_path / "result.json"
    command = [sys.executable, str(BENCH), *words, "--device", "cuda", "--hidden", "256", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def test_five_interruptions_change_no_bit(tmp_path: Path) -> None:
    for name, variant in measured(tmp_path, "resume", "--points", "5")["variants"].items():
        assert (variant["points"], variant["identical"]) == (5, 5), (name, variant["problems"])
        receipt = variant["receipt"]
        assert receipt["measured"]["energy_j"] > 0 and receipt["predicted"]["energy_j"] > 0
        assert receipt["measured"]["peak_bytes"] > 0 and receipt["device"] == torch.cuda.get_device_name()


def test_twenty_cycles_give_the_memory_back(tmp_path: Path) -> None:
    result = measured(tmp_path, "cycles", "--cycles", "20")
    assert result["cycles"] == 20
    assert result["allocated_distance_bytes"] <= MIB
    assert result["held_while_paused_bytes"] == 0
    assert result["threads_added"] <= 0 and result["files_added"] <= 0
    assert result["rss_growth_pct"] <= 3
