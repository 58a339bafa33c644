"""The cage of the child that reads other people's files: memory, processor, no network, no further programs.

What the system offers is used: resource limits where there are some (Linux, most of macOS), on Linux the kernel's refusal of
connections and programs; the parent watches memory and time on every system. The audit hook, which Python code cannot take off
again, is the fallback where the kernel offers nothing; `app.py doctor` says which of the two holds.
"""

from __future__ import annotations

import sys
from typing import Any

from qlora_ui.base.units import GIB
from qlora_ui.data.no_network import refuse_network

MEMORY_BYTES = GIB
"""What a child may hold; the parent ends it beyond."""
ADDRESS_BYTES = 3 * GIB
"""Address space, which libraries reserve more of than they use."""

_FORBIDDEN = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)


def confine(cpu_s: float, address_bytes: int = ADDRESS_BYTES) -> None:
    """Limit this process for the rest of its life; `cpu_s` is its processor time in seconds."""
    try:
        import resource
    except ImportError:  # Windows: the parent's watch has to do.
        pass
    else:
        limits = [("RLIMIT_AS", address_bytes), ("RLIMIT_CPU", int(cpu_s) + 1), ("RLIMIT_CORE", 0)]
        if sys.platform == "linux":
            limits.append(("RLIMIT_DATA", MEMORY_BYTES))  # Writable memory, which elsewhere is not what this counts.
        for kind, limit in limits:
            try:
                hard = resource.getrlimit(getattr(resource, kind))[1]
                value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
                resource.setrlimit(getattr(resource, kind), (value, hard))
            except (OSError, ValueError, AttributeError):
                pass
    refuse_network()
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not allowed while a dataset is read")
