"""Conversations as token numbers with the tokens that are learned: the one function behind training, preview and lint."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from qlora_ui.base.bounded import keep_within
from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import DISK_FULL
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.data.folders import DataFolders
from qlora_ui.data.parse import PARSER_VERSION
from qlora_ui.data.rows import Conversation
from qlora_ui.engine.rendering import Renderer, RowRefused, Span, disarmed, special_pattern
from qlora_ui.engine.token_table import Array, TokenTable
from qlora_ui.engine.tokenizer import tokenizer_state, writes_the_date
from qlora_ui.settings.sections import DataSection

IGNORED = -100
"""The label of a token that is not learned."""
TOKENS_VERSION = 6
"""Part of the cache's key; raised when the same text would give other tokens or labels."""
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One conversation as the trainer sees it."""

    input_ids: list[int]
    labels: list[int]
    """`input_ids` where the token is learned, else IGNORED."""
    num_tokens: int
    """Before cutting."""
    num_trained: int
    """After cutting."""
    cut_at: int | None = None
    """How many tokens are kept of a row that is too long."""
    refused: str = ""
    """Why the row cannot be used at all; then it has no tokens."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A row before cutting: its text, its tokens, which of them are learned."""

    text: str
    input_ids: Array
    trained: Array
    spans: tuple[Span, ...]
    refused: str = ""
    marks: tuple[str, ...] = ()
    """What is odd about the text: `special` (control tokens of this template in it), `bos` (it began with a start token); and what
    the template leaves out of the learned answers: `thought`, `call`, `words`."""
    encoding: Any = None
    skipped: int = 0
    """Tokens of the encoding that were left out at its start."""

    def places(self) -> list[tuple[int, int]]:
        """Where in the text each token stands; a token that was added at the end has no letters."""
        if self.encoding is None:
            return []
        places: list[tuple[int, int]] = self.encoding.offsets[self.skipped :]
        end = len(self.text)
        return places + [(end, end)] * (len(self.input_ids) - len(places))


_Written = tuple[str, tuple[Span, ...], tuple[str, ...]]
"""A row as text, the spans that are learned, and its marks."""


