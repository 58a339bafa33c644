"""The child that reads foreign files has no network and starts no programs, by the kernel where there is one that does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ui.cli.doctor import run as doctor
from qlora_ui.data.no_network import can_refuse_network

ROOT = Path(__file__).resolve().parents[2]
NATIVE = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.socket(2, 1, 0), lambda: libc.socket(1, 1, 0), lambda: libc.execv(b"/bin/true", None)):
    assert call() == -1 and ctypes.get_errno() == errno.EPERM, call
"""
PYTHON = """
import os, socket, subprocess
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: subprocess.run(["true"]),
    lambda: os.system("true"),
    lambda: os.fork(),
):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("allowed")
"""
# Ends as the reader does, killed with its answer given: pyarrow at times aborts in its own clean-up on a busy machine, confined or not.
STILL_WORKS = """
import io, os, threading, pyarrow as pa, pyarrow.parquet as pq
buffer = io.BytesIO()
pq.write_table(pa.table({"a": [1]}), buffer)
assert pq.read_table(buffer).num_rows == 1
thread = threading.Thread(target=print)
thread.start()
thread.join()
os._exit(0)
"""


def confined(code: str, before: str = "") -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom qlora_ui.data import limits\n{before}\nlimits.confine(20)\n"
    return subprocess.run([sys.executable, "-I", "-c", start + code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not can_refuse_network(), reason="this kernel has no seccomp")
def test_the_kernel_refuses_native_code_too() -> None:
    done = confined(NATIVE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("before", ["", "limits.refuse_network = lambda: False"], ids=["kernel", "audit hook alone"])
def test_python_code_is_refused(before: str) -> None:
    done = confined(PYTHON, before)
    assert done.returncode == 0, done.stderr


def test_reading_still_works() -> None:
    done = confined(STILL_WORKS)
    assert done.returncode == 0, done.stderr


def test_doctor_says_which_of_the_two_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import argparse

    monkeypatch.setattr("qlora_ui.cli.doctor.can_refuse_network", lambda: False)
    doctor(argparse.Namespace(workspace=str(tmp_path), forget=False, free=False, json=False))
    assert "only Python itself (an audit hook) refuses the network" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_gibibyte_and_no_more() -> None:
    done = confined("import numpy as np\nnp.ones(600 << 20, dtype=np.uint8)\nnp.ones(1100 << 20, dtype=np.uint8)")
    assert done.returncode == 1 and "MemoryError" in done.stderr
