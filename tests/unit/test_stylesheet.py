"""The stylesheets: text and edges are told from their ground in both themes, and no file takes a class from another."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from qlora_ui.ui.theme import STATIC

# WCAG 2.2, 1.4.3 and 1.4.11 (level AA).
TEXT_RATIO, EDGE_RATIO = 4.5, 3.0

TEXT_PAIRS = [
    *((text, ground) for text in ("text", "text-2", "text-3", "accent-text") for ground in ("page", "surface", "sunken", "hover")),
    *((text, "accent-soft") for text in ("text", "text-2", "text-3", "accent-text")),
    *((f"{kind}-text", f"{kind}-soft") for kind in ("good", "warn", "bad")),
    *((text, f"{kind}-soft") for text in ("text", "text-2") for kind in ("good", "warn", "bad")),
    *((f"{kind}-text", "surface") for kind in ("good", "warn", "bad")),
    ("on-accent", "accent"),
    ("on-accent", "accent-strong"),
    ("on-accent", "bad"),
]
EDGE_PAIRS = [("edge", "page"), ("edge", "surface"), ("edge", "sunken"), ("accent", "surface"), ("accent", "page"), ("bad", "surface")]


def tokens(theme: str) -> dict[str, str]:
    light, dark = (STATIC / "tokens.css").read_text(encoding="utf-8").split(".dark {")
    found = re.compile(r"--q-([\w-]+): (#[0-9a-f]{6});")
    return {**dict(found.findall(light)), **(dict(found.findall(dark)) if theme == "dark" else {})}


def luminance(colour: str) -> float:
    """Relative luminance by WCAG's definition."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ratio(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_wcag_aa(theme: str) -> None:
    colours = tokens(theme)
    poor = [
        f"{front} on {ground}: {ratio(colours[front], colours[ground]):.2f}"
        for pairs, least in ((TEXT_PAIRS, TEXT_RATIO), (EDGE_PAIRS, EDGE_RATIO))
        for front, ground in pairs
        if ratio(colours[front], colours[ground]) < least
    ]
    assert poor == []


def test_a_class_is_drawn_by_one_file() -> None:
    """Two tabs that use one name for different things spoil each other: the file that comes later wins."""
    places: dict[str, set[str]] = defaultdict(set)
    for path in STATIC.glob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        plain = re.sub(r"@[^{;]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", text)
        for selector in re.findall(r"([^{}]+)\{", plain):
            if re.fullmatch(r"\.[\w-]+", selector.strip()):
                places[selector.strip()].add(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_colours_are_named_in_one_file() -> None:
    """Besides tokens.css a stylesheet may darken or lighten (black and white, shadows), nothing else."""
    for path in STATIC.glob("*.css"):
        if path.name != "tokens.css":
            colours = set(re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\s,)])", path.read_text(encoding="utf-8")))
            assert colours <= {"#000", "#fff"}, path.name
