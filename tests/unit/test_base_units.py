"""Numbers in words."""

from __future__ import annotations

import pytest

from qlora_ui.base.units import GIB, KIB, MIB, format_bytes


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 KiB"),
        (312, "312 bytes"),
        (700, "1 KiB"),
        (312 * KIB, "312 KiB"),
        (50 * MIB, "50 MiB"),
        (9.3 * GIB, "9.3 GiB"),
        (-300, "-300 bytes"),
    ],
)
def test_no_file_is_said_to_be_empty(num_bytes: float, words: str) -> None:
    assert format_bytes(num_bytes) == words
