"""One forward pass of a chat: new tokens of every row in, the next token's logits out; captured as a CUDA graph on a card.

Shapes: B rows, T new tokens of a row (padded), L slots of the cache, V words. A decode step launches some thousand small
kernels, and a card waits for the CPU in between; a captured step is one launch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from qlora_ui.engine.chat_adapters import BASE, RowSwitch
from qlora_ui.engine.chat_cache import ChatCache, cache_argument
from qlora_ui.engine.chat_layers import TokenLayers
from qlora_ui.engine.fast.capture import capturing
from qlora_ui.engine.fast.ops import KERNEL_ERRORS

PASS_LENGTHS = (1, 32, 128, 512)
"""Tokens of a captured pass: one graph each, made when first needed."""


@dataclass(slots=True)
class CapturedPass:
    """A graph with the buffers that it reads and writes."""

    graph: Any
    inputs: torch.Tensor
    """Tokens, positions and last places of all rows in one buffer: one copy a step."""
    logits_BV: torch.Tensor
    kept: tuple[Any, ...]
    """What the graph reads and nobody else may still hold."""


class ForwardPass:
    """Runs the model on rows of a cache; on CUDA through graphs, and plainly where a model cannot be captured."""

    def __init__(
        self, model: Any, cache: ChatCache, switch: RowSwitch, device: torch.device, *, capture: bool, tokens: TokenLayers | None = None
    ) -> None:
        """`capture` is for CUDA; there, passes have the lengths of PASS_LENGTHS, captured or not. `tokens` are the model's own layers."""
        self.model = model
        self.cache = cache
        self.switch = switch
        self.device = device
        self.tokens = tokens
        self.reason = "" if capture else "not on a CUDA card"
        """Why passes are not captured; empty where they are."""
        self.capture_s = 0.0
        """Seconds spent on capturing, so far."""
        self._argument = cache_argument(model)
        self._graphs: dict[tuple[tuple[str, ...], tuple[int, ...], int, int], CapturedPass] = {}
        self._version = -1
        self._pool: Any = None
        config = model.config.get_text_config()
        self._layer_types = sorted(set(getattr(config, "layer_types", None) or ()))
        self._window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        self._eager_attention = getattr(config, "_attn_implementation", "") == "eager"
        self._dtype = model.get_input_embeddings().weight.dtype
        self.long_from = long_from(config)
        """Longest text that a longrope model (Phi-3 128k) turns by its factors for short ones; None for all other models."""
        self._padding_position = 0

    @property
    def longest(self) -> int:
        """Most tokens of a row in one pass."""
        return PASS_LENGTHS[-1]

    def run(
        self,
        keys: Sequence[str],
        ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        rows: Sequence[int],
        *,
        at_least: int = 1,
        is_long: bool = False,
    ) -> torch.Tensor:
        """Logits (B, V) after the last of `ids[b]`, whose first token stands at `starts[b]` of the cache's row `rows[b]`.

        `keys[b]` is the adapter of the row. A row without new tokens passes along and its logits mean nothing. `is_long` turns keys
        and queries as in a text of more than `long_from` tokens; it takes a token fewer than `longest`.
        """
        longest = max(at_least, *map(len, ids))
        if is_long and self.long_from is not None:
            # The model looks for the last position of a pass and not of the text: where no new token says it, a padding token has to.
            says_it = any(row and start + len(row) > self.long_from for row, start in zip(ids, starts, strict=True))
            longest += not says_it and all(len(row) == longest for row in ids)
        self._padding_position = (self.long_from or 0) * is_long
        length = next(size for size in PASS_LENGTHS if size >= longest) if self.device.type == "cuda" else longest
        padding = self.cache.num_slots - 1
        flat = [token for row in ids for token in (*row, *[0] * (length - len(row)))]
        for row, start in zip(ids, starts, strict=True):
            flat += [*range(start, start + len(row)), *[padding] * (length - len(row))]
        inputs = torch.tensor([*flat, *[max(len(row) - 1, 0) for row in ids]])
        if not self.reason:
            captured = self._captured(tuple(keys), tuple(rows), inputs)
            if captured is not None:
                captured.inputs.copy_(inputs)
                captured.graph.replay()
                return captured.logits_BV
        self._aim(keys, rows)
        return self._forward(inputs.to(self.device), len(ids))

    def warm_up(self, keys: Sequence[str], rows: Sequence[int]) -> None:
        """Capture what a first answer needs, so that nobody waits for it; does nothing where passes are not captured."""
        if not self.reason:
            # The longest first: the model's own layers make the cache's buffers, which a pass of single tokens then goes by without them.
            for length in reversed(PASS_LENGTHS[:3]):
                # Nothing but padding, so that what the rows hold stays.
                self.run(keys, [[] for _ in rows], [0 for _ in rows], rows, at_least=length)

    def forget_graphs(self) -> None:
        """Free all graphs; their memory goes with them."""
        self._graphs.clear()
        self._pool = None

    def _aim(self, keys: Sequence[str], rows: Sequence[int]) -> None:
        """Point adapters and cache at the rows of the next pass."""
        self.switch.choose(keys, self._dtype, self.device)
        slots = self.cache.slots
        slots.rows_B1 = torch.tensor(rows, device=self.device)[:, None]
        neighbours = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        slots.rows = slice(rows[0], rows[0] + len(rows)) if neighbours else slots.rows_B1[:, 0]

    def _forward(self, inputs: torch.Tensor, num_rows: int) -> torch.Tensor:
        """One pass on B x T tokens, B x T positions and B last places, one after another in one tensor."""
        num_tokens = (len(inputs) - num_rows) // 2
        ids_BT, positions_BT = (part.view(num_rows, -1) for part in inputs[: 2 * num_tokens].split(num_tokens))
        last_B = inputs[2 * num_tokens :]
        self.cache.slots.positions_BT = positions_BT
        names, factors = self.switch.names, self.switch.factors
        if self.tokens is not None and self.switch.is_plain() and self.tokens.can(names, ids_BT.shape):
            try:
                with self.tokens.aimed(self.cache, names, factors):
                    return self._logits(ids_BT, positions_BT, last_B)
            except torch.OutOfMemoryError:
                raise
            except KERNEL_ERRORS as error:
                # A card or compiler that cannot run one of the kernels: the model's own layers run everywhere.
                self.tokens.switch_off(str(error))
        return self._logits(ids_BT, positions_BT, last_B)

    def _logits(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, last_B: torch.Tensor) -> torch.Tensor:
        # Longrope (Phi-3 128k) counts the text's length from the last position, and padding has the cache's last slot.
        padding = self.cache.num_slots - 1
        logits_BBV = self.model(
            input_ids=ids_BT,
            attention_mask=self._masks(positions_BT),
            position_ids=positions_BT.masked_fill(positions_BT == padding, self._padding_position),
            use_cache=True,
            logits_to_keep=last_B,
            **{self._argument: self.cache.states},
        ).logits
        # The model keeps the same places for every row; a row's own is on the diagonal.
        logits_BV: torch.Tensor = logits_BBV.diagonal(dim1=0, dim2=1).T
        return logits_BV

    def _masks(self, positions_BT: torch.Tensor) -> Any:
        """Which slots each token sees: those up to its own, and for sliding layers only the window's."""
        slots_L = torch.arange(self.cache.num_slots, device=positions_BT.device)
        sees_B1TL = (slots_L <= positions_BT[:, None, :, None]) & (slots_L < self.cache.num_slots - 1)
        full = self._for_kernel(sees_B1TL)
        if self._window is None or (self._layer_types and "sliding_attention" not in self._layer_types):
            return dict.fromkeys(self._layer_types, full) if self._layer_types else full
        sliding = self._for_kernel(sees_B1TL & (slots_L > positions_BT[:, None, :, None] - self._window))
        if not self._layer_types:
            return sliding
        return {kind: sliding if kind == "sliding_attention" else full for kind in self._layer_types}

    def _for_kernel(self, sees_B1TL: torch.Tensor) -> torch.Tensor:
        """Yes and no for SDPA; for eager attention, which adds its mask, 0 and the lowest number."""
        if not self._eager_attention:
            return sees_B1TL
        return torch.where(sees_B1TL, 0.0, torch.finfo(self._dtype).min).to(self._dtype)

    def _captured(self, keys: tuple[str, ...], rows: tuple[int, ...], inputs: torch.Tensor) -> CapturedPass | None:
        if self._version != self.cache.version:
            self.forget_graphs()
            self._version = self.cache.version
        key = (keys, rows, len(inputs), self._padding_position)
        if key not in self._graphs:
            began = time.perf_counter()
            try:
                self._graphs[key] = self._capture(keys, rows, inputs)
            except RuntimeError as error:
                # Some models ask the card a question in the middle of a pass (rope that grows with the text).
                self.forget_graphs()
                self.reason = f"this model's step cannot be captured ({str(error).splitlines()[0][:120]})"
                return None
            self.capture_s += time.perf_counter() - began
        return self._graphs[key]

    def _capture(self, keys: tuple[str, ...], rows: tuple[int, ...], example: torch.Tensor) -> CapturedPass:
        inputs = example.to(self.device)
        self._aim(keys, rows)
        stream = _capture_stream(self.device.index or 0)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            # Lazy initialisation (kernels, cuBLAS, the cache's buffers) must not happen inside a capture.
            self._forward(inputs, len(rows))
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with capturing(graph, self._pool, stream):
            logits_BV = self._forward(inputs, len(rows))
        slots = self.cache.slots
        return CapturedPass(graph, inputs, logits_BV, (self.switch.factors, slots.rows_B1, slots.rows))


@cache
def _capture_stream(device_index: int) -> Any:
    """The one stream on which this process captures: cuBLAS keeps 32 MiB of workspace for every stream that it has seen."""
    return torch.cuda.Stream(device_index)


def keys_of(sides: Sequence[str]) -> list[str]:
    """The sides without doubles, the base first: rows of a batch."""
    unique = list(dict.fromkeys(sides))
    return sorted(unique, key=lambda side: side != BASE)


def long_from(config: Any) -> int | None:
    """The longest text that a model of longrope turns by its factors for short ones; None where there is one set of factors."""
    rope = getattr(config, "rope_parameters", None) or {}
    # One for the model, or one for each kind of layer.
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    lengths = [int(kind["original_max_position_embeddings"]) for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(lengths, default=None)
