"""The cage of the child that reads other people's files: memory, processor, no network, no further programs.

What the system offers is used: resource limits where there are some (Linux, most of macOS); the parent watches memory and
time on every system. The audit hook cannot be taken off again from inside.
"""

from __future__ import annotations

import sys
from typing import Any

MEMORY_BYTES = 1 << 30
"""What a child may hold; the parent ends it beyond."""
ADDRESS_BYTES = 3 << 30
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
        for kind, limit in (("RLIMIT_AS", address_bytes), ("RLIMIT_CPU", int(cpu_s) + 1), ("RLIMIT_CORE", 0)):
            try:
                hard = resource.getrlimit(getattr(resource, kind))[1]
                value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
                resource.setrlimit(getattr(resource, kind), (value, hard))
            except (OSError, ValueError, AttributeError):
                pass
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not allowed while a dataset is read")
