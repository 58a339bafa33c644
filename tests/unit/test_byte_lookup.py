"""The assembly that looks up 4-bit codes, run by a reading of the four instructions that it is made of."""

from __future__ import annotations

import re
import struct

import pytest

from qlora_ui.engine.fast.byte_lookup import lookup_assembly

NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
FP4 = (0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25)
WORD = 0xFFFFFFFF


@pytest.mark.parametrize("table", [NF4, FP4])
def test_every_byte_gives_the_values_of_its_two_codes(table: tuple[float, ...]) -> None:
    as_fp16 = [struct.unpack("<e", struct.pack("<e", value))[0] for value in table]
    assembly = lookup_assembly(table)
    for first in range(256):
        four = (first, first * 7 + 3 & 255, 255 - first, first ^ 0x5A)
        high, low = run(assembly, four)
        assert high == [as_fp16[byte >> 4] for byte in four]
        assert low == [as_fp16[byte & 15] for byte in four]


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values"):
        lookup_assembly((0.0, 0.5, 1.0))


def run(assembly: str, four: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """What the registers $0 to $3 hold at the end, as four high and four low values."""
    registers = {"$4": struct.unpack("<I", bytes(four))[0]}

    def value(name: str) -> int:
        return int(name, 0) if name[0].isdigit() else registers[name]

    for line in assembly.splitlines():
        found = re.fullmatch(r"(\w+)\.b32 (\S+), (.*);", line)
        if found is None:
            continue
        name, target, given = found[1], found[2], [value(word.strip()) for word in found[3].split(",")]
        registers[target] = OPERATIONS[name](*given) & WORD
    packed = struct.pack("<4I", *(registers[f"${place}"] for place in range(4)))
    values = list(struct.unpack("<8e", packed))
    return values[:4], values[4:]


def permute(a: int, b: int, selector: int) -> int:
    """PTX ISA, prmt in its default mode: four selectors of 4 bits, the highest of which repeats the byte's sign."""
    source = struct.pack("<2I", a, b)
    picked = []
    for place in range(4):
        select = selector >> 4 * place & 15
        byte = source[select & 7]
        picked.append((255 if byte & 128 else 0) if select & 8 else byte)
    return int(struct.unpack("<I", bytes(picked))[0])


def choose(a: int, b: int, c: int, table: int) -> int:
    """PTX ISA, lop3: any function of three bits, by its table at a = 0xF0, b = 0xCC, c = 0xAA."""
    assert table == (0xF0 & 0xCC) | (~0xF0 & 0xAA) & 0xFF
    return (a & b) | (~a & c)


OPERATIONS = {
    "and": lambda a, b: a & b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "prmt": permute,
    "lop3": choose,
}
