"""`train` on the command line: its last line, its exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import tiny_config, write_rows

from qlora_ui.cli import main
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def words(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    """`train` with a file of settings and a workspace of its own."""
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=4, eval__share=0)
    (tmp_path / "settings.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return ["train", "--config", str(tmp_path / "settings.yaml"), "--workspace", str(tmp_path / "workspace"), "--json"]


def last_line(text: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(text.splitlines()[-1])
    return values


def test_it_ends_with_one_line(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    values = last_line(out)
    assert list(values) == ["run_id", "status", "run_dir", "steps", "final_loss", "tokens_per_s", "peak_bytes"]
    assert (values["status"], values["steps"]) == ("done", 4)
    assert values["final_loss"] > 0 and values["tokens_per_s"] > 0 and values["peak_bytes"] > 0
    assert "step 4/4" in err and "Traceback" not in err


def test_wrong_settings_are_told_all_at_once(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--lora.rank", "0", "--train.learning_rate", "two"]) == 2
    error = last_line(capfd.readouterr().out)["error"]
    assert [problem["where"] for problem in error["problems"]] == ["lora.rank", "train.learning_rate"]


def test_a_run_that_fails_says_why(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--model.id", str(tmp_path / "nowhere")]) == 1
    values = last_line(capfd.readouterr().out)
    assert values["status"] == "failed" and values["error"]["problems"][0]["what"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupt_stops_and_saves_and_the_run_continues(words: list[str], tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "app.py", *words, "--train.max_steps", "2000", "--output.save_every", "2000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("step 2/"):
            break
    child.send_signal(number)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    values = last_line(out)
    assert values["status"] == "stopped" and 2 <= values["steps"] < 2000
    run = find_run(Workspace.at(tmp_path / "workspace"), "latest")
    view = read_run(run)
    assert view.status is Status.STOPPED and view.checkpoints[-1].step == view.step
    assert (run.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_run(words: list[str], tmp_path: Path) -> None:
    # `start.py train … 2>&1 | head`
    child = subprocess.Popen(
        [sys.executable, "app.py", *words, "--train.max_steps", "20"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(timeout=120) == 0
    view = read_run(find_run(Workspace.at(tmp_path / "workspace"), "latest"))
    assert (view.status, view.step) == (Status.DONE, 20)
