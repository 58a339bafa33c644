"""How much torch's CUDA allocator reserves for a sequence of allocations: its pools, rounding, best fit and splitting, replayed.

Constants of c10/cuda/CUDACachingAllocator (torch 2.11 to 2.13): blocks of 512 bytes, a pool for requests up to 1 MiB in segments of 2 MiB,
one for larger requests in segments of 20 MiB or, from 10 MiB, of the request rounded up to 2 MiB. With expandable segments each pool
is one segment that grows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field

from qlora_ui.base.units import MIB

_STEP = 512
_SMALL = 1 * MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT_FROM = 10 * MIB
_ROUND_SEGMENT = 2 * MIB


@dataclass(slots=True, eq=False)
class _Block:
    size: int
    is_free: bool
    pool: int
    place: int
    """Where it begins: of equal blocks the one at the lowest address is taken."""
    before: _Block | None = None
    after: _Block | None = None


@dataclass(slots=True)
class CachingAllocator:
    """A replay; `reserved_bytes` is what NVML would see of it."""

    is_expandable: bool = False
    reserved_bytes: int = 0
    next_segment: int = 0
    allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    peak_allocated_bytes: int = 0
    _free: dict[int, list[tuple[int, int, _Block]]] = field(default_factory=lambda: {0: [], 1: []})
    _tails: dict[int, _Block | None] = field(default_factory=lambda: {0: None, 1: None})
    _live: dict[Hashable, _Block] = field(default_factory=dict)

    def allocate(self, key: Hashable, num_bytes: int) -> None:
        """Hand out a block under a key; requests of 0 bytes take none."""
        if num_bytes <= 0:
            return
        size = -(-num_bytes // _STEP) * _STEP
        pool = 0 if size <= _SMALL else 1
        block = self._best_fit(pool, size) or self._new_segment(pool, size)
        left = block.size - size
        if left >= _STEP if pool == 0 or self.is_expandable else left > _SMALL:
            rest = _Block(left, True, pool, block.place + size, block, block.after)
            if block.after is not None:
                block.after.before = rest
            elif self._tails[pool] is block:
                self._tails[pool] = rest
            block.size, block.after = size, rest
            self._put(rest)
        block.is_free = False
        self._live[key] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, key: Hashable) -> None:
        """Take a block back and join it with free neighbours; unknown keys are ignored."""
        block = self._live.pop(key, None)
        if block is None:
            return
        self.allocated_bytes -= block.size
        block.is_free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.is_free:
                block = self._join(block, neighbour)
        self._put(block)

    def empty_cache(self) -> None:
        """Give whole free segments back; an expandable one gives back its free blocks' pages."""
        for blocks in self._free.values():
            for entry in list(blocks):
                block = entry[2]
                if self.is_expandable:
                    continue
                if block.before is None and block.after is None:
                    blocks.remove(entry)
                    self.reserved_bytes -= block.size

    def _best_fit(self, pool: int, size: int) -> _Block | None:
        blocks = self._free[pool]
        index = bisect_left(blocks, (size, 0))
        if index == len(blocks):
            return None
        return blocks.pop(index)[2]

    def _new_segment(self, pool: int, size: int) -> _Block:
        if self.is_expandable:
            return self._grow(pool, size)
        if pool == 0:
            segment = _SMALL_SEGMENT
        else:
            segment = _LARGE_SEGMENT if size < _OWN_SEGMENT_FROM else -(-size // _ROUND_SEGMENT) * _ROUND_SEGMENT
        self._reserve(segment)
        return _Block(segment, True, pool, self._place(segment))

    def _grow(self, pool: int, size: int) -> _Block:
        page = _SMALL_SEGMENT if pool == 0 else _LARGE_SEGMENT
        tail = self._tails[pool]
        have = tail.size if tail is not None and tail.is_free else 0
        added = -(-(size - have) // page) * page
        self._reserve(added)
        if tail is not None and tail.is_free:
            self._take(tail)
            tail.size += added
            return tail
        # Each pool grows in an address range of its own.
        place = tail.place + tail.size if tail is not None else pool << 50
        block = _Block(added, True, pool, place, tail)
        if tail is not None:
            tail.after = block
        self._tails[pool] = block
        return block

    def _place(self, segment: int) -> int:
        self.next_segment += segment
        return self.next_segment - segment

    def _reserve(self, num_bytes: int) -> None:
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _join(self, block: _Block, neighbour: _Block) -> _Block:
        self._take(neighbour)
        first, second = (neighbour, block) if block.before is neighbour else (block, neighbour)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if self._tails[first.pool] is second:
            self._tails[first.pool] = first
        first.is_free = True
        return first

    def _put(self, block: _Block) -> None:
        insort(self._free[block.pool], (block.size, block.place, block))

    def _take(self, block: _Block) -> None:
        blocks = self._free[block.pool]
        del blocks[bisect_left(blocks, (block.size, block.place, block))]
