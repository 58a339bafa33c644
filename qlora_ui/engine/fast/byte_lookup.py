"""Assembly that turns four bytes of 4-bit codes into their eight values, without a memory access: by permuting bytes.

A look-up of each code in a table keeps a card's load units busier than the weights do. `prmt` picks four of eight bytes by 3-bit
selectors, and the codes of two neighbouring bytes are such selectors as they are; the 4th bit chooses between two results. A value
is put together from its high and its low byte as a 16-bit float, which is nearer to the table than the weight's own rounding to
bfloat16 (relative error 2^-12 of 2^-9).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

CONSTRAINTS = "=r,=r,=r,=r,r"
"""Two registers of high values, two of low ones, and the four bytes."""


@functools.lru_cache(maxsize=8)
def lookup_assembly(table: tuple[float, ...]) -> str:
    """PTX for `tl.inline_asm_elementwise` with pack=4: of bytes, the values of their high and of their low 4 bits, in fp16.

    Raises ValueError for a table that has not 16 values.
    """
    if len(table) != 16:
        raise ValueError(f"a table of {len(table)} values is none of 4-bit codes")
    lines = [
        ".reg .b32 sel, left, mask, one, two, lo, hi;",
        # Of 4 bits the lower three: the 4th one would mean "repeat the sign" to prmt.
        "and.b32 sel, $4, 0x77777777;",
        "shl.b32 left, $4, 4;",
    ]
    # Two bytes are four codes: low and high of the first, low and high of the second. Their 4th bits are the signs of the bytes of
    # `left` and of the word, which fill the four bytes of the mask.
    for half, signs in enumerate((0xD9C8, 0xFBEA)):
        if half:
            lines.append("shr.b32 sel, sel, 16;")
        lines.append(f"prmt.b32 mask, left, $4, {signs:#x};")
        for name, words in zip(("lo", "hi"), _tables(table), strict=True):
            lines += [
                f"prmt.b32 one, {words[0]:#x}, {words[1]:#x}, sel;",
                f"prmt.b32 two, {words[2]:#x}, {words[3]:#x}, sel;",
                f"lop3.b32 {name}, mask, two, one, 0xCA;",
            ]
        lines += [f"prmt.b32 ${half}, lo, hi, 0x7351;", f"prmt.b32 ${2 + half}, lo, hi, 0x6240;"]
    return "{\n" + "\n".join(lines) + "\n}"


def _tables(values: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The low and the high bytes of the 16 values, four to a word."""
    packed = struct.pack("<16e", *values)
    return struct.unpack("<4I", packed[0::2]), struct.unpack("<4I", packed[1::2])
