"""Dropout as a pure function of (seed, projection, token, column): recomputable, resumable, and no mask in memory.

The bits come from a 32-bit multiply-xorshift hash of the element's index, keyed twice by the seed and the projection's salt, so that two
projections (or two micro-steps) do not read shifted copies of one sequence. 16 bits decide one element: the rate is met to 1/65536.
"""

from dataclasses import dataclass, replace

import torch

_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """Dropout in front of LoRA's A matrices; `seed` is an int32 tensor of 2 on the model's device, rewritten before every micro-step."""

    rate: float
    seed: torch.Tensor
    first_row: int = 0
    """Where the rows that are dropped from begin in the tensor whose rows the mask counts: a tile sees its part of the whole's mask."""

    @property
    def threshold(self) -> int:
        """An element is dropped where its 16 random bits are below this."""
        return round(self.rate * 65536)

    @property
    def active(self) -> bool:
        """False where nothing is ever dropped."""
        return self.threshold > 0

    @property
    def inverse_keep(self) -> float:
        """What kept elements are multiplied by, so that the expectation stays."""
        return 1.0 / (1.0 - self.threshold / 65536)

    def from_row(self, first_row: int) -> "Dropout":
        """Return the same dropout for rows that begin at `first_row`."""
        return replace(self, first_row=first_row)


def step_seed(run_seed: int, global_step: int, micro_step: int) -> tuple[int, int]:
    """Return the two int32 words that key all masks of one micro-step; a resumed run gets the words it would have had (splitmix64)."""
    state = (run_seed * 0x9E3779B97F4A7C15 + global_step * 0xD1B54A32D192ED03 + micro_step * 0x8CB92BA72F3D8DD7 + 1) & (2**64 - 1)
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    state ^= state >> 31
    low, high = state & _MASK32, state >> 32
    return (low - 2**32 if low >= 2**31 else low), (high - 2**32 if high >= 2**31 else high)


def half_width(num_columns: int) -> int:
    """Return the number of column pairs of a row: column c and c + 64 of each 128 share one hash."""
    return (num_columns + 127) // 128 * 64


def _finalize(h: torch.Tensor) -> torch.Tensor:
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK32
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK32
    return h ^ (h >> 16)


def keep_mask(dropout: Dropout, salt: int, num_rows: int, num_columns: int) -> torch.Tensor:
    """Return the boolean keep mask (num_rows, num_columns) in plain torch: the reference of the Triton kernels, and their stand-in."""
    device = dropout.seed.device
    words = dropout.seed.to(torch.int64) & _MASK32
    key0 = _finalize(words[0] ^ ((salt * 0x9E3779B9) & _MASK32))
    key1 = _finalize((words[1] + ((salt * 0x85EBCA6B) & _MASK32)) & _MASK32)
    rows = dropout.first_row + torch.arange(num_rows, device=device)[:, None]
    columns = torch.arange(num_columns, device=device)[None, :]
    h = ((rows * half_width(num_columns) + columns // 128 * 64 + columns % 64) & _MASK32) ^ key0
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK32
    h = h ^ key1
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK32
    h = h ^ (h >> 16)
    bits = (h >> (columns // 64 % 2 * 16)) & 0xFFFF
    return bits >= dropout.threshold
