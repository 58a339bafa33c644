"""Programs that a piece of work starts; none of them outlives it, nor the app."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
END_S = 5.0
"""A program that was told to end has so long; then it is ended."""
_running: set[subprocess.Popen[bytes]] = set()


def isolated(code: str) -> list[str]:
    """The command of a Python that runs `code` on this app's modules: nothing of the user's environment or folder is imported."""
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"]


def environment_without_secrets() -> dict[str, str]:
    """The environment for a program that reads what strangers wrote."""
    return {key: value for key, value in os.environ.items() if not key.upper().endswith(_SECRETS)}


@contextmanager
def child(command: list[str], **named: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, with the arguments of Popen, that ends with the block.

    And with this process: the thread that waits for it, which is mostly one that nothing waits for, does not live to see that end.
    """
    started = subprocess.Popen(command, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0), **named)
    _running.add(started)
    try:
        yield started
    finally:
        _end(started)
        _running.discard(started)


@atexit.register
def end_children() -> None:
    """End all of them at once, for a process that is about to end."""
    for started in list(_running):
        started.kill()


def _end(started: subprocess.Popen[bytes]) -> None:
    if started.poll() is None:
        started.terminate()
        try:
            started.wait(END_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
