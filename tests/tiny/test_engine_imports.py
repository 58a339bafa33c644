"""The engine is first needed by two threads at once: a page counts tokens while Start begins a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = """
import gc, sys, threading, time
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.workspace import Workspace
failed = []

def warm_up():
    import torch

def count_tokens():
    engine_object("lens:Lens")
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(sys.argv[1])

def start():
    engine_object("job:run")

def tried(work):
    try:
        work()
    except BaseException as error:
        failed.append(repr(error)[:300])

threads = []
for work in (warm_up, count_tokens, start):
    threads.append(threading.Thread(target=tried, args=(work,)))
    threads[-1].start()
    time.sleep(float(sys.argv[2]))
for thread in threads:
    thread.join()
print(failed, gc.get_freeze_count() > 100_000)
"""


@pytest.mark.parametrize("apart_s", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_threads_that_need_it_first_do_not_see_half_made_modules(tiny_model_dir: Path, apart_s: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(tiny_model_dir), str(apart_s)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # And what they brought is looked through by no collection of garbage, which would keep pages waiting.
    assert done.stdout.strip() == "[] True"
