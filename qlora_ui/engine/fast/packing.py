"""Packing samples into rows of one length without padding between them, and the collator that keeps every batch's shape the same.

Plain Python and torch tensors at the end; no model is involved. A row's tail that no sample fills is padding with labels of -100.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
COUNTED = "counted_positions"
"""Of a batch: the positions that predict a label that counts, for the fast step alone."""
PADDING = "num_padding"
"""Of a packed batch: how many of its tokens fill it up, which no attention mask says."""


@dataclass(frozen=True)
class Packed:
    """Which samples share a row, and what packing did to the data."""

    rows: tuple[tuple[int, ...], ...]
    row_length: int
    num_tokens: int
    num_truncated: int

    @property
    def max_documents(self) -> int:
        """The most samples in one row."""
        return max((len(row) for row in self.rows), default=0)


def best_fit(lengths: Sequence[int], row_length: int) -> Packed:
    """Pack samples by best-fit decreasing: each goes into the fullest row that still has room; longer ones are cut to `row_length`.

    Rows come in the order of their first sample and samples inside a row in theirs, so equal input gives equal rows. Empty samples are
    left out. Costs O(n log n) with a bit set of the free spaces that occur.
    """
    if row_length < 1:
        raise ValueError("A row must hold at least one token.")
    kept = [min(length, row_length) for length in lengths]
    free_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # row numbers by free space
    spaces = 0  # bit s is set where a row with s free positions exists
    rows: list[list[int]] = []
    for index in sorted((i for i, length in enumerate(kept) if length > 0), key=lambda i: (-kept[i], i)):
        length = kept[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = free_rows[space].pop()
            if not free_rows[space]:
                spaces &= ~(1 << space)
        else:
            space, row = row_length, len(rows)
            rows.append([])
        rows[row].append(index)
        left = space - length
        free_rows[left].append(row)
        if left:
            spaces |= 1 << left
    ordered = sorted(tuple(sorted(row)) for row in rows)
    return Packed(tuple(ordered), row_length, sum(kept), sum(length > row_length for length in lengths))


def pack_examples(
    input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], row_length: int
) -> tuple[dict[str, list[list[int]]], Packed]:
    """Return packed columns (`input_ids`, `labels`, `seq_lengths`, one entry per row) and the report; TRL's collator reads them too."""
    packed = best_fit([len(ids) for ids in input_ids], row_length)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for row in packed.rows:
        columns["input_ids"].append([token for i in row for token in input_ids[i][:row_length]])
        columns["labels"].append([label for i in row for label in labels[i][:row_length]])
        columns["seq_lengths"].append([min(len(input_ids[i]), row_length) for i in row])
    return columns, packed


@dataclass(frozen=True)
class PackedCollator:
    """Collate packed rows into one row of `batch_rows * row_length` tokens whose shapes never change.

    Returns input_ids, labels and position_ids (1, T) int64, cu_seq_lens_q/k int32 of fixed length (padded by repeating T), max_length_q/k =
    row_length; `COUNTED`, int64, the positions that predict a label that counts; and `PADDING`. Positions restart with each sample; a row's
    padded tail is a document of its own with labels -100; the first label of each document is -100, since nothing before it may predict it.
    Where no row holds more than one document (`max_documents` 1), rows are documents and padding belongs to them, which lets attention run
    on whole rows. A last batch of fewer rows is filled up with padding rows.
    """

    pad_token_id: int
    row_length: int
    batch_rows: int
    max_documents: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate examples with `input_ids` and optionally `labels` and `seq_lengths` (else each example is one document)."""
        total = self.row_length * self.batch_rows
        ids = torch.full((total,), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((total,), IGNORED, dtype=torch.int64)
        starts: list[int] = []
        num_real = 0
        for row in range(self.batch_rows):
            begin = row * self.row_length
            used = 0
            if row < len(examples):
                tokens = list(examples[row]["input_ids"])[: self.row_length]
                used = len(tokens)
                num_real += used
                ids[begin : begin + used] = torch.tensor(tokens, dtype=torch.int64)
                labels[begin : begin + used] = torch.tensor(list(examples[row].get("labels", tokens))[:used], dtype=torch.int64)
                place = 0
                for length in examples[row].get("seq_lengths", [used]):
                    if place < used:
                        starts.append(begin + place)
                    place += length
            # a row that holds one document only needs no boundary before its padding: nothing after it is counted
            if used < self.row_length and (self.max_documents > 1 or used == 0):
                starts.append(begin + used)
        boundaries = self.batch_rows * (self.max_documents + 1 if self.max_documents > 1 else 1) + 1
        if len(starts) >= boundaries:
            raise ValueError(f"A batch holds {len(starts)} documents where {boundaries - 1} were announced.")
        cumulative = torch.full((boundaries,), total, dtype=torch.int32)
        cumulative[: len(starts)] = torch.tensor(starts, dtype=torch.int32)
        first = torch.zeros(total, dtype=torch.int64)
        start_index = torch.tensor(starts, dtype=torch.int64)
        first[start_index] = start_index
        positions = torch.arange(total) - first.cummax(0).values
        labels[start_index] = IGNORED
        return {
            "input_ids": ids[None],
            "labels": labels[None],
            "position_ids": positions[None],
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": self.row_length,
            "max_length_k": self.row_length,
            COUNTED: (labels[1:] != IGNORED).nonzero()[:, 0],
            PADDING: total - num_real,
        }


@dataclass(frozen=True)
class CountingCollator:
    """A collator of padded rows whose batches say which positions predict a label that counts (`COUNTED`): no card has to be asked."""

    inner: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Collate, and number the positions row after row."""
        batch = self.inner(examples)
        labels = batch["labels"]
        rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return {**batch, COUNTED: rows * labels.shape[1] + places}
