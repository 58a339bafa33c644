"""The short form of the kill harness; the long one is `python tests/bench/kill_harness.py --kills 200`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "bench" / "kill_harness.py"


@pytest.mark.skipif(sys.platform == "win32", reason="the harness forks")
def test_four_kills_lose_nothing_that_was_saved() -> None:
    """In a process of its own: it forks, and this one has threads."""
    done = subprocess.run([sys.executable, str(HARNESS), "--kills", "4"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert (result["kills"], result["resumed"]) == (4, 4)
    assert result["kills_inside_saves"] >= 2
    assert result["most_steps_lost"] <= result["save_every"]
    assert result["runs_finished_identical"] >= 1
