"""A process that can no longer open a connection or start a program, by the kernel's word (seccomp on Linux, x86-64 and ARM64).

The filter is the one of seccomp(2): it looks at the number of each system call and refuses some with EPERM. It cannot be taken
off again, holds for all threads, and for native code too, which Python's audit hook cannot see.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import subprocess
import sys
from functools import lru_cache

from qlora_ui.base import children

_SYSTEM_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    # Audit architecture, number of seccomp, and what is refused: socket, connect, bind, listen, accept, accept4, socketpair,
    # execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup (which opens sockets too), unshare, setns.
    "x86_64": (0xC000003E, 317, (41, 42, 49, 50, 43, 288, 53, 59, 322, 101, 310, 311, 425, 272, 308)),
    "aarch64": (0xC00000B7, 277, (198, 203, 200, 201, 202, 242, 199, 221, 281, 117, 270, 271, 425, 97, 268)),
}
_SET_NO_NEW_PRIVS = 38
_FILTER_MODE, _ALL_THREADS = 1, 1
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000
"""Numbers from here on are the x32 variant of the same calls."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_network() -> bool:
    """Ask the kernel to refuse connections and programs to this process from now on; False where it cannot."""
    known = _SYSTEM_CALLS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
    if known is None:
        return False
    architecture, seccomp, refused = known
    code = _filter(architecture, refused)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return int(libc.syscall(seccomp, _FILTER_MODE, _ALL_THREADS, ctypes.byref(program))) == 0


def _filter(architecture: int, refused: tuple[int, ...]) -> bytes:
    """The filter as the kernel reads it: instructions of 8 bytes (code, jump if true, jump if false, value)."""
    calls = len(refused)
    steps = [
        (_LOAD, 0, 0, 4),  # Offset of the architecture in seccomp_data.
        (_EQUAL, 0, calls + 3, architecture),
        (_LOAD, 0, 0, 0),  # Offset of the call's number.
        (_AT_LEAST, calls + 1, 0, _X32),
        *((_EQUAL, calls - place, 0, number) for place, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


@lru_cache(maxsize=1)
def can_refuse_network() -> bool:
    """Whether the kernel of this machine does it; tried once, in a process of its own."""
    command = children.isolated("from qlora_ui.data.no_network import refuse_network; sys.exit(not refuse_network())")
    try:
        return subprocess.run(command, timeout=20, check=False, capture_output=True).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
