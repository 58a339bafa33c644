"""The dataset of a run: split, tokenized, and written down so that anybody can train on the very same.

A run's `data/` folder holds, for `train` and, where rows are held back, for `eval`:

    train.jsonl            the rows as `{"messages": [...]}` (with `"tools"`) or `{"text": ...}`, for people and other tools
    train.tokens.parquet   columns `input_ids` and `labels`: what the trainer was given, cut and masked

A stand-alone script trains on the same tokens with
`load_dataset("parquet", data_files={"train": "train.tokens.parquet", "eval": "eval.tokens.parquet"})`: TRL takes a dataset
with `input_ids` and `labels` as it is. `receipt.json` beside them has the hashes and the counts of every stage, and
`chat_template.jinja`, where a template was chosen, is what the turns were written with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import read_json, sha256_of, write_json, write_text
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent
from qlora_ui.data.load import Conversations, load_conversations
from qlora_ui.data.report import DataReport, SourceReport
from qlora_ui.engine.checkpoints import sync_tree
from qlora_ui.engine.token_table import TokenTable
from qlora_ui.engine.tokenizer import tokenizer_state
from qlora_ui.engine.tokens import IGNORED, tokenize_all
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import num_held_back
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection

Array = np.ndarray[Any, Any]
TEMPLATE = "chat_template.jinja"
_RECEIPT = "receipt.json"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a run was trained on, in numbers and hashes."""

    content_hash: str
    """Over the sources, slices, weights, format and mapping."""
    sources: tuple[dict[str, Any], ...]
    """Of each file: name, format, SHA-256, rows seen and rows usable."""
    template_hash: str
    tokenizer_hash: str
    num_rows: int
    """After slices and weights."""
    num_refused: int
    """Rows that the chat template could not write."""
    num_too_long: int
    """Rows left out for their length."""
    num_without_answer: int
    """Rows left out since no learned token was left in them."""
    num_truncated: int
    """Rows that were cut and kept."""
    num_train_rows: int
    num_eval_rows: int
    num_train_tokens: int
    num_trained_tokens: int
    """Learned tokens of one pass over the training rows."""
    num_eval_tokens: int
    longest_tokens: int
    mean_tokens: float
    max_length: int
    train_on: str
    seed: int
    files: dict[str, str]
    """Name to SHA-256 of the files in the run's data folder."""

    @property
    def num_dropped(self) -> int:
        """Rows that were read and are not trained on."""
        return self.num_refused + self.num_too_long + self.num_without_answer

    def as_dict(self) -> dict[str, Any]:
        """The receipt as JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"sources": list(self.sources)}


@dataclass(frozen=True, slots=True)
class Datasets:
    """Rows with `input_ids` and `labels`, ready for the trainer."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    receipt: Receipt


