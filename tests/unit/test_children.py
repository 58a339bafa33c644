"""Programs that the app starts end with it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qlora_ui.base.children import child, environment_without_secrets, isolated

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
APP = f"""
import threading, time
from qlora_ui.base.children import child, environment_without_secrets, isolated
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


def test_a_reader_of_foreign_files_sees_no_secrets_and_nothing_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "my_api_key", "AWS_SECRET", "DB_PASSWORD"):
        monkeypatch.setenv(name, "hush")
    (tmp_path / "orjson.py").write_text("print('taken')", encoding="utf-8")
    code = "import os, orjson, qlora_ui; print([name for name, value in os.environ.items() if value == 'hush'])"
    done = subprocess.run(
        isolated(code), env=environment_without_secrets(), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
