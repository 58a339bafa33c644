"""Looking closely: how likely each token of a text is to base and adapter, and questions answered side by side.

Shapes: T tokens of the text, V words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import ADAPTER, BASE, ChatService
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.evaluate_scores import MOST_PLACES
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.comparison import Compared, Question, TokenScore
from qlora_ui.settings.sampling import Sampling


@dataclass(frozen=True, slots=True)
class TextScore:
    """A text under one side."""

    side: str
    tokens: tuple[TokenScore, ...]
    perplexity: float


def load_sides(
    service: ChatService, target: ChatTarget, beside: ChatTarget | None = None, on_progress: OnProgress = silent
) -> tuple[str, ...]:
    """Load a run's base and adapter, and another adapter of the same base beside them; returns the sides.

    What the chat has loaded already stays as it is. Raises as ChatService.load and add_adapter do.
    """
    loaded = service.loaded()
    if loaded is None or loaded.target != target:
        service.load(target, on_progress)
    sides = (BASE, ADAPTER)
    if beside is None or beside == target:
        return sides
    on_progress("Loading the other adapter", None)
    return (*sides, service.add_adapter(beside))


def compare_answers(
    service: ChatService,
    target: ChatTarget,
    questions: Sequence[Question],
    sampling: Sampling,
    sides: Sequence[str] = (BASE, ADAPTER),
    *,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> Iterator[Compared]:
    """Answer each question on all sides in one batch with the same random numbers, and score each answer under its side.

    Yields as they come. Raises Cancelled, and RunError where the chat was turned to somebody else, whose answers these would be.
    """
    for index, question in enumerate(questions):
        stop_if(is_cancelled, "The comparison")
        on_progress(f"Question {index + 1} of {len(questions)}", index / len(questions))
        messages = [*([Message("system", question.system)] if question.system else []), Message("user", question.text)]
        _refuse_another(service, target)
        answers = dict.fromkeys(sides, "")
        was_stopped = False
        try:
            for delta in service.stream(messages, sampling, sides, question.tools):
                answers[delta.side] += delta.text
                was_stopped |= delta.stopped_by == "stop"
                stop_if(is_cancelled, "The comparison")
        except QloraUiError as error:
            if error.code != "context-full":
                raise
            # The others can be answered.
            yield Compared(question, answers, problem=f"Not answered. {error.problems[0].what}")
            continue
        _refuse_another(service, target, was_stopped=was_stopped)
        scores = {
            side: score_text(service, answer, (side,), messages, question.tools)[0].tokens if answer.strip() else ()
            for side, answer in answers.items()
        }
        _refuse_another(service, target)
        yield Compared(question, answers, scores)


def score_text(
    service: ChatService,
    text: str,
    sides: Sequence[str] = (BASE, ADAPTER),
    messages: Sequence[Message] = (),
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[TextScore]:
    """Probability of each token of `text` on each side; after `messages` (and `tools`) it is scored as the answer to them.

    Raises QloraUiError where the text is empty or longer than the model's context.
    """
    if not text.strip():
        raise QloraUiError("There is no text.", fix="Type or paste some.", code="empty-text")
    keys = service.keys()
    scores: list[TextScore] = service.call(
        lambda model: [
            _score(model, side, keys[side], text, model.prompt_ids(messages, tools) if messages else []) for side in sides if side in keys
        ]
    )
    return scores


def _refuse_another(service: ChatService, target: ChatTarget, *, was_stopped: bool = False) -> None:
    loaded = service.loaded()
    if was_stopped or loaded is None or loaded.target != target:
        raise RunError(
            "The comparison ended: the chat or a run needed the model.",
            fix="Compare again when they are done; the answers so far are kept.",
            code="chat-taken",
        )


def _score(model: ChatModel, side: str, key: str, text: str, before: Sequence[int]) -> TextScore:
    own: Any = model.tokenizer(text, add_special_tokens=not before, return_offsets_mapping=True)
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
    scored: list[TokenScore] = []
    for first in range(max(len(before) - 1, 0), len(ids) - 1, MOST_PLACES):
        places = torch.arange(first, min(first + MOST_PLACES, len(ids) - 1), device=model.device)
        logits_TV = model.base(input_ids=ids_1T, use_cache=False, logits_to_keep=places).logits[0].float()
        wanted_T = ids_1T[0, places + 1]
        logprobs_T = torch.log_softmax(logits_TV, -1).gather(-1, wanted_T[:, None])[:, 0]
        ranks_T = (logits_TV > logits_TV.gather(-1, wanted_T[:, None])).sum(-1) + 1
        instead = [model.tokenizer.decode([token]) for token in logits_TV.argmax(-1).tolist()]
        scored += [TokenScore("", *score) for score in zip(logprobs_T.tolist(), ranks_T.tolist(), instead, strict=True)]
        # Gone before the next ones come.
        del logits_TV
    unscored = [TokenScore("")] * (len(pieces) - len(scored))
    tokens = tuple(replace(score, text=piece) for piece, score in zip(pieces, [*unscored, *scored], strict=True))
    known = [score.logprob for score in scored if score.logprob is not None]
    return TextScore(side, tokens, math.exp(min(-sum(known) / len(known), 700.0)) if known else math.nan)