def build_datasets(
    config: RunConfig,
    workspace: Workspace,
    tokenizer: Any,
    run: RunDir | None = None,
    *,
    day: date | None = None,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> Datasets:
    """The tokenized rows of a run, split by its seed; with `run` also written to its `data/` folder.

    The same settings, files and tokenizer give the same rows in the same order; where the chat template writes the date, that is `day`, or
    today. Raises DataError where nothing is left to train on, and Cancelled.
    """
    data = config.data
    loaded = load_conversations(data, workspace, on_progress=on_progress, is_cancelled=is_cancelled)
    report = loaded.report
    table = tokenize_all(
        loaded.conversations,
        tokenizer,
        data,
        content_hash=report.content_hash,
        workspace=workspace,
        day=day,
        on_progress=on_progress,
        is_cancelled=is_cancelled,
    )
    kept = usable_rows(table, data)
    if not kept.any():
        raise _nothing_left(table, data)
    train_rows, eval_rows = split_rows(np.flatnonzero(kept), table, config.eval.share, config.train.seed)
    train, held_back = _arrow(table, train_rows, data.max_length), _arrow(table, eval_rows, data.max_length)
    files = {} if run is None else _write(run.data, loaded.conversations, (train_rows, train), (eval_rows, held_back))
    receipt = _receipt(config, report, table, tokenizer, kept=kept, train_rows=train_rows, eval_rows=eval_rows, files=files)
    if run is not None:
        write_json(run.data / _RECEIPT, receipt.as_dict())
        if config.model.template != "auto":
            write_text(run.data / TEMPLATE, tokenizer.chat_template)
        # A run goes on with these after a power cut, whatever became of the files that they are from.
        sync_tree(run.data)
    return Datasets(datasets.Dataset(train), datasets.Dataset(held_back) if len(eval_rows) else None, receipt)


def kept_datasets(run: RunDir) -> Datasets | None:
    """The rows that an earlier attempt of the run has written down; None where they are gone or not what was written."""
    try:
        known = read_json(run.data / _RECEIPT)
        receipt = Receipt(**{**known, "sources": tuple(known["sources"])})
        if any(sha256_of(run.data / name) != digest for name, digest in receipt.files.items()):
            return None
        train, held_back = (
            datasets.Dataset(pq.read_table(run.data / f"{name}.tokens.parquet")) if rows else None
            for name, rows in (("train", receipt.num_train_rows), ("eval", receipt.num_eval_rows))
        )
    except (OSError, TypeError, KeyError, pa.ArrowException):
        return None
    return Datasets(train, held_back, receipt) if train is not None else None


def changed_files(receipt: Receipt) -> list[str]:
    """Names of the files that are gone, or are not as they were when they were read."""
    files = [(Path(source["source"]).expanduser(), source) for source in receipt.sources]
    return [
        str(source["name"])
        for path, source in files
        if path.is_absolute() and not path.is_dir() and (not path.is_file() or sha256_of(path) != source["sha256"])
    ]


def _receipt(
    config: RunConfig,
    report: DataReport,
    table: TokenTable,
    tokenizer: Any,
    *,
    kept: Array,
    train_rows: Array,
    eval_rows: Array,
    files: dict[str, str],
) -> Receipt:
    """Counts and hashes of what was read, kept and split."""
    data = config.data
    too_long = table.lengths > data.max_length
    lengths = np.minimum(table.lengths, data.max_length)
    trained = table.trained_counts(data.max_length)
    drops = too_long if data.too_long == "drop" else np.zeros(len(table), dtype=bool)
    return Receipt(
        content_hash=report.content_hash,
        sources=tuple(_source_facts(source) for source in report.sources),
        template_hash=_hash(str(tokenizer.chat_template or "")),
        tokenizer_hash=_hash(tokenizer_state(tokenizer)),
        num_rows=len(table),
        num_refused=len(table.refused),
        num_too_long=int(drops.sum()),
        num_without_answer=int((~kept & ~drops).sum()) - len(table.refused),
        num_truncated=int((too_long & kept).sum()),
        num_train_rows=len(train_rows),
        num_eval_rows=len(eval_rows),
        num_train_tokens=int(lengths[train_rows].sum()),
        num_trained_tokens=int(trained[train_rows].sum()),
        num_eval_tokens=int(lengths[eval_rows].sum()),
        longest_tokens=int(lengths[kept].max()),
        mean_tokens=float(lengths[train_rows].mean()),
        max_length=data.max_length,
        train_on=data.train_on,
        seed=config.train.seed,
        files=files,
    )


def _source_facts(source: SourceReport) -> dict[str, Any]:
    return {
        "source": source.source,
        "name": source.name,
        "format": source.format,
        "sha256": source.content_hash,
        "rows_seen": source.num_seen,
        "rows": source.num_rows,
    }


def split_rows(rows: Array, table: TokenTable, share: float, seed: int) -> tuple[Array, Array]:
    """Positions for training and for checking, both ascending; the same seed gives the same split.

    Equal rows stay together, whether a file has them twice or a weight repeats them, and so do a talk and its continuation: a checked row
    that is trained on as another, or as a part of it, would look better than it is. Only where no such group is small enough for the last
    places is one divided.
    """
    num_eval = num_held_back(len(rows), share)
    if not num_eval:
        return rows, rows[:0]
    order = np.random.default_rng(seed).permutation(len(rows))
    _, group_of, sizes = np.unique(table.groups(num_eval)[rows], return_inverse=True, return_counts=True)
    first_places = np.unique(group_of[order], return_index=True)[1]
    is_held = np.zeros(len(sizes), dtype=bool)
    num_left = num_eval
    for group in group_of[order[np.sort(first_places)]]:
        if sizes[group] <= num_left:
            is_held[group] = True
            num_left -= int(sizes[group])
            if not num_left:
                break
    held = is_held[group_of]
    # The last places go to as few groups as there may be.
    rest = order[~held[order]]
    held[rest[np.argsort(first_places[group_of[rest]], kind="stable")][:num_left]] = True
    return rows[~held], rows[held]


def usable_rows(table: TokenTable, data: DataSection) -> Array:
    """Which rows still hold something to learn after cutting."""
    usable = table.trained_counts(data.max_length) > 0
    if data.too_long == "drop":
        usable &= table.lengths <= data.max_length
    return np.asarray(usable)


def _arrow(table: TokenTable, rows: Array, max_length: int) -> pa.Table:
    """Rows as an Arrow table of `input_ids` and `labels`."""
    pieces = [table.row(int(row), max_length) for row in rows]
    ids = np.concatenate([piece for piece, _ in pieces]) if pieces else np.zeros(0, dtype=np.int32)
    marks = np.concatenate([mark for _, mark in pieces]) if pieces else np.zeros(0, dtype=bool)
    offsets = np.concatenate(([0], np.cumsum([len(piece) for piece, _ in pieces], dtype=np.int64)))
    labels = np.where(marks, ids, np.int32(IGNORED)).astype(np.int32)
    columns = [pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in (ids.astype(np.int32), labels)]
    narrow = pa.list_(pa.int32())
    return pa.table([column.cast(narrow) for column in columns], names=["input_ids", "labels"])


def _write(folder: Path, conversations: Conversations, *parts: tuple[Array, pa.Table]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}
    for name, (rows, tokens) in zip(("train", "eval"), parts, strict=True):
        if not len(rows):
            continue
        text, numbers = folder / f"{name}.jsonl", folder / f"{name}.tokens.parquet"
        with text.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(conversations, rows))
        pq.write_table(tokens, numbers)
        hashes |= {path.name: sha256_of(path) for path in (text, numbers)}
    return hashes


def _lines(conversations: Conversations, rows: Array) -> Iterator[str]:
    for row in rows:
        yield conversations[int(row)].as_line() + "\n"


def _nothing_left(table: TokenTable, data: DataSection) -> DataError:
    if len(table.refused) == len(table):
        first = next(iter(table.refused.values()))
        return DataError(
            "The chat template can write none of the rows.",
            why=f"Row 1: {first}.",
            fix="Choose another chat template, or look at the order of speakers.",
            code="TPL-ROWS",
        )
    longest = int(table.lengths.max())
    if data.too_long == "drop" and (table.lengths > data.max_length).all():
        return DataError(
            f"Every row is longer than {data.max_length} tokens and would be left out.",
            why=f"The shortest has {int(table.lengths.min())} tokens.",
            fix="Raise the longest conversation, or cut long ones.",
            where="data.max_length",
            code="DATA-LABEL",
        )
    return DataError(
        f"100 % of the rows lose their answer at {data.max_length} tokens; the longest has {longest}.",
        why="The question alone fills the length, so nothing is left to learn.",
        fix="Raise the longest conversation.",
        where="data.max_length",
        code="DATA-LABEL",
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
