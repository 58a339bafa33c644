"""Programs that the app starts end with it."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from qlora_ui.base.children import child

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
APP = f"""
import threading, time
from qlora_ui.base.children import child
def work():
    with child({SLEEPS!r}) as started:
        print(started.pid, flush=True)
        started.wait()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
"""


def test_a_program_ends_with_the_app_whose_thread_waits_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", APP], capture_output=True, text=True, check=True, timeout=30)
    pid, until = int(done.stdout), time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_program_ends_with_the_work_that_started_it() -> None:
    with pytest.raises(KeyError), child(SLEEPS) as started:
        raise KeyError
    assert started.returncode is not None
