"""The line above every control: what a change costs, what is wrong with it, whether it is still the default."""

from __future__ import annotations

from qlora_ui.base.errors import sentences
from qlora_ui.ui.controls import head_html
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.form import Form
from qlora_ui.ui.page import Page
from qlora_ui.ui.views.delta import delta_words
from qlora_ui.ui.views.recipe import automatic_words, caution_words, idle_words


def connect(page: Page) -> None:
    """Keep the heads of all controls in step with the settings; called once every control stands."""
    controls = page.form.controls

    def draw(draft: Draft) -> list[str]:
        heads = []
        for path, control in controls.items():
            problems = draft.problems_of(path)
            wrong = " ".join(sentences(item.what, item.why, item.fix) for item in problems)
            changed = Form.differs_from_default(path, draft.values.get(path)) and path not in ("model.id", "output.name")
            effect = idle_words(draft, path) or delta_words(draft, control.option) or automatic_words(draft, path)
            words = (effect, caution_words(draft, path))
            note = ". ".join(filter(None, words))
            heads.append(head_html(control.option, delta=note, problem=wrong, changed=changed))
        return heads

    page.on_form(draw, [control.head for control in controls.values()])
