"""The cards that people have, with the figures of their data sheets, and which of them a name means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlora_ui.base.units import GIB


@dataclass(frozen=True, slots=True)
class Card:
    """A card that people have; figures from its data sheet."""

    name: str
    total_mib: int
    """As nvidia-smi prints it."""
    tflops: float
    """Dense bf16 (fp16 before Ampere) tensor throughput with fp32 accumulation."""
    bandwidth_gb_per_s: float
    capability: tuple[int, int]
    watts: int
    draws_a_desktop: bool = True

    @property
    def gib(self) -> int:
        """Its memory as it is sold."""
        return round(self.total_mib / 1024)

    @property
    def label(self) -> str:
        return f"{self.name}, {self.gib} GB"


KNOWN_CARDS = (
    Card("RTX 2060", 6144, 26, 336, (7, 5), 160),
    Card("RTX 2070", 8192, 30, 448, (7, 5), 175),
    Card("RTX 2070 Super", 8192, 36, 448, (7, 5), 215),
    Card("RTX 2080", 8192, 40, 448, (7, 5), 215),
    Card("RTX 2080 Super", 8192, 45, 496, (7, 5), 250),
    Card("RTX 2080 Ti", 11264, 54, 616, (7, 5), 250),
    Card("RTX 3050", 8192, 18, 224, (8, 6), 130),
    Card("RTX 3060", 12288, 25, 360, (8, 6), 170),
    Card("RTX 3060 Ti", 8192, 32, 448, (8, 6), 200),
    Card("RTX 3070", 8192, 41, 448, (8, 6), 220),
    Card("RTX 3070 Ti", 8192, 43, 608, (8, 6), 290),
    Card("RTX 3080", 10240, 60, 760, (8, 6), 320),
    Card("RTX 3080 12 GB", 12288, 61, 912, (8, 6), 350),
    Card("RTX 3080 Ti", 12288, 68, 912, (8, 6), 350),
    Card("RTX 3090", 24576, 71, 936, (8, 6), 350),
    Card("RTX 3090 Ti", 24564, 80, 1008, (8, 6), 450),
    Card("RTX 4060", 8188, 30, 272, (8, 9), 115),
    Card("RTX 4060 Ti", 8188, 44, 288, (8, 9), 160),
    Card("RTX 4060 Ti 16 GB", 16380, 44, 288, (8, 9), 165),
    Card("RTX 4070", 12282, 58, 504, (8, 9), 200),
    Card("RTX 4070 Super", 12282, 71, 504, (8, 9), 220),
    Card("RTX 4070 Ti", 12282, 80, 504, (8, 9), 285),
    Card("RTX 4070 Ti Super", 16376, 88, 672, (8, 9), 285),
    Card("RTX 4080", 16376, 97, 717, (8, 9), 320),
    Card("RTX 4080 Super", 16376, 104, 736, (8, 9), 320),
    Card("RTX 4090", 24564, 165, 1008, (8, 9), 450),
    Card("RTX 5060", 8151, 38, 448, (12, 0), 145),
    Card("RTX 5060 Ti", 16311, 47, 448, (12, 0), 180),
    Card("RTX 5070", 12227, 62, 672, (12, 0), 250),
    Card("RTX 5070 Ti", 16303, 88, 896, (12, 0), 300),
    Card("RTX 5080", 16303, 113, 960, (12, 0), 360),
    Card("RTX 5090", 32607, 210, 1792, (12, 0), 575),
    Card("RTX 5090 Laptop", 24463, 114, 896, (12, 0), 150),
    Card("RTX 5080 Laptop", 16303, 83, 896, (12, 0), 150),
    Card("RTX 5070 Ti Laptop", 12227, 62, 672, (12, 0), 115),
    Card("RTX 5070 Laptop", 8151, 50, 384, (12, 0), 100),
    Card("RTX 4090 Laptop", 16376, 115, 576, (8, 9), 150),
    Card("RTX 4080 Laptop", 12282, 68, 432, (8, 9), 150),
    Card("RTX 4070 Laptop", 8188, 60, 256, (8, 9), 115),
    Card("T4", 15360, 65, 320, (7, 5), 70, False),
    Card("V100 16 GB", 16384, 112, 900, (7, 0), 250, False),
    Card("V100 32 GB", 32768, 112, 900, (7, 0), 250, False),
    Card("A10", 23028, 125, 600, (8, 6), 150, False),
    Card("A10G", 23028, 70, 600, (8, 6), 300, False),
    Card("A40", 46068, 150, 696, (8, 6), 300, False),
    Card("RTX A4000", 16376, 77, 448, (8, 6), 140),
    Card("RTX A5000", 24564, 111, 768, (8, 6), 230),
    Card("RTX A6000", 49140, 155, 768, (8, 6), 300),
    Card("RTX 6000 Ada", 49140, 364, 960, (8, 9), 300),
    Card("A100 40 GB", 40960, 312, 1555, (8, 0), 400, False),
    Card("A100 80 GB", 81920, 312, 2039, (8, 0), 400, False),
    Card("L4", 23034, 121, 300, (8, 9), 72, False),
    Card("L40S", 46068, 362, 864, (8, 9), 350, False),
    Card("H100", 81559, 790, 3350, (9, 0), 700, False),
    Card("H100 PCIe", 81559, 600, 2000, (9, 0), 350, False),
    Card("H200", 143771, 790, 4800, (9, 0), 700, False),
    Card("B200", 183359, 2250, 8000, (10, 0), 1000, False),
)
"""Cards to choose from where there is none, and the figures for time estimates where there is one."""

_SAY_NOTHING = frozenset(
    ("rtx", "gtx", "tesla", "generation", "pcie", "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e")
)
"""Words of a card's name that people leave out and the driver adds; where they do tell cards apart, the whole name is listed."""


