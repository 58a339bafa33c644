"""The data of some settings under a lens: report in tokens, any row as the trainer sees it, fixes. For page and command line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from qlora_ui.base.errors import DataError, ModelError
from qlora_ui.base.files import typed_path
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent
from qlora_ui.data.fixes import apply_fix, drops_of, flagged_positions
from qlora_ui.data.load import Conversations, load_anyway
from qlora_ui.data.report import DataReport
from qlora_ui.engine.dataset import split_rows, usable_rows
from qlora_ui.engine.lint import TokenLint, lint_tokens
from qlora_ui.engine.preview import Preview, preview_row
from qlora_ui.engine.token_table import TokenTable
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.engine.tokenizer_files import tokenizer_folder
from qlora_ui.engine.tokens import RowTokenizer, tokenize_all
from qlora_ui.models.catalogue import model_facts
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection, ModelSection


@dataclass(frozen=True, slots=True)
class Look:
    """The answer of a lens."""

    report: DataReport
    lint: TokenLint
    conversations: Conversations
    table: TokenTable


class Lens:
    """Looks at the data of settings; keeps the tokenizer and the last answer, so that stepping through rows is quick.

    May be called from several threads; one looks at a time. `may_download` lets it fetch the tokenizer (never the weights) of a
    Hub model that is not on this computer.
    """

    def __init__(self, workspace: Workspace, *, may_download: bool = False) -> None:
        self._workspace = workspace
        self._may_download = may_download
        self._lock = threading.RLock()
        self._tokenizer: tuple[ModelSection, Any] | None = None
        self._last: tuple[tuple[Any, ...], Look] | None = None

    def tokenizer(self, model: ModelSection, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Any:
        """The tokenizer of a model; raises ModelError where it cannot be had."""
        with self._lock:
            if self._tokenizer is None or self._tokenizer[0] != model:
                folder = tokenizer_folder(
                    model, self._workspace, may_download=self._may_download, on_progress=on_progress, is_cancelled=is_cancelled
                )
                self._tokenizer = (model, load_tokenizer(folder, model.template))
            return self._tokenizer[1]

    def look(self, config: RunConfig, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Look:
        """The report with counts and findings in tokens.

        Raises DataError where a source cannot be read, ModelError where there is no tokenizer or template, and Cancelled.
        """
        with self._lock:
            key = (config.model, config.data, config.eval.share, config.train.seed, _stamps(config.data), date.today())
            if self._last is None or self._last[0] != key or not all(file.is_there for file in self._last[1].conversations.files):
                self._last = (key, self._look(config, on_progress, is_cancelled))
            return self._last[1]

    def _look(self, config: RunConfig, on_progress: OnProgress, is_cancelled: IsCancelled) -> Look:
        data = config.data
        loaded = load_anyway(data, self._workspace, on_progress=on_progress, is_cancelled=is_cancelled)
        tokenizer = self.tokenizer(config.model, on_progress, is_cancelled)
        table = tokenize_all(
            loaded.conversations,
            tokenizer,
            data,
            content_hash=loaded.report.content_hash,
            workspace=self._workspace,
            on_progress=on_progress,
            is_cancelled=is_cancelled,
        )
        is_plain = len(loaded.conversations) > 0 and loaded.conversations[0].text is not None
        ends = is_plain or RowTokenizer(tokenizer, data).renderer.end_is_token
        overlap, context = _overlap(table, config), _context_tokens(config.model, self._workspace)
        lint = lint_tokens(table, loaded.conversations, data, end_is_token=ends, overlap=overlap, context_tokens=context)
        return Look(loaded.report.with_tokens(lint.tokens, lint.findings), lint, loaded.conversations, table)

    def report(self, config: RunConfig, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> DataReport:
        """`look`'s report."""
        return self.look(config, on_progress, is_cancelled).report

    def preview(self, config: RunConfig, position: int) -> Preview:
        """The row at a position (from 0) as tokens, through the function that training calls; raises DataError, ModelError."""
        look = self.look(config)
        if not 0 <= position < len(look.conversations):
            raise DataError(
                f"There is no row {position + 1}; the data has {len(look.conversations)}.", fix="Choose another.", code="DATA-ROW"
            )
        return preview_row(look.conversations[position], self.tokenizer(config.model), config.data)

    def worst(self, config: RunConfig) -> list[int]:
        """Positions of rows, the most troubled first: what stepping through them shows."""
        return [int(row) for row in self.look(config).lint.worst]

    def fix(self, config: RunConfig, action: Mapping[str, Any]) -> dict[str, Any]:
        """Do a finding's `fix_action`; returns the settings to change (`{"data.sources": ...}`). The user's file stays as it is.

        Raises DataError where nothing would be left.
        """
        positions = None
        if action.get("action") in ("drop", "drop-all"):
            look, positions = self.look(config), list[int]()
            for drop in drops_of(action):
                flagged = look.lint.flagged.get(str(drop.get("code", "")))
                positions += flagged_positions(look.conversations, drop) if flagged is None else flagged.tolist()
        return apply_fix(config.data, self._workspace, action, positions=positions)


def _context_tokens(model: ModelSection, workspace: Workspace) -> int | None:
    """How long a text the model was made for; None where only its tokenizer is here."""
    try:
        facts = model_facts(model.id, model.revision, workspace)
    except ModelError:
        return None
    return facts.context_tokens if facts is not None else None


def _overlap(table: TokenTable, config: RunConfig) -> np.ndarray[Any, Any]:
    """Held-back rows whose double is trained on."""
    train, held = split_rows(np.flatnonzero(usable_rows(table, config.data)), table, config.eval.share, config.train.seed)
    if not len(held):
        return held
    copies = table.groups(0)
    return np.asarray(held[np.isin(copies[held], copies[train])])


def _stamps(data: DataSection) -> tuple[tuple[int, int], ...]:
    """Change times and sizes of the files: one that was edited is looked at anew."""
    stamps = []
    for source in data.sources:
        try:
            stat = typed_path(source.id).stat()
            stamps.append((stat.st_mtime_ns, stat.st_size))
        except (OSError, ValueError):
            stamps.append((0, 0))
    return tuple(stamps)
