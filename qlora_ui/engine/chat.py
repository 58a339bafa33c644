"""Talking to a base model and its adapters: one thread that generates, one 4-bit model, a cache that outlives the turn.

Shapes: B sides, V words of the vocabulary.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import psutil
import torch

from qlora_ui.base.errors import ModelError, QloraUiError, RunError
from qlora_ui.base.progress import OnProgress, silent
from qlora_ui.base.units import MIB
from qlora_ui.data.rows import Message
from qlora_ui.engine.adapter import noted_weights
from qlora_ui.engine.chat_adapters import BASE
from qlora_ui.engine.chat_answer import BUCKET_TOKENS, Answering, Delta
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel, out_of_memory_in_words
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.models.catalogue import find_model_folder
from qlora_ui.models.folder import read_folder
from qlora_ui.models.weights_mark import replaced_words, weights_mark
from qlora_ui.runs.card import Card, Hold
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder, target_config
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling

__all__ = ["ADAPTER", "BASE", "ChatService", "Delta", "Loaded"]

P = ParamSpec("P")
R = TypeVar("R")

ADAPTER = "adapter"
"""The side of the target's own adapter; other loaded adapters are sides by the name that `add_adapter` returns."""
Asked = Sequence[Message] | Mapping[str, Sequence[Message]]
"""One conversation for all sides, or each side's own."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the chat has in memory."""

    target: ChatTarget
    name: str
    sides: tuple[str, ...]
    context_tokens: int
    num_bytes: int
    device: str
    reason: str
    """Why steps are not captured as CUDA graphs; empty where they are."""
    warning: str = ""
    """Where the base is not the one that the adapter was trained on."""


