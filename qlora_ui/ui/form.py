"""All controls of the page as one thing: read them into a RunConfig, show a RunConfig in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from qlora_ui.settings.option import Option
from qlora_ui.settings.run_config import RunConfig, in_sections, option_by_path
from qlora_ui.ui.controls import Control, Maker, from_component, make_control, to_component

STRUCTURED = ("data.sources", "data.mapping")
"""Options that are lists or mappings of things: their input holds JSON, and the Data tab draws it."""


def as_json(path: str, value: Any) -> str:
    """The value of a structured option as its input holds it."""
    plain = [item.model_dump() for item in value] if path == "data.sources" else dict(value)
    return json.dumps(plain, ensure_ascii=False)


class Form:
    """The options that the tabs have placed. `place` draws one where the caller stands; every option is placed once."""

    def __init__(self, reserved: tuple[str, ...] = (), initial: RunConfig | None = None) -> None:
        """`initial` are the values that the controls are drawn with; the defaults where there is none."""
        self._initial = initial or RunConfig()
        self.controls: dict[str, Control] = {}
        self.presses = gr.State({})
        """What presses on a page have made of its list of datasets, see ui/source_list.py."""
        self._reserved = frozenset(reserved)

    def place(self, path: str, *, maker: Maker | None = None, min_width: int = 240) -> Control:
        """Draw the control of an option; raises ValueError for an option that already stands on the page."""
        if path in self.controls:
            raise ValueError(f"{path} stands on the page twice")
        value = self._initial.get(path)
        shown = as_json(path, value) if path in STRUCTURED else value
        control = make_control(option_by_path()[path], shown, maker=maker, min_width=min_width)
        self.controls[path] = control
        return control

    def unplaced(self, *sections: str) -> list[Option]:
        """Options of these sections (all, if none is named) that no tab has placed yet and none has reserved."""
        return [
            option
            for path, option in option_by_path().items()
            if path not in self.controls and path not in self._reserved and (not sections or option.section in sections)
        ]

    @property
    def inputs(self) -> set[gr.components.Component]:
        """Every input, and what is remembered of presses, as a set: handlers that take it get a mapping from component to value."""
        return {self.presses, *(control.input for control in self.controls.values())}

    @property
    def outputs(self) -> list[gr.components.Component]:
        """Every input in the order of `show`."""
        return [control.input for control in self.controls.values()]

    def values(self, data: Mapping[gr.components.Component, Any]) -> dict[str, Any]:
        """Option path to value as the page holds it, unchecked."""
        return {path: from_component(control.option, data[control.input]) for path, control in self.controls.items()}

    def read(self, data: Mapping[gr.components.Component, Any]) -> RunConfig:
        """The settings on the page; raises SettingsError with all problems at once."""
        return RunConfig.parse(in_sections(self.values(data)))

    def show(self, config: RunConfig) -> list[Any]:
        """Updates for `outputs` that put the settings into their controls."""
        return [self._update(path, config.get(path)) for path in self.controls]

    def show_values(self, values: Mapping[str, Any]) -> list[Any]:
        """Updates for `outputs` that change only the named options."""
        return [self._update(path, values[path]) if path in values else gr.skip() for path in self.controls]

    @staticmethod
    def differs_from_default(path: str, value: Any) -> bool:
        """Whether a value as the page holds it is another than the default."""
        option = option_by_path()[path]
        held = from_component(option, to_component(option, option.default))
        if path in STRUCTURED:
            held = as_json(path, option.default)
        if isinstance(held, list | tuple) and isinstance(value, str):
            value = [line.strip() for line in value.splitlines() if line.strip()]
        return bool(value != held)

    def _update(self, path: str, value: Any) -> Any:
        control = self.controls[path]
        plain = to_component(control.option, value)
        if isinstance(control.input, gr.Textbox) and isinstance(plain, list):
            plain = "\n".join(map(str, plain))
        if path in STRUCTURED and not isinstance(value, str):
            plain = as_json(path, value)
        return gr.update(value=plain)
