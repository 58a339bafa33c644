"""Gives memory that nothing refers to any longer back to the card and to the system."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable

import bitsandbytes as bnb
import torch

MAX_WORKSPACES = 24
"""Blocks of the card that may be left for all of them to be cuBLAS's working memory (32 to 64 MiB for each thread and stream).

Any model, one that a chat computes with now as well, holds more blocks; its products and graphs use that memory, so it stays.
"""


def give_back_memory() -> None:
    """Collect reference cycles, empty the card's allocator cache, and let the C library return its free pages.

    Without the last, 180 MiB of a converted built-in model stay counted as the process's (glibc, two cores).
    """
    # A second pass finds what the finalizers of the first let go.
    gc.collect()
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        if torch.cuda.memory_stats().get("active.all.current", 0) <= MAX_WORKSPACES:
            torch._C._cuda_clearCublasWorkspaces()
            # bitsandbytes keeps the table of its 8-bit numbers there and makes it again where it is missing.
            bnb.functional.name2qmap.clear()
        torch.cuda.empty_cache()
    _trim()()


@functools.cache
def _trim() -> Callable[[], object]:
    """glibc's malloc_trim; nothing where the C library has none."""
    if sys.platform != "linux":
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return functools.partial(trim, 0) if trim is not None else lambda: None
