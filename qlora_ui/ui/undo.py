"""Changes that the app makes to the settings: shown as old → new, applied at once, taken back with one press."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import BaseModel

from qlora_ui.settings.option import Option
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.ui.action import Action
from qlora_ui.ui.controls import from_component
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.page import Page
from qlora_ui.ui.views.words import describe_model, source_words

SHOWN = 6
PRESET = "preset"
"""Key of the preset that was chosen before the change, beside the options' paths."""
CHANGED_AT = "changed at"
"""Key of the time of the change."""
SET = "set"
"""Key of what the change has set, by option path."""
ECHO_S = 3.0
"""The same change within this time is an echo: Gradio's dropdown at times tells of one choice twice."""


@dataclass(frozen=True, slots=True)
class Change:
    """New values for some options, and the sentence that says why."""

    title: str
    values: Mapping[str, Any]
    """Option path to new value."""
    about: str = ""
    """Why, in a sentence or two."""
    preset: str | None = None
    """The preset that the values came from, where it is not the one that the picker shows."""


class Undo:
    """The bar above the tabs that says what was changed and takes it back."""

    def __init__(self, page: Page) -> None:
        """Draw the bar, empty and unseen, where the caller stands."""
        self._page = page
        with gr.Row(elem_id="q-undo", visible=False) as self._bar:
            self._words = gr.HTML("", elem_id="q-undo-words", apply_default_css=False)
            self._back = gr.Button("Undo", size="sm", elem_id="q-undo-back", min_width=88, scale=0)
            self._close = gr.Button("Keep it", size="sm", elem_id="q-undo-close", min_width=88, scale=0)
        self._old = gr.State({})
        self.preset = gr.State("")
        """The preset that the settings on the page came from. The picker cannot say it: it shows the new one before the change is made."""
        page.when_complete(self._wire)

    def offer(
        self,
        listener: Callable[..., Any],
        propose: Callable[[dict[Any, Any], Action], Change | None],
        extra_outputs: Sequence[Any] = (),
        extra_values: Callable[[dict[Any, Any], Action], list[Any]] | None = None,
    ) -> None:
        """Let `listener` (a `button.click`) make a change: `propose` gets the page's values by component, the pickers of preset and
        device among them, and what was pressed; it says which change.

        None, or a change that changes nothing, leaves the settings alone. `extra_values` gives values for `extra_outputs`.
        """
        self._page.when_complete(lambda: self._offer(listener, propose, extra_outputs, extra_values))

    def _offer(
        self,
        listener: Callable[..., Any],
        propose: Callable[[dict[Any, Any], Action], Change | None],
        extra_outputs: Sequence[Any],
        extra_values: Callable[[dict[Any, Any], Action], list[Any]] | None,
    ) -> None:
        form = self._page.form

        @handler
        def apply(event: gr.EventData, data: dict[Any, Any]) -> list[Any]:
            action = Action.of(event)
            change = propose(data, action)
            extras = extra_values(data, action) if extra_values is not None else [gr.skip() for _ in extra_outputs]
            old = {path: data[control.input] for path, control in form.controls.items()}
            differing = changed_only(form.values(data), change.values) if change is not None else {}
            if change is None or not differing:
                preset = gr.skip() if change is None else data[self._page.preset]
                return [gr.skip() for _ in form.outputs] + [gr.skip(), gr.skip(), gr.skip(), preset, gr.skip(), *extras]
            moved = [(option_by_path()[path], form.values(data)[path], new) for path, new in differing.items()]
            words = change_html(change.title, moved, change.about)
            kept = {path: old[path] for path in differing}
            if _is_echo(kept, data[self._old]):
                return [gr.skip() for _ in outputs]
            kept[SET] = {path: _plain(option_by_path()[path], new) for path, new in differing.items()}
            kept |= {PRESET: data[self.preset], CHANGED_AT: time.monotonic()}
            preset, picked = (data[self._page.preset], gr.skip()) if change.preset is None else (change.preset, change.preset)
            return [*form.show_values(differing), words, gr.update(visible=True), kept, preset, picked, *extras]

        outputs = [*form.outputs, self._words, self._bar, self._old, self.preset, self._page.preset, *extra_outputs]
        inputs = form.inputs | self._page.pickers | {self.preset, self._old}
        # In turn, so that a second press of the same button is known for one.
        in_turn: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1}
        event = listener(apply, inputs, outputs, **QUIET, **in_turn)
        self._page.refresh_after(event)

    def _wire(self) -> None:
        form = self._page.form
        stays = [gr.skip() for _ in form.outputs]

        @handler
        def back(data: dict[Any, Any]) -> list[Any]:
            old = data[self._old]
            if is_overtaken(form.values(data), old):
                gr.Info("What was changed here has been changed again since, so it stays as it is now.", duration=6)
                return [*stays, gr.skip(), gr.skip(), gr.update(visible=False), {}]
            updates = [gr.update(value=old[path]) if path in old else gr.skip() for path in form.controls]
            preset = old.get(PRESET, "")
            return [*updates, preset, preset, gr.update(visible=False), {}]

        outputs = [*form.outputs, self._page.preset, self.preset, self._bar, self._old]
        event = self._back.click(back, form.inputs | {self._old}, outputs, **QUIET)
        self._page.refresh_after(event)
        self._close.click(lambda: (gr.update(visible=False), {}), None, [self._bar, self._old], **QUIET)
        # Taking a change back would throw away what the user has made of it since.
        self._page.on_form(
            lambda draft, old: gr.update(visible=False) if is_overtaken(draft.values, old) else gr.skip(), [self._bar], [self._old]
        )