class RowTokenizer:
    """A tokenizer with its template, ready to turn conversations into tokens and labels, as of a day; today, where none is given."""

    def __init__(self, tokenizer: Any, data: DataSection, day: date | None = None) -> None:
        self.tokenizer = tokenizer
        self.data = data
        self._day = day or date.today()
        self._renderer: Renderer | None = None
        self._backend = _backend_of(tokenizer)
        self._special = special_pattern(tokenizer)

    @property
    def renderer(self) -> Renderer:
        """The template, run when the first conversation needs it: plain text can be trained without one."""
        if self._renderer is None:
            self._renderer = Renderer(self.tokenizer, neutralize=self.data.neutralize_special_tokens, day=self._day)
        return self._renderer

    def prepare(self, conversations: Sequence[Conversation]) -> None:
        """Run the template once, so that its failure is told at once and threads find it ready."""
        if any(conversations[at].text is None for at in range(min(len(conversations), 1))):
            _ = self.renderer

    def whole(self, conversations: Sequence[Conversation]) -> list[Whole]:
        """Some rows, before cutting; in one call of the tokenizer for each kind."""
        results: list[Whole | None] = [None] * len(conversations)
        for is_plain in (False, True):
            positions = [at for at, conversation in enumerate(conversations) if (conversation.text is not None) == is_plain]
            written: list[_Written] = []
            kept: list[int] = []
            for at in positions:
                try:
                    written.append(self._plain(conversations[at]) if is_plain else self._chat(conversations[at]))
                except RowRefused as refusal:
                    results[at] = _refused(str(refusal))
                    continue
                kept.append(at)
            for at, whole in zip(kept, self._encode(written, is_plain=is_plain), strict=True):
                results[at] = whole
        return [whole if whole is not None else _refused("unknown") for whole in results]

    def _plain(self, conversation: Conversation) -> _Written:
        text = conversation.text or ""
        bos = self.tokenizer.bos_token
        marks: tuple[str, ...] = ()
        if bos and text.startswith(bos):
            text = text.removeprefix(bos)  # The tokenizer puts its own in front; two would be learned as a pair.
            marks = ("bos",)
        # An end token at the end is where it belongs: none is added then.
        body = text.removesuffix(self.tokenizer.eos_token or "")
        if self._special.search(body):
            marks = (*marks, "special")
            if self.data.neutralize_special_tokens:
                text = disarmed(body, self._special) + text[len(body) :]
        return text, ((0, len(text)),), marks

    def _chat(self, conversation: Conversation) -> _Written:
        rendered = self.renderer.rendered(conversation)
        if self.data.train_on == "everything":
            spans: tuple[Span, ...] = ((0, len(rendered.text)),)
            lost = set[str]().union(*rendered.lost)
        else:
            answers = [message for message in conversation.messages if message.role == "assistant"]
            pairs = list(zip(rendered.spans, rendered.lost, answers, strict=True))
            pairs = pairs[-1:] if self.data.train_on == "last-answer" else pairs
            spans = tuple(span for span, _, answer in pairs if answer.is_learned)
            lost = set[str]().union(*(parts for _, parts, answer in pairs if answer.is_learned))
        spells = self._special.search
        has_special = any(spells(message.in_words()) or spells(message.thinking) for message in conversation.messages)
        return rendered.text, spans, (*(("special",) if has_special else ()), *sorted(lost))

    def _encode(self, written: list[_Written], *, is_plain: bool) -> Iterator[Whole]:
        if not written:
            return
        # The tokenizer's own core: what `tokenizer(text)` calls too, without turning every token into Python objects.
        encodings = self._backend.encode_batch([text for text, _, _ in written], add_special_tokens=is_plain)
        for row, encoding in zip(written, encodings, strict=True):
            yield self._plain_row(row, encoding) if is_plain else self._chat_row(row, encoding)

    def _chat_row(self, written: _Written, encoding: Any) -> Whole:
        text, spans, marks = written
        ids = np.array(encoding.ids, dtype=np.int32)
        trained = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            trained[_first_token(encoding, start, len(text)) : _first_token(encoding, end, len(text))] = True
        bos = self.tokenizer.bos_token_id
        skipped = 1 if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos else 0
        marks = (*marks, "bos") if skipped else marks
        ids, trained = ids[skipped:], trained[skipped:]
        trained[:1] = False  # Nothing comes before it, so nothing can predict it.
        return Whole(text, ids, trained, spans, marks=marks, encoding=encoding, skipped=skipped)

    def _plain_row(self, written: _Written, encoding: Any) -> Whole:
        text, spans, marks = written
        ids = np.array(encoding.ids, dtype=np.int32)
        eos = self.tokenizer.eos_token_id
        if eos is not None and text and (not len(ids) or ids[-1] != eos):
            ids = np.append(ids, np.int32(eos))
        trained = np.ones(len(ids), dtype=bool)
        trained[:1] = False
        return Whole(text, ids, trained, spans, marks=marks, encoding=encoding)

    def cut(self, whole: Whole) -> TokenizedRow:
        """A row as `data.max_length` and `data.too_long` leave it."""
        length = len(whole.input_ids)
        limit = self.data.max_length
        if whole.refused or (length > limit and self.data.too_long == "drop"):
            return TokenizedRow([], [], length, 0, 0 if length > limit else None, whole.refused)
        ids, trained = whole.input_ids[:limit], whole.trained[:limit]
        labels = np.where(trained, ids, IGNORED)
        return TokenizedRow(ids.tolist(), labels.tolist(), length, int(trained.sum()), limit if length > limit else None)


def _refused(reason: str) -> Whole:
    return Whole("", np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool), (), reason)


def _first_token(encoding: Any, place: int, length: int) -> int:
    """The first token that begins at or after a place in the text.

    A token that begins before an answer is the question's, even where it reaches into the answer: in a chat the question is
    tokenized alone, so the model never sees that token there.
    """
    token = None
    while place < length and (token := encoding.char_to_token(place)) is None:
        place += 1  # A letter that the tokenizer drops.
    if token is None:
        return len(encoding)
    num_tokens = len(encoding)
    while token < num_tokens and encoding.token_to_chars(token)[0] < place:
        token += 1
    return int(token)


