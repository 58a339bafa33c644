"""Answers token by token: what is new of each prompt is computed, then one token of every side at a time.

Shapes: B sides answered at once, V words of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qlora_ui.base.errors import ModelError, QloraUiError
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.chat_step import ForwardPass, keys_of
from qlora_ui.engine.decode import NO_TOKEN, GrowingText, Noise, choose_tokens
from qlora_ui.settings.sampling import Sampling

BUCKET_TOKENS = {"cuda": 1024, "cpu": 256}
"""Slots of the cache at first; a step attends to all of them, a new size means new graphs."""
SHARE_S = 1.0
"""While others wait for the card, an answer goes on for this long between two of their steps."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one side's answer; the last one of a side has `is_done`, `stopped_by` and the final numbers."""

    side: str
    text: str
    is_done: bool = False
    num_tokens: int = 0
    tokens_per_s: float = 0.0
    """Of this side, from its first token on."""
    first_token_s: float = 0.0
    """From the request to the first token."""
    stopped_by: str = ""
    """`end` (the model was done), `length` (max_tokens), `context` (its memory is full) or `stop` (the user)."""
    seed: int = 0
    """Seed of the answer, drawn where none was given."""


@dataclass(slots=True)
class _Side:
    """A side while it answers."""

    name: str
    key: str
    ids: list[int]
    row: int
    text: GrowingText
    num_tokens: int = 0
    stopped_by: str = ""
    first_at: float = 0.0


