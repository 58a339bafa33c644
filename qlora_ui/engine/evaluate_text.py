"""Looking closely: how likely each token of a text is to base and adapter, and many prompts answered side by side.

Shapes: T tokens of the text, V words of the vocabulary.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.progress import IsCancelled, never
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import ChatService, Sampling
from qlora_ui.engine.chat_model import ChatModel


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of the text and what the model thought of it."""

    text: str
    logprob: float | None
    """Natural logarithm of its probability; None for the first, which nothing comes before."""
    rank: int | None
    """1 where the model would have chosen it."""
    instead: str = ""
    """The likeliest token."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """A text under one side."""

    side: str
    tokens: tuple[TokenScore, ...]
    perplexity: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt with every side's answer; `reference` may be empty."""

    prompt: str
    answers: dict[str, str]
    reference: str = ""


def score_text(
    service: ChatService, text: str, sides: Sequence[str] = ("base", "adapter"), messages: Sequence[Message] = ()
) -> list[TextScore]:
    """Probability of each token of `text` on each side; after `messages` it is scored as the answer to them.

    Raises QloraUiError where the text is empty or longer than the model's context.
    """
    if not text.strip():
        raise QloraUiError("There is no text.", fix="Type or paste some.", code="empty-text")
    keys = service.keys()
    scores: list[TextScore] = service.call(
        lambda model: [_score(model, side, keys[side], text, messages) for side in sides if side in keys]
    )
    return scores


def compare_prompts(
    service: ChatService,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    sides: Sequence[str] = ("base", "adapter"),
    *,
    system: str = "",
    references: Sequence[str] = (),
    is_cancelled: IsCancelled = never,
) -> Iterator[Compared]:
    """Answer each prompt on all sides in one batch with the same random numbers; yields as they come, and ends when cancelled."""
    sampling = sampling or Sampling(temperature=0)
    for index, prompt in enumerate(prompts):
        if is_cancelled():
            return
        answers = dict.fromkeys(sides, "")
        messages = [*([Message("system", system)] if system else []), Message("user", prompt)]
        for delta in service.stream(messages, sampling, sides):
            answers[delta.side] += delta.text
        yield Compared(prompt, answers, references[index] if index < len(references) else "")


def export_compared(rows: Sequence[Compared], form: Literal["csv", "jsonl", "md"]) -> str:
    """The comparison as a file's text."""
    if form == "jsonl":
        return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    sides = list(dict.fromkeys(side for row in rows for side in row.answers))
    head = ["prompt", *sides, "reference"]
    table = [[row.prompt, *[row.answers.get(side, "") for side in sides], row.reference] for row in rows]
    if form == "csv":
        out = io.StringIO(newline="")
        # A cell that begins like a formula would be run by a spreadsheet.
        safe = [[f"'{cell}" if cell[:1] in "=+-@\t\r" else cell for cell in line] for line in table]
        csv.writer(out).writerows([head, *safe])
        return out.getvalue()
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *[[_cell(text) for text in line] for line in table]]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _score(model: ChatModel, side: str, key: str, text: str, messages: Sequence[Message]) -> TextScore:
    before = model.prompt_ids(messages) if messages else []
    own: Any = model.tokenizer(text, add_special_tokens=not messages, return_offsets_mapping=True)
    ids = [*before, *own["input_ids"]]
    if len(ids) > model.context_tokens:
        raise QloraUiError(
            f"The text has {len(ids):,} tokens; this model reads at most {model.context_tokens:,}.", fix="Shorten it.", code="context-full"
        )
    pieces, done = [], 0
    for _, end in own["offset_mapping"]:
        # Tokens that share a character all point at the whole of it; the first one gets it.
        pieces.append(text[done:end])
        done = max(done, end)
    dtype = model.base.get_input_embeddings().weight.dtype
    model.switch.choose([key], dtype, model.device)
    ids_1T = torch.tensor([ids], device=model.device)
    first = max(len(before) - 1, 0)
    places = torch.arange(first, len(ids) - 1, device=model.device)
    if not len(places):
        return TextScore(side, (TokenScore(pieces[0] if pieces else "", None, None),), math.nan)
    logits_TV = model.base(input_ids=ids_1T, use_cache=False, logits_to_keep=places).logits[0].float()
    wanted_T = ids_1T[0, places + 1]
    logprobs_T = torch.log_softmax(logits_TV, -1).gather(-1, wanted_T[:, None])[:, 0]
    ranks_T = (logits_TV > logits_TV.gather(-1, wanted_T[:, None])).sum(-1) + 1
    instead = [model.tokenizer.decode([token]) for token in logits_TV.argmax(-1).tolist()]
    scored = list(zip(logprobs_T.tolist(), ranks_T.tolist(), instead, strict=True))
    unscored: list[tuple[float | None, int | None, str]] = [(None, None, "")] * (len(pieces) - len(scored))
    tokens = tuple(TokenScore(piece, *score) for piece, score in zip(pieces, [*unscored, *scored], strict=True))
    return TextScore(side, tokens, math.exp(min(-float(logprobs_T.mean()), 700.0)))
