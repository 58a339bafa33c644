"""Capturing a CUDA graph such that a capture that fails leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def capturing(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """Capture what this thread launches into `graph`, with memory of `pool`, on a side `stream`; other threads launch as ever.

    Where torch cannot end a capture (the card was asked a question in the middle) it raises before it cleans up: this thread would go on on
    the side stream, the allocator would take the capture for one under way and never give a cached byte back to the card, and the default
    random generator would belong to a graph that never exists.
    """
    device = stream.device
    before = torch.cuda.current_stream(device)
    random_state = torch.cuda.get_rng_state(device)
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    except BaseException:
        torch.cuda.set_stream(before)
        _end_allocation(device.index, pool)
        _release_generator(device.index, random_state)
        raise


class _Address:
    def __init__(self, memory: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {"data": (memory.data_ptr(), False), "shape": tuple(memory.shape), "typestr": "|u1", "version": 3}


def borrowed(memory: torch.Tensor) -> torch.Tensor:
    """Return the same bytes (uint8, on a card) as a tensor that does not keep them: their pool may give them out again."""
    return torch.as_tensor(_Address(memory), device=memory.device)


def _end_allocation(device_index: int, pool: Any) -> None:
    try:
        torch._C._cuda_endAllocateToPool(device_index, pool)
    except RuntimeError:
        return  # the capture was ended properly, and the graph lets go of the pool itself
    torch._C._cuda_releasePool(device_index, pool)


def _release_generator(device_index: int, state: torch.Tensor) -> None:
    """Give the default CUDA generator back its state."""
    generator: Any = torch.cuda.default_generators[device_index]
    fresh: Any = torch.Generator(device=torch.device("cuda", device_index))
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
    generator.set_state(state)
