"""Whose a run is, and whether that process still lives: across clocks that are set, names that change, containers and machines.

A process is known by its pid and its start, counted from the machine's own start: the clock of the wall may be set while it runs.
A pid means something only where it was given: in the same session of the same kernel (`boot`) and in the same namespace of pids.
The name of the computer says neither: a container made anew has another one, and so has a laptop in another network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

SILENT_S = 600.0
"""A run on another machine that wrote nothing for so long is given up. A job writes every second, after hours every ten; network disks
and clocks that differ may hide it a while."""
SILENT_NEARBY_S = 120.0
"""The same for another container of this machine, with the same disk and clock."""
_FIRST_PIDS = "pid:[4026531836]"
"""The namespace of a machine's first process, in every Linux."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where pids of this process mean something; empty words where the system does not say."""

    boot: str
    """This session of the kernel: another one after every restart, the same in all containers of the machine."""
    pids: str
    """The namespace of pids; each container has its own."""
    machine: str
    """The installed system, over its restarts. Not known in containers: it comes with the image, to however many machines."""


@cache
def here() -> Place:
    """The place of this process."""
    if sys.platform == "darwin":
        return Place(_boot_of_a_mac(), "", "")
    pids = ""
    with contextlib.suppress(OSError):
        pids = os.readlink("/proc/self/ns/pid")
    is_container = pids != _FIRST_PIDS or any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
    return Place(_line("/proc/sys/kernel/random/boot_id"), pids, "" if is_container else _line("/etc/machine-id"))


def describe_owner(pid: int | None = None) -> dict[str, Any]:
    """A process, this one unless `pid` names another, as the owner of a run, for its owner.json.

    `process_started` and `host` are for readers of an earlier version, too.
    """
    pid, place = pid or os.getpid(), here()
    return {
        "pid": pid,
        "process_started": _clock_start(pid),
        "host": socket.gethostname(),
        "start": start_of(pid),
        "boot": place.boot,
        "pids": place.pids,
        "machine": place.machine,
    }


def is_alive(owner: Any, last_sign: Callable[[], float]) -> bool:
    """Whether the process in an owner.json still lives; `last_sign` says when its run last wrote anything, in Unix seconds.

    The processes of other machines and containers cannot be seen: they count as gone when their run has been silent for long.
    """
    if not isinstance(owner, dict):
        return False
    if _is_visible(owner):
        return _is_running(owner)
    if is_on_this_machine(owner):
        return time.time() - last_sign() < SILENT_NEARBY_S
    # Nothing outlives a restart of its machine.
    return not _was_restarted(owner) and time.time() - last_sign() < SILENT_S


def is_on_this_machine(owner: dict[str, Any]) -> bool:
    """Whether the owner works, or worked, on this machine's cards since its last start."""
    if owner.get("boot") and here().boot:
        return bool(owner["boot"] == here().boot)
    return bool(owner.get("host") == socket.gethostname())


def elsewhere(owner: Any) -> str:
    """The name of the other computer or container that the owner is in; empty for one that can be seen from here."""
    return "" if not isinstance(owner, dict) or _is_visible(owner) else str(owner.get("host") or "another computer")


def start_of(pid: int) -> float | None:
    """When a process started, on a clock that nobody sets; None where there is no such process, or only its remains."""
    if sys.platform == "linux":
        try:
            # The name in the second field may hold spaces and brackets; the state is the third field and the start the 22nd.
            words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if words[0] in (b"Z", b"X") else float(words[19])
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # psutil adds to a Mac's start times what the clock was set by since psutil was imported, and has no public way to leave it out.
        return float(process._proc.create_time(monotonic=True) if sys.platform == "darwin" else process.create_time())
    except psutil.Error:
        return None


def _is_visible(owner: dict[str, Any]) -> bool:
    return is_on_this_machine(owner) and owner.get("pids", here().pids) == here().pids


def _is_running(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return False
    if owner.get("start") is not None:
        return bool(start_of(pid) == owner["start"])
    # Written by an earlier version, which knew the time of the clock only.
    started = owner.get("process_started")
    if not isinstance(started, int | float):
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _was_restarted(owner: dict[str, Any]) -> bool:
    if not (owner.get("boot") and here().boot):
        return False
    if owner.get("machine") and here().machine:
        return bool(owner["machine"] == here().machine)
    return bool(owner.get("host") == socket.gethostname())


@cache
def _clock_start(pid: int) -> float | None:
    """A forked process has a number, and an answer, of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).create_time())
    return None


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _boot_of_a_mac() -> str:
    words, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", words, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return words.value.decode("ascii", "replace")
    return ""
