"""Talking to a base model and its adapters: one thread that generates, one 4-bit model, a cache that outlives the turn.

Shapes: B sides, V words of the vocabulary.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from qlora_ui.base.errors import ModelError, QloraUiError
from qlora_ui.base.files import size_of_tree
from qlora_ui.base.progress import OnProgress, silent
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat_adapters import BASE
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel, out_of_memory_in_words
from qlora_ui.engine.chat_step import ForwardPass, keys_of
from qlora_ui.engine.chat_targets import ChatTarget, adapter_folder, target_config
from qlora_ui.engine.decode import GrowingText, Noise, Sampling, choose_tokens
from qlora_ui.models.catalogue import find_model_folder
from qlora_ui.runs.card import Card, Hold
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

__all__ = ["ADAPTER", "BASE", "ChatService", "ChatTarget", "Delta", "Loaded", "Sampling"]

ADAPTER = "adapter"
"""The side of the target's own adapter; other loaded adapters are sides by the name that `add_adapter` returns."""
BUCKET_TOKENS = {"cuda": 1024, "cpu": 256}
"""Slots of the cache at first; a step attends to all of them, a new size means new graphs."""
SHARE_S = 1.0
"""While others wait for the card, an answer goes on for this long between two of their steps."""

Asked = Sequence[Message] | Mapping[str, Sequence[Message]]
"""One conversation for all sides, or each side's own."""


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


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the chat has in memory."""

    target: ChatTarget
    name: str
    sides: tuple[str, ...]
    context_tokens: int
    num_bytes: int
    device: str
    is_captured: bool
    reason: str
    """Why steps are not captured as CUDA graphs; empty where they are."""


@dataclass(slots=True)
class _Side:
    """A side while it answers."""

    name: str
    ids: list[int]
    row: int
    text: GrowingText
    num_tokens: int = 0
    stopped_by: str = ""
    first_at: float = 0.0


@dataclass(slots=True)
class _Request:
    sides: tuple[str, ...]
    messages: Mapping[str, Sequence[Message]]
    sampling: Sampling
    out: queue.SimpleQueue[Delta | None]
    stopped: threading.Event
    began: float


class ChatService:
    """One chat model for the whole app; every method may be called from any thread.

    All torch work happens in one thread that lives as long as the service: CUDA graphs are kept for each thread.
    """

    def __init__(self, workspace: Workspace, card: Card) -> None:
        self._workspace = workspace
        self._card = card
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chat")
        self._hold: Hold | None = None
        self._model: ChatModel | None = None
        self._cache: ChatCache | None = None
        self._pass: ForwardPass | None = None
        self._base_key: Any = None
        self._target: ChatTarget | None = None
        self._keys: dict[str, str] = {}
        """Key of the adapter that a side stands for."""
        self._loaded: Loaded | None = None
        self._current: threading.Event | None = None

    # Loading -----------------------------------------------------------------------------------------------------

    def load(self, target: ChatTarget, on_progress: OnProgress = silent) -> Loaded:
        """Make the target ready to talk to; an adapter of the base that is loaded already is swapped in within a second.

        Takes the card (RunError `card-busy` where somebody else's model leaves no room). Raises ModelError where the base or
        the adapter is missing, refused, or they do not fit each other.
        """
        self.stop()
        return self._thread.submit(self._load, target, on_progress).result()

    def add_adapter(self, target: ChatTarget) -> str:
        """Load a second adapter (or checkpoint) of the same base beside the first; returns the side to ask for."""
        return self._thread.submit(self._add, target).result()

    def loaded(self) -> Loaded | None:
        """What is in memory; None where nothing is."""
        return self._loaded

    def unload(self) -> int:
        """Stop, free the model and the card; returns the bytes that were freed."""
        self.stop()
        return self._thread.submit(self._unload).result()

    def close(self) -> None:
        """Unload and end the thread; for the end of the app."""
        self.unload()
        self._thread.shutdown()

    # Answering ---------------------------------------------------------------------------------------------------

    def stream(self, messages: Asked, sampling: Sampling | None = None, sides: Sequence[str] = (ADAPTER,)) -> Iterator[Delta]:
        """Answer a conversation on each side, piece by piece; leaving the loop stops the answer.

        Sides are `base`, `adapter` and names from `add_adapter`; they are answered in one batch wherever the adapters allow.
        Raises QloraUiError where nothing is loaded or the conversation is longer than the model's context.
        """
        unknown = [side for side in sides if side not in (self._loaded.sides if self._loaded else ())]
        if unknown or not sides:
            raise QloraUiError(
                f"There is no “{unknown[0]}” to talk to." if unknown else "Nobody was asked.",
                fix="Load a model or a run first.",
                code="chat-not-loaded",
            )
        own = messages if isinstance(messages, Mapping) else dict.fromkeys(sides, messages)
        stopped = threading.Event()
        self._current = stopped
        request = _Request(tuple(sides), own, sampling or Sampling(), queue.SimpleQueue(), stopped, time.perf_counter())
        return self._deltas(request, self._thread.submit(self._answer, request))

    def stop(self) -> None:
        """End the answer that is being given, within a token."""
        if self._current is not None:
            self._current.set()

    def count_tokens(self, messages: Sequence[Message]) -> tuple[int, int]:
        """(tokens of the conversation, tokens that the model can read); (0, 0) where nothing is loaded."""
        model = self._model
        return (len(model.prompt_ids(messages)), model.context_tokens) if model else (0, 0)

    def call(self, work: Callable[[ChatModel], Any]) -> Any:
        """Run `work` on the loaded model in the generating thread and return its result; for scoring and comparing."""
        return self._thread.submit(self._call, work).result()

    @staticmethod
    def _deltas(request: _Request, done: Future[None]) -> Iterator[Delta]:
        try:
            while (delta := request.out.get()) is not None:
                yield delta
            done.result()
        finally:
            # Also when the page goes away; it must not wait here, the server's own thread runs this.
            request.stopped.set()

    # In the generating thread --------------------------------------------------------------------------------------

    def _load(self, target: ChatTarget, on_progress: OnProgress) -> Loaded:
        config = target_config(target, self._workspace)
        folder = adapter_folder(target, self._workspace)
        base_key = (config.model, config.quant, config.launch.device)
        if self._model is None or base_key != self._base_key:
            self._unload()
            self._take_card(config, target)
            try:
                self._model = ChatModel.load(config, self._workspace, on_progress)
            finally:
                if self._model is None:
                    self._give_card()
            self._base_key = base_key
            self._new_cache()
        assert self._model is not None
        for side in list(self._keys):
            if side != BASE:
                self._forget(side)
        self._keys = {BASE: BASE}
        if folder is not None:
            on_progress("Loading the adapter", None)
            self._model.add_adapter(ADAPTER, folder)
            self._keys[ADAPTER] = ADAPTER
            self._rebind()
        self._target = target
        return self._describe()

    def _add(self, target: ChatTarget) -> str:
        if self._model is None or self._target is None:
            raise QloraUiError("No model is loaded.", fix="Load one first.", code="chat-not-loaded")
        config = target_config(target, self._workspace)
        folder = adapter_folder(target, self._workspace)
        if folder is None or (config.model, config.quant, config.launch.device) != self._base_key:
            raise ModelError(
                "This adapter belongs to another base model.",
                fix="Compare adapters of one base, with equal 4-bit settings.",
                code="other-base",
            )
        side = target.label
        # PEFT makes the name part of module paths, where a dot would split it.
        key = f"more{len(self._keys)}"
        if side not in self._keys:
            self._model.add_adapter(key, folder)
            self._keys[side] = key
            self._rebind()
            self._describe()
        return side

    def _forget(self, side: str) -> None:
        assert self._model is not None and self._cache is not None
        key = self._keys.pop(side)
        self._model.remove_adapter(key)
        self._cache.forget(key)
        self._rebind()

    def _rebind(self) -> None:
        """Adapters have come or gone: graphs hold their addresses, so they are made anew."""
        assert self._model is not None and self._cache is not None
        if self._pass is not None:
            self._pass.forget_graphs()
        capture = self._model.device.type == "cuda"
        self._pass = ForwardPass(self._model.base, self._cache, self._model.switch, self._model.device, capture=capture)

    def _new_cache(self) -> None:
        assert self._model is not None
        self._cache = ChatCache(self._model.num_layers, self._model.context_tokens, BUCKET_TOKENS[self._model.device.type])
        self._rebind()

    def _describe(self) -> Loaded:
        assert self._model is not None and self._target is not None and self._pass is not None
        self._loaded = Loaded(
            target=self._target,
            name=self._target.label,
            sides=tuple(self._keys),
            context_tokens=self._model.context_tokens,
            num_bytes=self._model.num_bytes,
            device=torch.cuda.get_device_name(self._model.device) if self._model.device.type == "cuda" else "CPU",
            is_captured=not self._pass.reason,
            reason=self._pass.reason,
        )
        return self._loaded

    def _unload(self) -> int:
        model, cache = self._model, self._cache
        self._loaded = self._target = self._base_key = None
        self._keys = {}
        if model is None or cache is None:
            self._give_card()
            return 0
        on_card = model.device.type == "cuda"
        before = torch.cuda.memory_allocated(model.device) if on_card else model.num_bytes + cache.num_bytes
        device = model.device
        if self._pass is not None:
            self._pass.forget_graphs()
        self._model = self._cache = self._pass = None
        del cache
        model.free()
        self._give_card()
        return before - torch.cuda.memory_allocated(device) if on_card else before

    def _take_card(self, config: RunConfig, target: ChatTarget) -> None:
        beside = ("training", "evaluation", "export") if self._fits_beside(config) else ()
        self._hold = self._card.hold("chat", target.label, beside=beside, release=self._let_go)

    def _let_go(self) -> None:
        """Somebody else needs the card; it is free as soon as the current token is."""
        self.stop()
        self._thread.submit(self._unload)

    def _fits_beside(self, config: RunConfig) -> bool:
        """Whether free memory holds the model besides what is there: half of a 16-bit file covers 4 bits, embeddings, cache."""
        folder = find_model_folder(config.model.id, config.model.revision, self._workspace)
        if folder is None:
            return False
        on_card = torch.cuda.is_available() and config.launch.device != "cpu"
        free = torch.cuda.mem_get_info()[0] if on_card else psutil.virtual_memory().available
        return bool(free > (0.5 if on_card else 1.5) * size_of_tree(folder) + 512 * 2**20)

    def _give_card(self) -> None:
        if self._hold is not None:
            self._hold.give_back()
            self._hold = None

    def _call(self, work: Callable[[ChatModel], Any]) -> Any:
        if self._model is None:
            raise QloraUiError("No model is loaded.", fix="Load one first.", code="chat-not-loaded")
        with self._card.turns.turn(), torch.inference_mode(), out_of_memory_in_words("The text is too long for the card."):
            return work(self._model)

    def _answer(self, request: _Request) -> None:
        try:
            model = self._model
            if model is None:
                raise QloraUiError("The model was unloaded.", fix="Load it again.", code="chat-not-loaded")
            keys = [self._keys[side] for side in request.sides]
            groups = [list(request.sides)] if model.switch.can_share(keys) else [[side] for side in request.sides]
            with self._card.turns.turn(), torch.inference_mode(), out_of_memory_in_words("The conversation is too long for the card."):
                for group in groups:
                    self._answer_together(request, group)
        finally:
            request.out.put(None)

    def _answer_together(self, request: _Request, names: Sequence[str]) -> None:
        model, cache, forward = self._model, self._cache, self._pass
        assert model is not None and cache is not None and forward is not None
        names = keys_of(names)
        prompts = [model.prompt_ids(request.messages[name]) for name in names]
        longest = max(map(len, prompts))
        _check_context(longest, model.context_tokens)
        # Room for the whole answer at once where it is short: every growth costs a copy and new graphs.
        cache.reserve(self._row_keys(names), longest + min(request.sampling.max_tokens, BUCKET_TOKENS[model.device.type]))
        by_key = {row.key: index for index, row in enumerate(cache.rows)}
        sides = [_Side(name, ids, by_key[self._keys[name]], GrowingText(model.tokenizer)) for name, ids in zip(names, prompts, strict=True)]
        noise = Noise(request.sampling, min(request.sampling.max_tokens, model.context_tokens), model.device)
        logits_BV = self._prefill(request, sides)
        if logits_BV is None:
            for side in sides:
                self._end(request, side, "stop", noise.seed)
            return
        if not bool(torch.isfinite(logits_BV).all()):
            raise ModelError("The model answers with numbers that are none (NaN).", fix="Choose fp32 or bf16 arithmetic.", code="nan")
        self._decode(request, sides, logits_BV, noise)

    def _row_keys(self, names: Sequence[str]) -> list[str]:
        """Rows to keep. Captured passes have one shape, so on a card only those asked for; else all that can be asked again."""
        asked = [self._keys[name] for name in names]
        if self._cache is None or self._pass is None or not self._pass.reason:
            return asked
        known = set(self._keys.values())
        return [*[row.key for row in self._cache.rows if row.key in known - set(asked)], *asked]

    def _prefill(self, request: _Request, sides: Sequence[_Side]) -> torch.Tensor | None:
        """Compute what is new of each prompt; the logits after it, or None where the user stopped it."""
        cache, forward = self._cache, self._pass
        assert cache is not None and forward is not None
        logits: list[torch.Tensor | None] = [None] * len(sides)
        todo = [side.ids[cache.roll_back(cache.rows[side.row], side.ids) :] for side in sides]
        while any(todo):
            if request.stopped.is_set():
                return None
            parts = [ids[: forward.longest] for ids in todo]
            starts = [len(cache.rows[side.row].tokens) for side in sides]
            out_BV = forward.run([self._keys[side.name] for side in sides], parts, starts, [side.row for side in sides])
            for index, (side, part) in enumerate(zip(sides, parts, strict=True)):
                cache.rows[side.row].tokens += part
                todo[index] = todo[index][len(part) :]
                if part and not todo[index]:
                    logits[index] = out_BV[index].clone()
        return torch.stack([row for row in logits if row is not None])

    def _decode(self, request: _Request, sides: Sequence[_Side], logits_BV: torch.Tensor, noise: Noise) -> None:
        model, cache, forward = self._model, self._cache, self._pass
        assert model is not None and cache is not None and forward is not None
        shared_at = time.perf_counter()
        live = list(sides)
        for index in range(request.sampling.max_tokens):
            chosen = choose_tokens(logits_BV, request.sampling, noise.at(index)).tolist()
            for side, token in zip(live, chosen, strict=True):
                if not side.stopped_by:
                    self._take(request, side, token, index, noise.seed)
            if all(side.stopped_by for side in live):
                return
            if model.device.type == "cpu":
                # On a card a second row is free and a new shape is not; on a CPU it is the other way round.
                kept = [place for place, side in enumerate(live) if not side.stopped_by]
                chosen, live = [chosen[place] for place in kept], [live[place] for place in kept]
            if time.perf_counter() - shared_at > SHARE_S:
                self._card.turns.pass_on()
                shared_at = time.perf_counter()
            longest = max(len(cache.rows[side.row].tokens) for side in live)
            cache.reserve([row.key for row in cache.rows], longest + 1)
            parts = [[] if side.stopped_by else [token] for side, token in zip(live, chosen, strict=True)]
            starts = [len(cache.rows[side.row].tokens) for side in live]
            logits_BV = forward.run([self._keys[side.name] for side in live], parts, starts, [side.row for side in live])
            for side, part in zip(live, parts, strict=True):
                cache.rows[side.row].tokens += part

    def _take(self, request: _Request, side: _Side, token: int, index: int, seed: int) -> None:
        """Give the user the text of a new token, and see whether the answer ends with it."""
        model, cache = self._model, self._cache
        assert model is not None and cache is not None
        now = time.perf_counter()
        side.num_tokens += 1
        side.first_at = side.first_at or now
        if token in model.stop_ids:
            self._end(request, side, "end", seed)
            return
        text = side.text.push(token)
        if text:
            request.out.put(replace(self._state(request, side, seed, now), text=text))
        if request.stopped.is_set():
            self._end(request, side, "stop", seed)
        elif index + 1 >= request.sampling.max_tokens:
            self._end(request, side, "length", seed)
        elif len(cache.rows[side.row].tokens) + 1 >= model.context_tokens:
            self._end(request, side, "context", seed)

    def _end(self, request: _Request, side: _Side, reason: str, seed: int) -> None:
        side.stopped_by = reason
        state = self._state(request, side, seed, time.perf_counter())
        request.out.put(replace(state, text=side.text.finish(), is_done=True, stopped_by=reason))

    @staticmethod
    def _state(request: _Request, side: _Side, seed: int, now: float) -> Delta:
        seconds = now - side.first_at
        speed = (side.num_tokens - 1) / seconds if side.num_tokens > 1 and seconds > 0 else 0.0
        first = side.first_at - request.began if side.first_at else 0.0
        return Delta(side.name, "", num_tokens=side.num_tokens, tokens_per_s=speed, first_token_s=first, seed=seed)


def _check_context(num_tokens: int, context_tokens: int) -> None:
    if num_tokens >= context_tokens:
        raise QloraUiError(
            f"The conversation has {num_tokens:,} tokens; this model reads at most {context_tokens:,}.",
            why="Everything said so far is read again at every turn.",
            fix="Clear the chat, remove early turns, or shorten the message.",
            code="context-full",
        )