@dataclass(slots=True)
class _Request:
    sides: tuple[str, ...]
    messages: Mapping[str, Sequence[Message]]
    sampling: Sampling
    out: queue.SimpleQueue[Delta | None]
    stopped: threading.Event
    began: float
    tools: Sequence[Mapping[str, Any]]


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
        self._base_mark = ""
        """Of its weights as they were loaded; the files may be replaced meanwhile."""
        self._warning = ""
        self._target: ChatTarget | None = None
        self._keys: dict[str, str] = {}
        """Key of the adapter that a side stands for."""
        self._loaded: Loaded | None = None
        self._to_stop: set[threading.Event] = set()
        """Of every answer that is being given or waits for its turn."""

    # Loading -----------------------------------------------------------------------------------------------------

    def load(self, target: ChatTarget, on_progress: OnProgress = silent) -> Loaded:
        """Make the target ready to talk to; an adapter of the base that is loaded already is swapped in within a second.

        Takes the card (RunError `card-busy` where somebody else's model leaves no room). Raises ModelError where the base or
        the adapter is missing, refused, or they do not fit each other.
        """
        self.stop()
        return self._submit(self._load, target, on_progress).result()

    def add_adapter(self, target: ChatTarget) -> str:
        """Load a second adapter (or checkpoint) of the same base beside the first; returns the side to ask for."""
        return self._submit(self._add, target).result()

    def loaded(self) -> Loaded | None:
        """What is in memory; None where nothing is."""
        return self._loaded

    @property
    def warning(self) -> str:
        """Where the base is not the one that a loaded adapter was trained on; empty else."""
        return self._loaded.warning if self._loaded is not None else ""

    def unload(self) -> int:
        """Stop, free the model and the card; returns the bytes that were freed."""
        self.stop()
        return self._submit(self._unload).result()

    def close(self) -> None:
        """Unload and end the thread; for the end of the app. What is asked for after it is refused in words."""
        with contextlib.suppress(RunError):
            self.unload()
        self._thread.shutdown()

    # Answering ---------------------------------------------------------------------------------------------------

    def stream(
        self, messages: Asked, sampling: Sampling | None = None, sides: Sequence[str] = (ADAPTER,), tools: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Delta]:
        """Answer a conversation (with `tools` that may be called) on each side, piece by piece; leaving the loop stops the answer.

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
        self._to_stop.add(stopped)
        request = _Request(tuple(sides), own, sampling or Sampling(), queue.SimpleQueue(), stopped, time.perf_counter(), tools)
        return self._deltas(request, self._submit(self._answer, request))

    def stop(self) -> None:
        """End the answer that is being given, within a token, and those that wait behind it (of other pages, or of the server)."""
        for stopped in tuple(self._to_stop):
            stopped.set()

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, int]:
        """(tokens of the conversation, tokens that the model can read); (0, 0) where nothing is loaded."""
        model = self._model
        return (len(model.prompt_ids(messages, tools)), model.context_tokens) if model else (0, 0)

    def keys(self) -> dict[str, str]:
        """Key of the adapter that each side stands for, for work given to `call`."""
        return dict(self._keys)

    def call(self, work: Callable[[ChatModel], Any]) -> Any:
        """Run `work` on the loaded model in the generating thread and return its result; for scoring and comparing."""
        return self._submit(self._call, work).result()

    def _submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        try:
            return self._thread.submit(work, *args, **kwargs)
        except RuntimeError:
            # What the pool says once it, or the interpreter, ends.
            raise RunError("The app is closing.", fix="Start it again", code="closing") from None

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
        # Nothing can be asked until all of it is there, also where the adapter turns out not to fit.
        self._loaded = None
        if self._model is None or base_key != self._base_key:
            self._unload()
            self._take_card(config, target)
            try:
                self._model = ChatModel.load(config, self._workspace, on_progress)
            finally:
                if self._model is None:
                    self._give_card()
            self._base_key, self._base_mark = base_key, weights_mark(self._model.folder)
            self._new_cache()
        assert self._model is not None
        self._model.follow(config.data)
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
        self._warning = replaced_words(noted_weights(folder), self._base_mark, self._model.folder) if folder is not None else ""
        on_card = self._model.device.type == "cuda"
        on_progress("Getting ready to answer" + (" (the first time on this computer takes some ten seconds more)" if on_card else ""), None)
        self._warm_up()
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
            self._warning = self._warning or replaced_words(noted_weights(folder), self._base_mark, self._model.folder)
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
        self._pass = ForwardPass(
            self._model.base, self._cache, self._model.switch, self._model.device, capture=capture, tokens=self._model.tokens
        )

    def _warm_up(self) -> None:
        assert self._cache is not None and self._pass is not None and self._model is not None
        keys = list(self._keys.values())
        self._cache.reserve(keys, BUCKET_TOKENS[self._model.device.type])
        asked = [keys] if self._model.switch.can_share(keys) else []
        with self._card.turns.turn(), torch.inference_mode():
            for group in (*asked, keys[-1:]):
                self._pass.warm_up(group, [keys.index(key) for key in group])

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
            reason=self._pass.reason,
            warning=self._warning,
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
        run_id = target.run_id or ""
        name = find_run(self._workspace, run_id).name(config) if run_id else target.label
        self._hold = self._card.hold("chat", name, run_id=run_id, beside=beside, release=self._let_go)

    def _let_go(self) -> None:
        """Somebody else needs the card; it is free as soon as the current token is."""
        self.stop()
        self._submit(self._unload)

    def _fits_beside(self, config: RunConfig) -> bool:
        """Whether free memory holds the model besides what is there: half of a 16-bit file covers 4 bits, embeddings, cache."""
        folder = find_model_folder(config.model.id, config.model.revision, self._workspace)
        if folder is None:
            return False
        on_card = torch.cuda.is_available() and config.launch.device != "cpu"
        free = torch.cuda.mem_get_info()[0] if on_card else psutil.virtual_memory().available
        return bool(free > (0.5 if on_card else 1.5) * (read_folder(folder).stored_bytes or 0) + 512 * MIB)

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
            self._to_stop.discard(request.stopped)
            request.out.put(None)

    def _answer_together(self, request: _Request, names: Sequence[str]) -> None:
        model, cache, forward = self._model, self._cache, self._pass
        assert model is not None and cache is not None and forward is not None
        prompts = {name: model.prompt_ids(request.messages[name], request.tools) for name in names}
        answering = Answering(model, cache, forward, pass_on=self._card.turns.pass_on)
        keys = {name: self._keys[name] for name in names}
        known = tuple(self._keys.values())
        answering.answer(prompts, keys, request.sampling, request.out.put, request.stopped.is_set, began=request.began, known=known)
