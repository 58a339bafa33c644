"""A control for each option, made from the one line that declares it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

import gradio as gr

from qlora_ui.settings.option import Option
from qlora_ui.ui.markup import escape, whole_letters

MAX_SEGMENTS = 3
"""A choice of so many values is a row of segments; a longer one is a list that opens."""
AUTOMATIC = "automatic"
MAX_SHOWN_BOUND = 5000
"""A larger bound guards against slips and says nothing to a person."""


@dataclass(frozen=True, slots=True)
class Control:
    """An option on the page: its input, and the line above it that carries label, cost and problems."""

    option: Option
    input: gr.components.Component
    head: gr.HTML


Maker = Callable[[Option], gr.components.Component]


def make_control(option: Option, value: Any, *, maker: Maker | None = None, min_width: int = 240) -> Control:
    """Draw the control of an option, holding `value`, where the caller stands; `maker` replaces the input, never the words around it."""
    classes = ["q-control", "q-control-hidden"] if maker is make_hidden else ["q-control"]
    with gr.Column(elem_id=f"{option.dom_id}-control", elem_classes=classes, min_width=min_width):
        head = gr.HTML(head_html(option), elem_id=f"{option.dom_id}-head", elem_classes="q-head", apply_default_css=False)
        component = (maker or make_input)(replace(option, default=value))
    return Control(option, component, head)


def head_html(option: Option, *, delta: str = "", problem: str = "", changed: bool = False) -> str:
    """What stands above an input: label, term, one sentence, and when there is one the cost chip or what is wrong.

    `delta` and `problem` are plain text; `changed` marks a value that is not the default.
    """
    meta = option.meta
    term = f'<span class="q-term">{escape(meta.term)}</span>' if meta.term and meta.term.lower() != meta.label.lower() else ""
    mark = '<span class="q-changed" title="Changed from the default">changed</span>' if changed else ""
    chip = f'<span class="q-delta">{escape(delta)}</span>' if delta else ""
    alarm = f'<span class="q-problem" role="alert">{escape(problem)}</span>' if problem else ""
    return (
        f'<div class="q-label"><span class="q-name">{escape(meta.label)}</span>{term}{mark}</div>'
        f'<p class="q-help">{escape(meta.help)}{_bounds_hint(option)}</p>{chip}{alarm}'
    )


def make_input(option: Option) -> gr.components.Component:
    """The input that suits the option's type, holding the option's default.

    Bounds are not given to gr.Number: Gradio would refuse the value with a message of its own before our check could
    report all problems together.
    """
    common: dict[str, Any] = {
        "label": option.meta.label,
        "show_label": False,
        "elem_id": option.dom_id,
        "interactive": True,
    }
    kind, default = option.inner_type, to_component(option, option.default)
    if kind is bool:
        return gr.Checkbox(default, **{**common, "show_label": True}, elem_classes="q-switch")
    if option.literal_values:
        choices = [(option.meta.choices.get(value, str(value)), value) for value in option.literal_values]
        if len(choices) <= MAX_SEGMENTS:
            return gr.Radio(choices, value=default, elem_classes="q-segments", **common)
        return gr.Dropdown(choices, value=default, elem_classes="q-select", filterable=False, **common)
    if kind in (int, float):
        placeholder = AUTOMATIC if option.is_optional else "a number"
        return gr.Number(
            default, placeholder=placeholder, elem_classes="q-number", step=1 if kind is int else _float_step(option), **common
        )
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        return gr.Dropdown(list(default), value=default, multiselect=True, allow_custom_value=True, elem_classes="q-chips", **common)
    return make_text(option)


def make_text(option: Option, lines: int = 1) -> gr.components.Component:
    """A text box; one entry a line where the option holds several."""
    value = option.default if option.default is not None else ""
    if isinstance(value, tuple):
        value = "\n".join(map(str, value))
    return gr.Textbox(
        str(value),
        label=option.meta.label,
        show_label=False,
        elem_id=option.dom_id,
        elem_classes="q-text",
        interactive=True,
        lines=lines,
        max_lines=1 if lines == 1 else 12,
        placeholder=AUTOMATIC if option.is_optional else "",
    )


def make_hidden(option: Option) -> gr.components.Component:
    """The input of an option that a tab draws by its own means: it holds JSON, stands on the page and is not seen."""
    return gr.Textbox(option.default, label=option.meta.label, elem_id=option.dom_id, visible="hidden", interactive=True)


def to_component(option: Option, value: Any) -> Any:
    """A setting's value as its input holds it."""
    if isinstance(value, tuple):
        return list(value)
    if value is None and option.inner_type is str:
        return ""
    return value


def from_component(option: Option, value: Any) -> Any:
    """What an input holds as a setting's value; an emptied one is None where the option has an "automatic"."""
    if value is None and not option.is_optional:
        return "" if option.inner_type in (int, float) else option.default
    if option.is_optional and isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, float) and option.inner_type is int and value.is_integer():
        return int(value)
    return whole_letters(value) if isinstance(value, str) else value


def _bounds_hint(option: Option) -> str:
    if option.minimum is None or option.maximum is None or option.inner_type not in (int, float) or option.maximum > MAX_SHOWN_BOUND:
        return ""
    low = f"Above {option.minimum:g}, at most" if option.exclusive_minimum else f"{option.minimum:g} to"
    return f' <span class="q-bounds q-num">{low} {option.maximum:,g}.</span>'


def _float_step(option: Option) -> float:
    span = option.maximum if option.maximum is not None else 1.0
    return 0.0001 if span <= 0.1 else 0.01 if span <= 1 else 0.1