def find_card(words: str) -> Card | None:
    """The listed card that the words name: by its whole name, or by one that leaves out or adds what tells no cards apart.

    `4090` and the driver's `NVIDIA A100-SXM4-80GB` are understood; Ti, Super or Laptop too many or too few is another card, with
    another memory. A size in the words (`RTX 4060 Ti 16 GB`) tells models of one name apart; without one the smaller model is meant.
    """
    wanted, gib = _split_size(_words(words))
    cards = [card for card in KNOWN_CARDS if gib is None or card.gib == gib]
    names = [(_split_size(_words(card.name))[0], card) for card in cards]
    exact = [card for name, card in names if name == wanted]
    found = exact or [card for name, card in names if name - _SAY_NOTHING == wanted - _SAY_NOTHING]
    return min(found, key=lambda card: card.total_mib) if found else None


def card_of(name: str, total_bytes: int) -> Card | None:
    """The listed card that the driver calls so, of about that memory: names alone do not tell the 8 from the 16 GB model."""
    gib = total_bytes / GIB
    wanted, _ = _split_size(_words(name))
    names = [(_split_size(_words(card.name))[0], card) for card in KNOWN_CARDS if abs(card.total_mib / 1024 - gib) < 0.08 * gib]
    fitting = [(len(parts), card) for parts, card in names if parts <= wanted and ("laptop" in parts) == ("laptop" in wanted)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _words(text: str) -> set[str]:
    joined = re.sub(r"(\d+)\s*g(?:i?b)\b", r"\1gb", text.lower())
    joined = re.sub(r"\b(mobile|notebook)\b", "laptop", joined)
    return set(re.findall(r"[a-z0-9]+", joined)) - {"nvidia", "geforce", "gpu", "graphics", "card"}


def _split_size(words: set[str]) -> tuple[set[str], int | None]:
    sizes = [word for word in words if re.fullmatch(r"\d+gb", word)]
    return words.difference(sizes), int(sizes[0][:-2]) if sizes else None
