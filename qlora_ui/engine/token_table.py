"""The tokens of a whole dataset end to end: small in memory, kept on the disk, cut only when they are used."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qlora_ui.base.bounded import mark_used
from qlora_ui.base.files import read_json, write_json

_BLOCK_TOKENS = 4_000_000

Array = np.ndarray[Any, Any]


class TokenTable:
    """The tokens of many rows end to end, before cutting, with a mark for each that is learned."""

    def __init__(self, ids: Array, trained: Array, offsets: Array, refused: dict[int, str], marks: dict[str, list[int]]) -> None:
        self.ids = ids
        self.trained = trained
        self.offsets = offsets
        self.refused = refused
        """Position of a row to why it cannot be used."""
        self.marks = marks
        """Kind of oddity (see `Whole.marks`) to the positions of the rows."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def trained_counts(self, max_length: int | None = None) -> Array:
        """Learned tokens of each row, of its first `max_length` where that is given."""
        counts = np.zeros(len(self), dtype=np.int64)
        for rows in self._blocks():
            starts, ends = self.offsets[rows], self.offsets[rows.start + 1 : rows.stop + 1]
            if max_length is not None:
                ends = np.minimum(ends, starts + max_length)
            first, last = int(self.offsets[rows.start]), int(self.offsets[rows.stop])
            sums = np.concatenate(([0], np.cumsum(self.trained[first:last], dtype=np.int64)))
            counts[rows] = sums[ends - first] - sums[starts - first]
        return counts

    def _blocks(self) -> Iterator[slice]:
        """Slices of rows of a few million tokens each, so that a sum over all needs little memory."""
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + _BLOCK_TOKENS, side="right")) - 1
            stop = min(max(stop, start + 1), len(self))
            yield slice(start, stop)
            start = stop

    def row(self, position: int, max_length: int | None = None) -> tuple[Array, Array]:
        """Token numbers and marks of one row."""
        start, end = int(self.offsets[position]), int(self.offsets[position + 1])
        end = end if max_length is None else min(end, start + max_length)
        return self.ids[start:end], self.trained[start:end]

    def groups(self, most: int) -> Array:
        """A number for each row: equal for rows of which one begins with all that the other teaches, as a talk that goes on does.

        Copies begin so, too; what follows the last learned token does not count. What more than `most` rows begin with, such as a greeting
        that is a row by itself, does not make a group of them; 0 leaves the copies alone.
        """
        own = np.zeros(len(self), dtype=np.uint64)
        rows_of, hashes_of, is_last = [], [], []
        for rows in self._blocks():
            first, last = int(self.offsets[rows.start]), int(self.offsets[rows.stop])
            offsets = self.offsets[rows.start : rows.stop + 1] - first
            row_of = np.repeat(np.arange(rows.start, rows.stop), np.diff(offsets))
            sums = _hash_sums(self.ids[first:last], offsets)
            own[rows] = sums[offsets[1:]] - sums[offsets[:-1]]
            trained = self.trained[first:last]
            # Where answers end: a learned token before one that is not, or before another row.
            ends = np.flatnonzero(trained & np.append(~trained[1:] | (row_of[1:] != row_of[:-1]), True))
            rows_of.append(row_of[ends])
            hashes_of.append(sums[ends + 1] - sums[offsets[row_of[ends] - rows.start]])
            is_last.append(np.append(row_of[ends][1:] != row_of[ends][:-1], True)[: len(ends)])
        if not rows_of:
            return own
        row_of_end, hash_of_end, is_last_end = np.concatenate(rows_of), np.concatenate(hashes_of), np.concatenate(is_last)
        own[row_of_end[is_last_end]] = hash_of_end[is_last_end]
        known, groups = np.unique(own), own.copy()
        while True:
            # The earliest end at which everything that some row teaches has been said; its own last one at the latest.
            is_whole = is_last_end | np.isin(hash_of_end, known)
            found, places = np.unique(row_of_end[is_whole], return_index=True)
            groups[found] = hash_of_end[is_whole][places]
            numbers, sizes = np.unique(groups, return_counts=True)
            too_common = np.intersect1d(numbers[sizes > most], groups[groups != own])
            if not len(too_common):
                return groups
            known = np.setdiff1d(known, too_common)

    def save(self, folder: Path) -> None:
        """Write to a folder, which is there as a whole or not at all: other processes may be writing the same one."""
        staged = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
        staged.mkdir(parents=True)
        try:
            for name in ("ids", "trained", "offsets"):
                np.save(staged / f"{name}.npy", getattr(self, name))
            refused = {str(position): reason for position, reason in self.refused.items()}
            write_json(staged / "notes.json", {"refused": refused, "marks": self.marks})
            os.replace(staged, folder)
        except OSError:
            if not (folder / "notes.json").exists():
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> TokenTable | None:
        """The table in a folder, read from the disk as it is needed; None where there is none that can be read."""
        notes = read_json(folder / "notes.json")
        if notes is None:
            return None
        try:
            ids, trained, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "trained", "offsets"))
            refused = {int(position): reason for position, reason in notes["refused"].items()}
            table = cls(ids, trained, np.array(offsets), refused, notes["marks"])
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
            # Damaged, as after a power cut: left there, it would keep its place from the one that is made anew.
            shutil.rmtree(folder, ignore_errors=True)
            return None
        mark_used(folder)
        return table


def _hash_sums(ids: Array, offsets: Array) -> Array:
    """Running sums over the tokens of some rows, of which a difference is a number for the tokens between, by their places in the row."""
    values = ids.astype(np.uint64) + np.uint64(1)
    within = np.arange(len(values), dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
    mixed = (values * np.uint64(0x9E3779B97F4A7C15)) ^ (within.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)))
