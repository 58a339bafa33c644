"""Rows that are nearly the same, found with MinHash (Broder 1997) over runs of three words, a chunk of rows at a time.

All arithmetic is on whole chunks: a row costs about as long as hashing its bytes a few times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_NUM_HASHES = 16
_BAND = 2
_ALIKE = 13
"""Of 16 hashes: three-word runs shared by about 80 %."""
_MIN_WORDS = 8
_MAX_CHARS = 4000
MAX_ROWS = 1_000_000
"""Rows that are compared; 80 bytes each."""

Array = np.ndarray[Any, Any]


def _drawn() -> tuple[Array, Array]:
    """The hashes' multipliers and a number for each byte that is part of a word (0 for any other), the same in every process."""
    draw = np.random.default_rng(20231)
    multipliers = draw.integers(1 << 62, dtype=np.uint64, size=_NUM_HASHES) * np.uint64(2) + np.uint64(1)
    letters = np.zeros(256, dtype=np.uint64)
    for byte in range(256):
        if byte >= 128:
            letters[byte] = np.uint64(0x9E3779B97F4A7C15 + byte * 0x1000193)
        elif chr(byte).lower().isalnum():
            letters[byte] = np.uint64(int(draw.integers(1, 1 << 62)))
    capitals = np.arange(ord("A"), ord("Z") + 1)
    letters[capitals] = letters[capitals + 32]
    return multipliers, letters


_MULTIPLIERS, _LETTER = _drawn()
_IS_LETTER = _LETTER != 0
_RADIX = 0x5851F42D4C957F2D
_RADIX_INVERSE = pow(_RADIX, -1, 1 << 64)


def _powers(base: int, length: int) -> Array:
    values = np.full(length, base, dtype=np.uint64)
    values[0] = 1
    return np.multiply.accumulate(values)


def _nothing() -> tuple[Array, Array]:
    return np.zeros(0, dtype=np.int64), np.zeros((0, _NUM_HASHES), dtype=np.uint32)


class Similar:
    """Takes texts in order, tells at the end which are nearly the same as an earlier one."""

    def __init__(self) -> None:
        self._signatures: list[Array] = []
        self._positions: list[Array] = []
        self._contexts: list[Array] = []
        self._num_rows = 0
        self._forward = self._back = np.zeros(0, dtype=np.uint64)

    def add(self, texts: list[str], contexts: Array) -> None:
        """The next rows, each with the hash of what it is said under: only rows of one context are compared.

        Rows under eight words have no signature (exact doubles are found elsewhere).
        """
        if self._num_rows < MAX_ROWS and texts:
            positions, signatures = self._sign(texts)
            self._positions.append(positions + self._num_rows)
            self._signatures.append(signatures)
            self._contexts.append(contexts[positions])
        self._num_rows += len(texts)

    def _sign(self, texts: list[str]) -> tuple[Array, Array]:
        encoded = [text[:_MAX_CHARS].encode("utf-8", "replace") for text in texts]
        data = np.frombuffer(b" ".join(encoded) + b" ", dtype=np.uint8)
        row_ends = np.cumsum([len(row) + 1 for row in encoded])
        inside = _IS_LETTER[data]
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if inside[0]:
            edges = np.concatenate(([0], edges))
        starts, ends = edges[0::2], edges[1::2]
        if len(starts) < _MIN_WORDS:
            return _nothing()
        if len(self._forward) < len(data):
            self._forward, self._back = _powers(_RADIX, 2 * len(data)), _powers(_RADIX_INVERSE, 2 * len(data))
        sums = np.zeros(len(data) + 1, dtype=np.uint64)
        np.cumsum(_LETTER[data] * self._forward[: len(data)], out=sums[1:])
        # A word's hash is its polynomial moved back to the word's start, so that its place does not matter.
        words = (sums[ends] - sums[starts]) * self._back[starts]
        rows = np.searchsorted(row_ends, starts, side="right")
        runs = words[:-2] + words[1:-1] * np.uint64(0x9E3779B97F4A7C15) + words[2:] * np.uint64(0xC2B2AE3D27D4EB4F)
        runs = (runs ^ (runs >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        runs ^= runs >> np.uint64(32)
        counts = np.bincount(rows, minlength=len(texts))
        whole = (rows[:-2] == rows[2:]) & (counts[rows[:-2]] >= _MIN_WORDS)
        runs, run_rows = runs[whole], rows[:-2][whole]
        if not len(runs):
            return _nothing()
        first = np.flatnonzero(np.concatenate(([True], run_rows[1:] != run_rows[:-1])))
        signatures = np.empty((len(first), _NUM_HASHES), dtype=np.uint32)
        for number, multiplier in enumerate(_MULTIPLIERS):
            signatures[:, number] = np.minimum.reduceat(((runs * multiplier) >> np.uint64(32)).astype(np.uint32), first)
        return run_rows[first].astype(np.int64), signatures

    def near_duplicates(self) -> Array:
        """Positions (counted from 0, in the order of `add`) of rows like an earlier one, ascending."""
        if not self._signatures:
            return np.zeros(0, dtype=np.int64)
        signatures, positions, contexts = map(np.concatenate, (self._signatures, self._positions, self._contexts))
        if not len(signatures):
            return positions
        is_double = np.zeros(len(signatures), dtype=bool)
        for band in range(0, _NUM_HASHES, _BAND):
            keys = signatures[:, band].astype(np.uint64) << np.uint64(32) | signatures[:, band + 1].astype(np.uint64)
            keys ^= contexts
            order = np.argsort(keys, kind="stable")
            same = np.concatenate(([False], keys[order][1:] == keys[order][:-1]))
            # Compared with the row before it in the bucket and with the bucket's first: chains and stars are both found.
            head = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
            later = order[same]
            for earlier in (order[np.flatnonzero(same) - 1], order[head[same]]):
                alike = (signatures[later] == signatures[earlier]).sum(axis=1) >= _ALIKE
                is_double[later[alike]] = True
        return np.sort(positions[is_double])
