"""Two cards of one host, through the app's launcher: DDP gives one card's losses, FSDP splits the 4-bit base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")]

BENCH = Path(__file__).parents[1] / "bench" / "two_cards.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind of run, once."""
    out = tmp_path_factory.mktemp("two-cards") / "result.json"
    done = subprocess.run([sys.executable, str(BENCH), "--out", str(out)], capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr[-3000:]
    values: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return values


def test_every_kind_ends_well(result: dict[str, Any]) -> None:
    assert {name: row["status"] for name, row in result["runs"].items()} == dict.fromkeys(result["runs"], "done")


def test_two_cards_give_the_losses_of_one(result: dict[str, Any]) -> None:
    two = result["runs"]["DDP on two"]
    assert (two["processes"], two["effective_batch"]) == (2, 4)
    distance = result["largest_relative_distances"]["DDP on two - one card"]
    assert distance["loss"] < 1e-4 and distance["gradient_norm"] < 1e-3


def test_a_split_base_trains_as_a_whole_one_and_takes_less(result: dict[str, Any]) -> None:
    whole, one = result["runs"]["FSDP on two"], result["runs"]["one card in bf16"]
    assert result["largest_relative_distances"]["FSDP on two - one card in bf16"]["loss"] < 0.01
    assert whole["adapter_tensors"] == one["adapter_tensors"] == 4 * 7 * 2
    assert whole["peak_allocated_bytes_of_the_first_card"]["end"] < one["peak_allocated_bytes_of_the_first_card"]["end"]


def test_a_split_run_goes_on_where_it_was_stopped(result: dict[str, Any]) -> None:
    continued = result["runs"]["FSDP on two, stopped and continued"]
    assert continued["resumed_from"] >= 3
    assert [step for step, *_ in continued["curve"]] == list(range(1, 61))
    # Sums of two processes come in the same order: the same numbers.
    assert result["largest_relative_distances"]["FSDP on two, stopped and continued - FSDP on two, 60 steps"]["loss"] < 1e-3
