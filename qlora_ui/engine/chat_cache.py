"""Keys and values of the chats so far, in buffers of a fixed address that grow in steps, one row for each side.

Shapes: B rows, H key-value heads, L slots, D head size, T new tokens. Row b keeps token t in slot t; slot L - 1 is the place
where padding goes, which no query may see. A row is rolled back by forgetting how much of it is valid: whatever the template
did to earlier turns, only the tokens that are the same again are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(slots=True)
class Slots:
    """Where the next forward pass reads and writes; shared by all layers and set before each pass."""

    rows: slice | torch.Tensor = field(default_factory=lambda: slice(0, 0))
    """Rows that take part: neighbours as a slice, which costs no copy, or their numbers (B)."""
    rows_B1: torch.Tensor | None = None
    """The same as numbers, one for each row of the batch."""
    positions_BT: torch.Tensor | None = None


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, written at given slots of given rows."""

    is_sliding = False
    is_compileable = True
    is_croppable = False

    def __init__(self, slots: Slots, length: int) -> None:
        super().__init__()
        self.slots = slots
        self.num_rows = 0
        self.length = length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers in the shape of the first keys and values."""
        self.keys = _buffer(key_states, self.num_rows, self.length)
        self.values = _buffer(value_states, self.num_rows, self.length)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) into the slots; returns everything that the rows hold, (B, H, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows_B1, positions_BT = self.slots.rows_B1, self.slots.positions_BT
        assert rows_B1 is not None and positions_BT is not None
        self.keys[rows_B1, :, positions_BT] = key_states.transpose(1, 2)
        self.values[rows_B1, :, positions_BT] = value_states.transpose(1, 2)
        return self.keys[self.slots.rows], self.values[self.slots.rows]

    def resize(self, length: int, kept_rows: Sequence[int | None]) -> None:
        """New buffers of that length whose row i is a copy of the old row `kept_rows[i]`."""
        self.length, self.num_rows = length, len(kept_rows)
        if self.is_initialized:
            self.keys = _resized(self.keys, length, kept_rows)
            self.values = _resized(self.values, length, kept_rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots, offset); masks are made by the chat itself."""
        return self.length, 0

    def get_seq_length(self) -> int:
        """0: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """Slots of a row."""
        return self.length

    # Its name up to transformers 5.19, where it is abstract.
    get_max_cache_shape = get_max_length


@dataclass(slots=True)
class Row:
    """What a row of the cache holds."""

    key: str
    """Whose keys and values: the base's or an adapter's."""
    tokens: list[int] = field(default_factory=list)
    is_long: bool = False
    """Whether its keys are turned by a longrope model's factors for long texts (see `ForwardPass.long_from`)."""


class ChatCache:
    """The key-value cache of a chat over its turns.

    `bucket` is the number of slots at first and the step in which it doubles; `context` the most tokens a row may hold.
    """

    def __init__(self, num_layers: int, context: int, bucket: int) -> None:
        self.rows: list[Row] = []
        self.context = context
        self.version = 0
        """Changes whenever buffers move, which ends the life of graphs captured on them."""
        self.slots = Slots()
        self._length = min(bucket, context) + 1
        self._layers = [SlotLayer(self.slots, self._length) for _ in range(num_layers)]
        self.states = Cache(layers=list(self._layers))
        """What the model takes."""

    @property
    def num_slots(self) -> int:
        """L, the padding's slot included."""
        return self._length

    def layer(self, index: int) -> SlotLayer:
        """The keys and values of one layer."""
        return self._layers[index]

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(tensor.nbytes for layer in self._layers if layer.is_initialized for tensor in (layer.keys, layer.values))

    def reserve(self, keys: Sequence[str], num_tokens: int) -> None:
        """Make room for `num_tokens` in a row for each key; rows with one of the keys keep what they hold."""
        length = self._length
        while length - 1 < min(num_tokens, self.context):
            length = min(2 * (length - 1), self.context) + 1
        if length == self._length and [row.key for row in self.rows] == list(keys):
            return
        old = {row.key: index for index, row in enumerate(self.rows)}
        kept = [old.get(key) for key in keys]
        for layer in self._layers:
            layer.resize(length, kept)
        self.rows = [Row(key) if index is None else self.rows[index] for key, index in zip(keys, kept, strict=True)]
        self._length = length
        self.version += 1

    def roll_back(self, row: Row, ids: Sequence[int]) -> int:
        """Keep of the row what `ids` begin with, but not their last token; returns how many tokens need not be computed."""
        num_same = 0
        for cached, wanted in zip(row.tokens, ids[:-1], strict=False):
            if cached != wanted:
                break
            num_same += 1
        del row.tokens[num_same:]
        return num_same

    def turn(self, row: Row, *, is_long: bool) -> None:
        """Have the row's keys turned by the factors for long texts, or for short ones; what it holds with the others is forgotten."""
        if row.is_long != is_long:
            row.tokens.clear()
            row.is_long = is_long

    def forget(self, key: str | None = None) -> None:
        """Forget what the row of that key (or all rows) holds, as its weights have changed."""
        for row in self.rows:
            if key is None or row.key == key:
                row.tokens.clear()

    def wipe(self) -> None:
        """Forget everything and empty the buffers in place: even where nobody looks at it, 0 times NaN is NaN."""
        self.forget()
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys.zero_()
                layer.values.zero_()


def cache_argument(model: Any) -> str:
    """The name by which this model's forward takes a cache: transformers 5.24 renamed `past_key_values` to `cache`."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def _buffer(like: torch.Tensor, num_rows: int, length: int) -> torch.Tensor:
    return like.new_zeros((num_rows, like.shape[1], length, like.shape[3]))


def _resized(old: torch.Tensor, length: int, kept_rows: Sequence[int | None]) -> torch.Tensor:
    new = _buffer(old, len(kept_rows), length)
    # The last slot is the padding's and may hold anything.
    common = min(old.shape[2], length) - 1
    for index, kept in enumerate(kept_rows):
        if kept is not None:
            new[index, :, :common] = old[kept, :, :common]
    return new
