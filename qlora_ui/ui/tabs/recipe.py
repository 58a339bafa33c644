"""The Recipe tab: how small, how much it can learn, how it trains."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.errors import SettingsError
from qlora_ui.estimate.adapter import layer_choices
from qlora_ui.estimate.advice import make_it_fit, use_the_memory
from qlora_ui.settings.presets import delete_preset, is_taken, named_preset, save_preset, unreadable_presets
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.controls import make_text
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.form import Form
from qlora_ui.ui.handler import QUIET, handler, toast_html
from qlora_ui.ui.markup import escape
from qlora_ui.ui.page import Page
from qlora_ui.ui.undo import Change
from qlora_ui.ui.views import recipe as views

BLOCKS = (
    ("small", "How small", "The base model is kept in 4 bits and never changed.", ("quant.type", "quant.double_quant"), ("quant",)),
    (
        "learn",
        "How much it can learn",
        "A small adapter learns beside the frozen model. Its size decides what it can take in.",
        ("lora.rank", "lora.targets"),
        ("lora",),
    ),
    (
        "train",
        "How it trains",
        "How often it sees the data, how boldly it corrects itself, and how long a conversation may be.",
        ("train.epochs", "train.learning_rate", "data.max_length", "eval.share"),
        ("train", "eval", "output", "launch"),
    ),
)
"""Id, title, sentence, options in plain sight (eight in all), sections whose other options are folded away."""
ELSEWHERE = ("data.max_length",)
"""Options of the Data tab's section that stand here, because they cost memory."""
GROUPS = {
    "quant": "Formats",
    "lora": "The adapter",
    "train": "Steps and speed",
    "eval": "How it is watched",
    "output": "What is kept",
    "launch": "Where it runs",
}
KEPT_BY_PRESETS = ("data.sources", "data.format", "data.mapping", "data.train_on", "output.name", "output.notes", "output.tags")
"""Options that are the user's own: a preset leaves them alone unless it names them."""
LAYERS = ("lora.targets", "lora.modules_to_save")
"""Options that hold names of the model's layers."""
LINES = {"eval.probes": 4, "output.notes": 3}


def build(page: Page) -> None:
    """Draw the tab."""
    with gr.Column(elem_classes="q-tab"):
        _head(page)
        for name, title, about, basic, sections in BLOCKS:
            with gr.Column(elem_id=f"q-block-{name}", elem_classes="q-block"):
                gr.HTML(views.block_head(title, about), apply_default_css=False)
                with gr.Row(elem_classes="q-grid"):
                    for path in basic:
                        page.form.place(path, min_width=0)
                _advanced(page, name, sections)
    page.on_form(_layer_choices, [page.form.controls[path].input for path in LAYERS])


def _layer_choices(draft: Draft) -> list[Any]:
    """The chosen model's own names of layers as choices; other names can be typed while they are not known."""
    if draft.facts is None:
        return [gr.skip() for _ in LAYERS]
    choices = layer_choices(draft.facts)
    return [gr.update(choices=choices[path]) for path in LAYERS]


class PresetPicker(gr.Dropdown):  # type: ignore[misc]  # gradio has no types
    """A preset that was deleted while a page asked for something is none: Gradio's own picker would fail whatever the page asked."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The name, or an empty one for no preset."""
        return payload if any(payload == name for _, name in self.choices) else ""


def _head(page: Page) -> None:
    presets = page.service.presets()
    name, _ = page.service.kept_draft.last()
    with gr.Column(elem_classes="q-block q-recipe-head"):
        with gr.Row(elem_classes="q-recipe-start"):
            page.preset = PresetPicker(
                views.preset_choices(presets),
                value=name,
                label="Start from a preset",
                elem_id="q-preset",
                elem_classes="q-select q-labelled",
                filterable=True,
            )
            fit = gr.Button("Make it fit", elem_id="q-make-it-fit", elem_classes="q-tool", scale=0, min_width=120)
            roomy = gr.Button("Use the memory", elem_id="q-use-memory", elem_classes="q-tool", scale=0, min_width=140)
        about = live_html("", "q-preset-about")
        with gr.Accordion("YAML, command, save as preset", open=False, elem_classes="q-fold", elem_id="q-recipe-text"):
            text = gr.HTML("", elem_id="q-recipe-yaml", apply_default_css=False)
            with gr.Row(elem_classes="q-recipe-save"):
                new_name = gr.Textbox(
                    max_lines=1, label="Save as preset", placeholder="My recipe", elem_id="q-preset-name", elem_classes="q-labelled"
                )
                save = live_html(views.save_button("", ""), "q-preset-save")
    own = page.service.workspace.presets
    page.on_form(lambda draft: views.preset_about(draft, page.service.presets(), unreadable_presets(own), own), [about])
    page.on_form(views.recipe_text, [text])
    page.on_form(lambda draft, name: _save_button(page, name), [save], [new_name])
    page.on_load(lambda: _picked(page, page.service.kept_draft.last()[0]), [page.preset, page.undo.preset])
    _wire_preset(page, about, save, new_name)
    page.undo.offer(fit.click, lambda data, _: _advice(page, data, "fit"))
    page.undo.offer(roomy.click, lambda data, _: _advice(page, data, "use"))


def _save_button(page: Page, typed: str | None) -> str:
    name, title = named_preset(typed or "")
    return views.save_button(name if is_taken(name, page.service.workspace.presets) else "", title)


