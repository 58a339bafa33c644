"""The replay of torch's allocator on sequences whose outcome is known from its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_ui.base.units import MIB
from qlora_ui.estimate.allocator import CachingAllocator
from qlora_ui.hardware.system import grows_segments


def test_rounding_and_pools() -> None:
    allocator = CachingAllocator()
    allocator.allocate("a", 1)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (512, 2 * MIB)
    allocator.allocate("b", 3 * MIB)
    assert allocator.reserved_bytes == 22 * MIB
    allocator.allocate("c", 18 * MIB + 1)
    assert allocator.reserved_bytes == 42 * MIB
    allocator.free("c")
    allocator.allocate("d", 5 * MIB)  # best fit: the 17 MiB rest, not the free segment
    allocator.allocate("e", 19 * MIB)
    assert allocator.reserved_bytes == 42 * MIB


def test_freed_neighbours_join() -> None:
    allocator = CachingAllocator()
    for key in "abc":
        allocator.allocate(key, 6 * MIB)
    for key in "acb":
        allocator.free(key)
    allocator.allocate("d", 19 * MIB)
    assert allocator.reserved_bytes == 20 * MIB and allocator.peak_allocated_bytes == 20 * MIB
    allocator.free("d")
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0 and allocator.peak_reserved_bytes == 20 * MIB


def test_an_expandable_segment_grows_by_what_is_missing() -> None:
    allocator = CachingAllocator(is_expandable=True)
    allocator.allocate("a", 15 * MIB)
    allocator.allocate("b", 100 * MIB)
    assert allocator.reserved_bytes == 120 * MIB
    allocator.free("b")
    allocator.allocate("c", 130 * MIB)
    assert allocator.reserved_bytes == 160 * MIB


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30 * MIB)), max_size=80), st.booleans())
def test_never_reserves_less_than_it_hands_out(steps: list[tuple[int, int]], is_expandable: bool) -> None:
    allocator = CachingAllocator(is_expandable)
    live: dict[int, int] = {}
    for key, size in steps:
        if key in live:
            allocator.free(key)
            del live[key]
        else:
            allocator.allocate(key, size)
            live[key] = size
        assert allocator.reserved_bytes >= allocator.allocated_bytes >= sum(live.values())
    for key in live:
        allocator.free(key)
    assert allocator.allocated_bytes == 0
    if not is_expandable:
        allocator.empty_cache()
        assert allocator.reserved_bytes == 0


@pytest.mark.parametrize(
    ("environment", "grows"),
    [
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64, expandable_segments: true"}, True),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, False),
    ],
)
def test_the_users_own_allocator_setting_counts(environment: dict[str, str], grows: bool) -> None:
    assert grows_segments(environment) is grows


def test_without_a_setting_the_platform_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.release", lambda: "6.8.0-generic")
    assert grows_segments({})
    monkeypatch.setattr("platform.release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert not grows_segments({})
    monkeypatch.setattr("sys.platform", "win32")
    assert not grows_segments({})