def _backend_of(tokenizer: Any) -> Any:
    """The core of a tokenizer, with places that cover the text without gaps: some report words without their spaces, which
    would move the border between question and answer. Raises ModelError for a tokenizer without a core."""
    if not tokenizer.is_fast:
        raise ModelError(
            "The model's tokenizer is of the slow kind without places in the text.",
            fix="Use a model whose folder has a tokenizer.json.",
            code="MODEL-TOKENIZER",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    offsets = backend.encode("a\n\n b  c", add_special_tokens=False).offsets
    tiles = bool(offsets) and offsets[0][0] == 0 and offsets[-1][1] == 8 and all(one[1] == two[0] for one, two in pairwise(offsets))
    return backend if tiles else _without_trimming(backend)


def _without_trimming(backend: Any) -> Any:
    """The same core with places that include spaces; the tokens are the same."""
    state = json.loads(backend.to_str())

    def untrim(node: Any) -> None:
        if isinstance(node, dict):
            if "trim_offsets" in node:
                node["trim_offsets"] = False
            for inner in node.values():
                untrim(inner)
        elif isinstance(node, list):
            for inner in node:
                untrim(inner)

    untrim(state.get("post_processor"))
    untrim(state.get("pre_tokenizer"))
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(state))


# Whole datasets ------------------------------------------------------------------------------------------------------


def _in_chunks(rows: RowTokenizer, conversations: Sequence[Conversation]) -> Iterator[tuple[int, list[Whole]]]:
    """The rows in order, a few hundred at a time; the tokenizer's core works in threads while templates are rendered."""
    starts = range(0, len(conversations), _CHUNK)
    num_threads = min(4, os.cpu_count() or 1) if len(starts) > 1 else 1

    def work(start: int) -> list[Whole]:
        return rows.whole([conversations[at] for at in range(start, min(start + _CHUNK, len(conversations)))])

    rows.prepare(conversations)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize") as pool:
        waiting: deque[tuple[int, Future[list[Whole]]]] = deque()
        try:
            for start in starts:
                waiting.append((start, pool.submit(work, start)))
                if len(waiting) > num_threads:  # No more than a few chunks are held, however long the dataset is.
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def tokenize_all(
    conversations: Sequence[Conversation],
    tokenizer: Any,
    data: DataSection,
    *,
    content_hash: str = "",
    workspace: DataFolders | None = None,
    day: date | None = None,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> TokenTable:
    """All rows as tokens, as of a day; with `content_hash` and a workspace the same content is tokenized once. Raises Cancelled."""
    folder = None
    day = day or date.today()
    if workspace is not None and content_hash:
        # The hash is that of the files: another version of the parser makes other rows of them.
        settings = [TOKENS_VERSION, PARSER_VERSION, content_hash, tokenizer_state(tokenizer), data.train_on, data.neutralize_special_tokens]
        settings += [day.isoformat()] if writes_the_date(tokenizer) else []
        folder = workspace.rows_and_tokens[1] / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        if (known := TokenTable.load(folder)) is not None and len(known) == len(conversations):
            return known
    rows = RowTokenizer(tokenizer, data, day)
    ids: list[Array] = []
    trained: list[Array] = []
    lengths: list[int] = []
    refused: dict[int, str] = {}
    marks: dict[str, list[int]] = {}
    for start, chunk in _in_chunks(rows, conversations):
        stop_if(is_cancelled, "Counting tokens")
        for position, whole in enumerate(chunk, start):
            ids.append(whole.input_ids)
            trained.append(whole.trained)
            lengths.append(len(whole.input_ids))
            if whole.refused:
                refused[position] = whole.refused
            for mark in whole.marks:
                marks.setdefault(mark, []).append(position)
        on_progress(f"Tokenized {start + len(chunk):,} of {len(conversations):,} rows", (start + len(chunk)) / len(conversations))
    table = TokenTable(
        np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        np.concatenate(trained) if trained else np.zeros(0, dtype=bool),
        np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        refused,
        marks,
    )
    if workspace is not None and folder is not None:
        _keep(table, folder, workspace)
    return table


def _keep(table: TokenTable, folder: Path, workspace: DataFolders) -> None:
    """For the next time; without room for it they are made again then."""
    try:
        table.save(folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
    keep_within(workspace.rows_and_tokens)