class Answering:
    """Answers prompts on a model; must be called inside `torch.inference_mode()` and in the thread that owns the model."""

    def __init__(self, model: ChatModel, cache: ChatCache, forward: ForwardPass, pass_on: Callable[[], None] = lambda: None) -> None:
        self.model = model
        self.cache = cache
        self.forward = forward
        self.pass_on = pass_on
        """Called now and then, so that others who wait for the card get a turn."""

    def answer(
        self,
        prompts: Mapping[str, Sequence[int]],
        keys: Mapping[str, str],
        sampling: Sampling,
        emit: Callable[[Delta], None],
        is_stopped: Callable[[], bool] = lambda: False,
        *,
        began: float | None = None,
        known: Sequence[str] = (),
    ) -> None:
        """Answer each side's prompt (tokens) with its adapter (`keys`); every piece of text goes to `emit`.

        `known` are all adapters that may be asked; each has a row in the cache, so that graphs stay
        valid whoever is asked. Raises QloraUiError where
        a prompt fills the model's context.
        """
        context = self.model.context_tokens
        longest = max(map(len, prompts.values()))
        _check_context(longest, context)
        names = keys_of(list(prompts))
        # Room for the whole answer at once where it is short: every growth costs a copy and new graphs.
        bucket = BUCKET_TOKENS[self.model.device.type]
        rows = list(dict.fromkeys([*known, *(keys[name] for name in names)]))
        self.cache.reserve(rows, longest + min(sampling.max_tokens, bucket))
        row_of = {row.key: index for index, row in enumerate(self.cache.rows)}
        sides = [_Side(name, keys[name], list(prompts[name]), row_of[keys[name]], GrowingText(self.model.tokenizer)) for name in names]
        self._began = time.perf_counter() if began is None else began
        noise = Noise(sampling, min(sampling.max_tokens, context), self.model.device)
        self._seed, self._emit, self._is_stopped, self._sampling = noise.seed, emit, is_stopped, sampling
        logits_BV = self._prefill(sides, [side.ids for side in sides])
        if logits_BV is None:
            for side in sides:
                self._end(side, "stop")
            return
        if not bool(torch.isfinite(logits_BV).all()):
            raise self._not_a_number()
        self._decode(sides, logits_BV, noise)

    def _prefill(self, sides: Sequence[_Side], texts: Sequence[list[int]]) -> torch.Tensor | None:
        """Compute what is new of each side's text; the logits after it, or None where the user stopped it."""
        logits: list[torch.Tensor | None] = [None] * len(sides)
        # One for all: the model takes the factors of the longest text of a pass.
        is_long = self._is_long(max(map(len, texts)))
        for side in sides:
            self.cache.turn(self.cache.rows[side.row], is_long=is_long)
        todo = [ids[self.cache.roll_back(self.cache.rows[side.row], ids) :] for side, ids in zip(sides, texts, strict=True)]
        while any(todo):
            if self._is_stopped():
                return None
            parts = [ids[: self.forward.longest - is_long] for ids in todo]
            out_BV = self._run(sides, parts)
            for index, part in enumerate(parts):
                todo[index] = todo[index][len(part) :]
                if part and not todo[index]:
                    logits[index] = out_BV[index].clone()
        blank = next(row for row in logits if row is not None)
        return torch.stack([blank if row is None else row for row in logits])

    def _is_long(self, num_tokens: int) -> bool:
        """Whether a text of so many tokens is turned by a longrope model's factors for long ones."""
        return self.forward.long_from is not None and num_tokens > self.forward.long_from

    def _decode(self, sides: Sequence[_Side], logits_BV: torch.Tensor, noise: Noise) -> None:
        shared_at = time.perf_counter()
        live = list(sides)
        for index in range(self._sampling.max_tokens):
            chosen = choose_tokens(logits_BV, self._sampling, noise.at(index)).tolist()
            for side, token in zip(live, chosen, strict=True):
                if not side.stopped_by:
                    if token == NO_TOKEN:
                        raise self._not_a_number()
                    self._take(side, token, is_last=index + 1 >= self._sampling.max_tokens)
            if all(side.stopped_by for side in live):
                return
            if self.model.device.type == "cpu":
                # On a card a second row is free and a new shape is not; on a CPU it is the other way round.
                kept = [place for place, side in enumerate(live) if not side.stopped_by]
                chosen, live = [chosen[place] for place in kept], [live[place] for place in kept]
            if time.perf_counter() - shared_at > SHARE_S:
                self.pass_on()
                shared_at = time.perf_counter()
            longest = max(len(self.cache.rows[side.row].tokens) for side in live)
            self.cache.reserve([row.key for row in self.cache.rows], longest + 1)
            parts = [[] if side.stopped_by else [token] for side, token in zip(live, chosen, strict=True)]
            rows = [self.cache.rows[side.row] for side in live]
            if self._is_long(longest + 1) and not rows[0].is_long:
                # From here on the model turns by other factors: the keys so far are of no use beside new queries.
                again = self._prefill(live, [[*row.tokens, *part] if part else [] for row, part in zip(rows, parts, strict=True)])
                if again is None:
                    for side in live:
                        if not side.stopped_by:
                            self._end(side, "stop")
                    return
                logits_BV = again
            else:
                logits_BV = self._run(live, parts)

    def _not_a_number(self) -> ModelError:
        """The error to raise; the cache is emptied, as one NaN in it would spoil every answer to come."""
        self.cache.wipe()
        return ModelError("The model answers with numbers that are none (NaN).", fix="Choose fp32 or bf16 arithmetic.", code="nan")

    def _run(self, sides: Sequence[_Side], parts: Sequence[list[int]]) -> torch.Tensor:
        rows = [self.cache.rows[side.row] for side in sides]
        starts = [len(row.tokens) for row in rows]
        logits_BV = self.forward.run([side.key for side in sides], parts, starts, [side.row for side in sides], is_long=rows[0].is_long)
        for row, part in zip(rows, parts, strict=True):
            row.tokens += part
        return logits_BV

    def _take(self, side: _Side, token: int, *, is_last: bool) -> None:
        """Give the user the text of a new token, and see whether the answer ends with it."""
        side.num_tokens += 1
        side.first_at = side.first_at or time.perf_counter()
        if token in self.model.stop_ids:
            self._end(side, "end")
            return
        text = side.text.push(token)
        if text:
            self._emit(replace(self._state(side), text=text))
        if self._is_stopped():
            self._end(side, "stop")
        elif is_last:
            self._end(side, "length")
        elif len(self.cache.rows[side.row].tokens) + 1 >= self.model.context_tokens:
            self._end(side, "context")

    def _end(self, side: _Side, reason: str) -> None:
        side.stopped_by = reason
        self._emit(replace(self._state(side), text=side.text.finish(), is_done=True, stopped_by=reason))

    def _state(self, side: _Side) -> Delta:
        seconds = time.perf_counter() - side.first_at
        speed = (side.num_tokens - 1) / seconds if side.num_tokens > 1 and seconds > 0 else 0.0
        first = side.first_at - self._began if side.first_at else 0.0
        return Delta(side.name, "", num_tokens=side.num_tokens, tokens_per_s=speed, first_token_s=first, seed=self._seed)


def _check_context(num_tokens: int, context_tokens: int) -> None:
    if num_tokens >= context_tokens:
        raise QloraUiError(
            f"The conversation has {num_tokens:,} tokens; this model reads at most {context_tokens:,}.",
            why="Everything said so far is read again at every turn.",
            fix="Clear the conversation, take the last turns back, or shorten the message.",
            code="context-full",
        )
