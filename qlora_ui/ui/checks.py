"""The precise check of a run's memory, asked from a page: in the background, one at a time, each question once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from qlora_ui.base.progress import IsCancelled, OnProgress
from qlora_ui.estimate.check import CheckedMemory, check_memory
from qlora_ui.ui.inspection import Inquiry, Pending

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

SECTIONS = ("model", "quant", "lora", "train", "eval", "launch")
"""Sections whose options can change memory; of the data it is the longest length."""


class Checks:
    """Questions and answers by the settings that decide memory."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._inquiry: Inquiry[CheckedMemory] = Inquiry("memory-check", on_news)
        self._asked: set[Hashable] = set()
        self._skipped: set[Hashable] = set()

    def begin(self, draft: Draft, *, edited_at: float | None = None) -> Pending[CheckedMemory] | None:
        """Start the check of these settings, or find its answer; None while the model's shape is not known."""
        config, facts = draft.config, draft.facts
        if config is None or facts is None:
            return None
        device, shape = draft.device, draft.shape

        def work(told: OnProgress, is_cancelled: IsCancelled) -> CheckedMemory:
            return check_memory(facts, config, device, shape, told, is_cancelled)

        key = self._key(draft)
        self._asked.add(key)
        return self._inquiry.ask(key, work, patience_s=0.0, edited_at=edited_at)

    def of(self, draft: Draft, *, is_wanted: bool = False) -> Pending[CheckedMemory] | None:
        """The check of these settings, if somebody asked for it; where it `is_wanted` it is begun, unless the user has skipped it."""
        if draft.config is None:
            return None
        key, before_counting = self._key(draft), self._key(draft, is_counted=False)
        if key != before_counting and before_counting in self._asked:
            # It was asked of the longest row allowed, and tokens have been counted since: it is meant of the longest that there is.
            self._asked = self._asked - {before_counting} | {key}
        return self.begin(draft, edited_at=draft.edited_at) if key in self._asked or (is_wanted and key not in self._skipped) else None

    def skip(self, draft: Draft) -> None:
        """Give the check up that is being made; these settings are only checked again when asked."""
        self._inquiry.stop()
        self._inquiry.forget_stopped()
        self._asked.clear()
        if draft.config is not None:
            self._skipped.add(self._key(draft))

    @staticmethod
    def _key(draft: Draft, *, is_counted: bool = True) -> Hashable:
        config = draft.config
        assert config is not None
        longest = draft.shape.longest_tokens if is_counted and draft.shape is not None else None
        card = (draft.device.name, draft.device.context_bytes, draft.device.grows_segments)
        return (*(getattr(config, name).model_dump_json() for name in SECTIONS), config.data.max_length, longest, card)
