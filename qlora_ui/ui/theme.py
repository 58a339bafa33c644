"""How everything looks: one accent, neutral greys, an 8 px grid; the tokens themselves stand in static/tokens.css.

Conventions for every view: a prediction is dashed, a measurement solid; each part of the memory has one colour
(`part_colour`); numbers that change carry the class `q-num` (tabular figures); colour never stands alone.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gradio as gr

STATIC = Path(__file__).with_name("static")
_KEYFRAMES = re.compile(r"@keyframes [^{]+\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_ABOVE = ":root:root:root"

_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

_GROUND = {
    "body_background_fill": "var(--q-page)",
    "body_text_color": "var(--q-text)",
    "body_text_color_subdued": "var(--q-text-2)",
    "background_fill_primary": "var(--q-surface)",
    "background_fill_secondary": "var(--q-sunken)",
    "border_color_primary": "var(--q-line)",
    "border_color_accent": "var(--q-accent)",
    "color_accent": "var(--q-accent)",
    "color_accent_soft": "var(--q-accent-soft)",
    "link_text_color": "var(--q-accent-text)",
    "link_text_color_hover": "var(--q-accent-text)",
    "link_text_color_active": "var(--q-accent-text)",
    "link_text_color_visited": "var(--q-accent-text)",
    "loader_color": "var(--q-accent)",
    "table_border_color": "var(--q-line)",
    "table_even_background_fill": "var(--q-surface)",
    "table_odd_background_fill": "var(--q-surface)",
    "code_background_fill": "var(--q-sunken)",
    "error_background_fill": "var(--q-surface)",
    "error_border_color": "var(--q-bad)",
    "error_text_color": "var(--q-bad-text)",
    "shadow_drop": "none",
    "shadow_drop_lg": "var(--q-shadow)",
}
"""Page, text, links, tables."""

_BLOCKS = {
    "block_background_fill": "transparent",
    "block_border_color": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_border_color": "transparent",
    "block_label_text_color": "var(--q-text-2)",
    "block_title_text_color": "var(--q-text)",
    "block_info_text_color": "var(--q-text-2)",
    "panel_background_fill": "transparent",
    "panel_border_color": "transparent",
}
"""Boxes and their labels: none of Gradio's own is seen."""

_FIELDS = {
    "input_background_fill": "var(--q-surface)",
    "input_background_fill_focus": "var(--q-surface)",
    "input_border_color": "var(--q-edge)",
    "input_border_color_focus": "var(--q-accent)",
    "input_border_color_hover": "var(--q-text-3)",
    "input_placeholder_color": "var(--q-text-3)",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px var(--q-focus)",
    "checkbox_background_color": "var(--q-surface)",
    "checkbox_background_color_selected": "var(--q-accent)",
    "checkbox_border_color": "var(--q-edge)",
    "checkbox_border_color_selected": "var(--q-accent)",
    "checkbox_border_color_focus": "var(--q-accent)",
    "checkbox_label_background_fill": "var(--q-surface)",
    "checkbox_label_background_fill_hover": "var(--q-hover)",
    "checkbox_label_background_fill_selected": "var(--q-accent-soft)",
    "checkbox_label_border_color": "var(--q-edge)",
    "checkbox_label_border_color_selected": "var(--q-accent)",
    "checkbox_label_text_color": "var(--q-text)",
    "checkbox_label_text_color_selected": "var(--q-text)",
    "slider_color": "var(--q-accent)",
}
"""What is typed into, ticked and dragged."""

_BUTTONS = {
    "button_primary_background_fill": "var(--q-accent)",
    "button_primary_background_fill_hover": "var(--q-accent-strong)",
    "button_primary_text_color": "var(--q-on-accent)",
    "button_primary_text_color_hover": "var(--q-on-accent)",
    "button_primary_border_color": "transparent",
    "button_primary_shadow": "none",
    "button_primary_shadow_hover": "none",
    "button_primary_shadow_active": "none",
    "button_secondary_background_fill": "var(--q-surface)",
    "button_secondary_background_fill_hover": "var(--q-hover)",
    "button_secondary_text_color": "var(--q-text)",
    "button_secondary_text_color_hover": "var(--q-text)",
    "button_secondary_border_color": "var(--q-line-strong)",
    "button_secondary_shadow": "none",
    "button_secondary_shadow_hover": "none",
    "button_secondary_shadow_active": "none",
    "button_cancel_background_fill": "var(--q-surface)",
    "button_cancel_background_fill_hover": "var(--q-bad-soft)",
    "button_cancel_text_color": "var(--q-bad-text)",
    "button_cancel_text_color_hover": "var(--q-bad-text)",
    "button_cancel_border_color": "var(--q-line-strong)",
}

_SIZES = {
    "block_border_width": "0px",
    "block_shadow": "none",
    "input_border_width": "1px",
    "checkbox_border_width": "1.5px",
    "button_border_width": "1px",
    "block_padding": "0px",
    "block_label_padding": "0px",
    "block_title_text_weight": "600",
    "block_radius": "12px",
    "input_radius": "8px",
    "input_padding": "8px 12px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "8px",
    "button_large_text_weight": "600",
    "layout_gap": "16px",
    "form_gap_width": "0px",
    "section_header_text_weight": "600",
    "checkbox_shadow": "none",
    "button_transition": "none",
}
"""Widths, radii and weights; the same in both themes."""


def stylesheet() -> str:
    """All of static/*.css as one text, the tokens first.

    The rules of all other files are nested in a repeated `:root`: that puts them above Gradio's own, which are loaded
    later. Handing them to Gradio instead would do the same by rewriting them, and lose those inside @media on the way.
    """
    tokens = (STATIC / "tokens.css").read_text(encoding="utf-8")
    rules = "\n".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.css")) if path.name != "tokens.css")
    keyframes = "\n".join(_KEYFRAMES.findall(rules))
    return f"{tokens}\n{keyframes}\n{_ABOVE} {{\n{_KEYFRAMES.sub('', rules)}\n}}"


def part_colour(part: str) -> str:
    """The CSS colour of a memory part, the same in every chart and in both themes."""
    return f"var(--part-{part.replace('_', '-')})"


def build_theme() -> gr.themes.Base:
    """Gradio's variables, all pointing at our tokens, so that light and dark are decided in one place."""
    theme = gr.themes.Base(font=list(_FONT), font_mono=list(_MONO), text_size="md", spacing_size="md", radius_size="md")
    values = {**_GROUND, **_BLOCKS, **_FIELDS, **_BUTTONS, **_SIZES}
    settable = inspect.signature(theme.set).parameters
    dark = {f"{name}_dark": value for name, value in values.items() if f"{name}_dark" in settable}
    return theme.set(**values, **dark)