def is_overtaken(values: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether an option holds neither what the last change has set nor what it took away.

    The latter is no edit: it is what a page held that asked before the change had reached it.
    """
    options = option_by_path()
    for path, new in old.get(SET, {}).items():
        held = _plain(options[path], values[path])
        if held != new and held != _plain(options[path], from_component(options[path], old[path])):
            return True
    return False


def _is_echo(kept: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether this change is the one that was just made, by the values that it takes away."""
    values = {path: value for path, value in last.items() if path in option_by_path()}
    return kept == values and time.monotonic() - last.get(CHANGED_AT, -ECHO_S) < ECHO_S


def changed_only(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Of the new values, those that differ from the old ones."""
    options = option_by_path()
    return {path: value for path, value in new.items() if _plain(options[path], old.get(path)) != _plain(options[path], value)}


def change_html(title: str, changes: Sequence[tuple[Option, Any, Any]], about: str = "") -> str:
    """What was changed: a title, then label, old → new for each option."""
    items = [
        f'<li><span class="q-undo-name">{escape(option.meta.label)}</span> '
        f"<s>{escape(value_words(option, old))}</s> → <b>{escape(value_words(option, new))}</b></li>"
        for option, old, new in changes[:SHOWN]
    ]
    if len(changes) > SHOWN:
        items.append(f"<li>and {len(changes) - SHOWN} more</li>")
    why = f"<p>{escape(about)}</p>" if about else ""
    return f'<div role="status" class="q-undo"><strong>{escape(title)}</strong>{why}<ul>{"".join(items)}</ul></div>'


def value_words(option: Option, value: Any) -> str:
    """A setting's value as a person says it; datasets by their names, a mapping by its pairs."""
    if isinstance(option.default, tuple | dict):
        value = _plain(option, value)
    if value is None or value == "":
        return "automatic" if option.is_optional else "nothing"
    if isinstance(value, bool):
        return "on" if value else "off"
    if option.literal_values:
        return option.meta.choices.get(value, str(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return middle_cut(", ".join(f"{name}: {part}" for name, part in value.items()) or "nothing", 40)
    if isinstance(value, list | tuple):
        return middle_cut(", ".join(source_words(item) if isinstance(item, dict) else str(item) for item in value) or "nothing", 80)
    return describe_model(str(value)) if option.path == "model.id" else middle_cut(str(value), 40)


def _plain(option: Option, value: Any) -> Any:
    """A value so that a control's and a config's are equal when they mean the same."""
    if isinstance(option.default, tuple | dict) and isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith(("[", "{")) else [line.strip() for line in text.splitlines() if line.strip()]
        except ValueError:  # a line of text that begins with such a sign
            value = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(value, list | tuple):
        return [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    return option.default if value is None and not option.is_optional else value
