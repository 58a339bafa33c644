"""One row as the trainer will see it: every token, learned or not, through the function that training calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_ui.data.rows import Conversation
from qlora_ui.engine.tokens import IGNORED, RowTokenizer
from qlora_ui.settings.sections import DataSection


@dataclass(frozen=True, slots=True)
class PreviewToken:
    """A token for the eye."""

    text: str
    """Its part of the text; empty for the second and later tokens of one letter (an emoji takes several)."""
    is_trained: bool
    is_special: bool
    id: int
    is_cut: bool = False
    """Behind the cut, so not part of the batch."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A row as a sequence of tokens."""

    tokens: tuple[PreviewToken, ...]
    """All of the row, the part behind the cut included."""
    cut_at: int | None
    """How many tokens are kept of a row that is too long; 0 where it is left out."""
    input_ids: tuple[int, ...]
    """What the batch holds, cut."""
    labels: tuple[int, ...]
    text: str
    num_tokens: int
    """Before cutting."""
    num_kept: int
    num_trained: int
    """Of the kept ones."""
    trains_end: bool
    """Whether an end token is learned, so that the model learns to stop."""
    row: int
    source: str
    refused: str = ""
    """Why the row is not used at all."""

    @property
    def trained_share(self) -> float:
        """Share of the kept tokens that are learned."""
        return self.num_trained / self.num_kept if self.num_kept else 0.0


def preview_row(conversation: Conversation, tokenizer: Any, data: DataSection) -> Preview:
    """A conversation as tokens with what is learned, cut as a run with these settings cuts it."""
    rows = RowTokenizer(tokenizer, data)
    whole = rows.whole([conversation])[0]
    cut = rows.cut(whole)
    special = set(tokenizer.all_special_ids) | {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    num_kept = len(cut.input_ids)
    tokens = []
    reached = 0
    for position, (token, (start, end), trained) in enumerate(
        zip(whole.input_ids.tolist(), whole.places(), whole.trained.tolist(), strict=True)
    ):
        shown = whole.text[max(start, reached) : end] or (tokenizer.convert_ids_to_tokens(token) if start == end else "")
        reached = max(reached, end)
        tokens.append(PreviewToken(shown, trained, token in special, token, position >= num_kept))
    trained_ids = {label for label in cut.labels if label != IGNORED}
    ends = trained_ids & special
    if conversation.text is None and not cut.refused:
        last = tokenizer.convert_tokens_to_ids(rows.renderer.end.strip()) if rows.renderer.end_is_token else None
        trains_end = last in trained_ids if last is not None else bool(ends)
    else:
        trains_end = bool(ends)
    return Preview(
        tokens=tuple(tokens),
        cut_at=cut.cut_at,
        input_ids=tuple(cut.input_ids),
        labels=tuple(cut.labels),
        text=whole.text,
        num_tokens=cut.num_tokens,
        num_kept=num_kept,
        num_trained=cut.num_trained,
        trains_end=trains_end,
        row=conversation.row,
        source=conversation.source,
        refused=cut.refused,
    )