def _wire_preset(page: Page, about: Any, save: Any, new_name: gr.Textbox) -> None:
    picker = page.preset
    assert picker is not None

    def is_new(data: dict[Any, Any], name: str) -> bool:
        return name != str(data[page.undo.preset] or "")

    def picked(data: dict[Any, Any], _: Action) -> Change | None:
        # Gradio's picker also tells of an input when the focus only passes through it.
        name = str(data[picker] or "")
        return preset_change(page, name) if is_new(data, name) else None

    def picked_again(data: dict[Any, Any], action: Action) -> Change | None:
        name = action.data.get("value", "")
        return None if is_new(data, name) else preset_change(page, name)

    page.undo.offer(picker.input, picked)
    page.undo.offer(picker.select, picked_again)

    @handler
    def save_as(event: gr.EventData, data: dict[Any, Any]) -> tuple[Any, str, str]:
        name, title = named_preset(str(data[new_name] or ""))
        # The button knows the name that it asked about, which need not be what the box holds by now.
        save_preset(name, title, page.form.read(data), page.service.workspace.presets, replaces=Action.of(event).id == name)
        gr.Info(f"Saved as “{escape(title)}”.", duration=4)
        return *_picked(page, name), ""

    @handler
    def delete(event: gr.EventData, shown: str | None) -> tuple[Any, str]:
        action = Action.of(event)
        if action.name == "delete-preset":
            delete_preset(action.id, page.service.workspace.presets, page.service.workspace.trash)
        # The settings on the page stay as they are; they come from no preset any more.
        return _picked(page, page.service.kept_draft.preset_here(shown))

    def wire() -> None:
        page.refresh_after(save.act(save_as, page.form.inputs | {new_name}, [picker, page.undo.preset, new_name], **QUIET))
        page.refresh_after(about.act(delete, [picker], [picker, page.undo.preset], **QUIET))

    page.when_complete(wire)


def _picked(page: Page, name: str) -> tuple[Any, str]:
    """Values for the picker and for `undo.preset`; with the choices as they are now, since Gradio refuses every request of a page
    whose picker shows a preset that was saved after the app had started.
    """
    return gr.update(choices=views.preset_choices(page.service.presets()), value=name), name


def preset_change(page: Page, name: str) -> Change | None:
    """What picking a preset changes; the user's own options stay unless the preset names them."""
    config = page.service.preset_config(name)
    named = config.differences(RunConfig())
    values = {path: config.get(path) for path in option_by_path() if path in named or path not in KEPT_BY_PRESETS}
    title = next((preset.title for preset in page.service.presets() if preset.name == name), "Defaults")
    return Change(f"Preset “{title}”", values)


def _advice(page: Page, data: dict[Any, Any], kind: str) -> Change | None:
    """The changes that make the run fit, or that turn free memory into speed; None where there are none."""
    preset, device = (str(data.get(picker) or "") for picker in (page.preset, page.device))
    draft = page.service.draft(page.form.values(data), preset=preset, device=device)
    if draft.config is None:
        raise SettingsError(problems=draft.problems)
    if draft.facts is None:
        if wrong := draft.problems_of("model.id"):
            raise SettingsError(problems=wrong)
        raise SettingsError("The model's shape is not known yet.", fix="Download it on the Model tab", where="model.id")
    advice = (make_it_fit if kind == "fit" else use_the_memory)(draft.facts, draft.config, draft.device, draft.shape)
    words = " ".join(advice.sentences)
    if not advice.changes:
        heading, words = views.nothing_changed(advice, kind)
        gr.Info(toast_html(heading, f"<p>{escape(words)}</p>"), duration=10)
        return None
    made = "Made to fit" if advice.fits else "As small as it gets, and still too large"
    title = made if kind == "fit" else "The free memory is put to use"
    return Change(title, {path: new for path, (_, new) in advice.changes.items()}, words)


def _advanced(page: Page, name: str, sections: tuple[str, ...]) -> None:
    """The other options of these sections, folded, with the number that is not at its default and a way back."""
    with gr.Accordion("Advanced", open=False, elem_classes="q-fold", elem_id=f"q-advanced-{name}") as fold:
        options = page.form.unplaced(*sections)
        for section in sections:
            mine = [option for option in options if option.section == section]
            if len(sections) > 1:
                gr.HTML(views.group_head(GROUPS.get(section, section.capitalize())), apply_default_css=False)
            with gr.Row(elem_classes="q-grid"):
                for option in mine:
                    page.form.place(option.path, maker=_maker(option.path), min_width=0)
        reset = gr.Button("Back to the defaults", size="sm", elem_id=f"q-reset-{name}", elem_classes="q-tool", scale=0)
    paths = [option.path for option in options]
    page.on_form(lambda draft: gr.update(label=_advanced_label(draft, paths)), [fold])
    defaults = {path: option_by_path()[path].default for path in paths}
    page.undo.offer(reset.click, lambda data, _: Change("Advanced options at their defaults", defaults))


def _advanced_label(draft: Draft, paths: list[str]) -> str:
    changed = sum(1 for path in paths if Form.differs_from_default(path, draft.values.get(path)))
    return f"Advanced · {changed} changed from the default" if changed else "Advanced"


def _maker(path: str) -> Any:
    return (lambda option: make_text(option, LINES[path])) if path in LINES else None
