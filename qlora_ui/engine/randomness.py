"""The random numbers of a run, kept apart from whatever else happens in the process: dry runs, probe answers, a chat in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RandomState:
    """Where Python's, numpy's and torch's generators stand; the card's too, once CUDA is in use."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: torch.Tensor | None


def read_random_state() -> RandomState:
    """Where the generators stand now."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return RandomState(random.getstate(), np.random.get_state(), torch.random.get_rng_state(), cuda)


def restore_random_state(state: RandomState) -> None:
    """Put the generators back."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.random.set_rng_state(state.cpu)
    if state.cuda is not None:
        torch.cuda.set_rng_state(state.cuda)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever is drawn inside the block is as if it had not been drawn."""
    state = read_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
