"""The settings of a page: what the next visit finds of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import write_json
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.app import build
from qlora_ui.ui.new_data import named_source
from qlora_ui.ui.service import Service


@pytest.mark.parametrize(("name", "found"), [("demo", "demo"), ("", ""), ("deleted", ""), ("broken", ""), (None, "")])
def test_a_preset_that_is_gone_is_not_picked_again_and_its_settings_stay(workspace: Workspace, name: str | None, found: str) -> None:
    (workspace.presets / "broken.yaml").write_text("lora: [", encoding="utf-8")
    write_json(workspace.root / "draft.json", {"preset": name, "settings": {"lora": {"rank": 7}}})
    preset, config = Service(workspace).last_draft()
    assert (preset, config.lora.rank) == (found, 7)


def test_a_page_that_nobody_touches_puts_no_old_settings_back(workspace: Workspace) -> None:
    service = Service(workspace)
    blocks = build(service)

    def raised(elem_id: str, event: str, rank: int) -> None:
        """What a page with that adapter size asks for when a component of it raises an event."""
        source = next(block for block in blocks.blocks.values() if getattr(block, "elem_id", "") == elem_id)
        (handler,) = (fn for fn in blocks.fns.values() if (source._id, event) in fn.targets and str(fn.name).startswith("_form"))
        shown = {"q-is-restored": "yes", "lora-rank": rank}
        data: dict[Any, Any] = {one: shown.get(str(one.elem_id), one.value) for one in handler.inputs}
        assert handler.fn is not None
        handler.fn(SimpleNamespace(session_hash=f"page with {rank}"), data)

    raised("lora-rank", "input", 77)
    raised("q-pulse", "found", 16)
    raised("lora-rank", "input", 16)  # as a press of a button does, or leaving a field
    service.stop_reading()
    assert Service(workspace).last_draft()[1].lora.rank == 77


@pytest.mark.parametrize("typed", ["~nobody-of-that-name/x", "a" * 300, "x/" * 3000, '{"prompt": "' + "pasted into the wrong field " * 50])
def test_what_can_be_no_path_is_told_and_breaks_no_page(workspace: Workspace, typed: str) -> None:
    service = Service(workspace)
    for path, value in (("model.id", typed), ("data.sources", [{"id": typed}])):
        draft = service.draft({"model.id": "builtin:smollm2-135m-instruct", path: value})
        assert [problem.where for problem in draft.problems] == [path] and not draft.is_ready
        assert len(draft.problems[0].what) < 300
    with pytest.raises(DataError, match=r"neither a file nor a name on the Hub"):
        named_source(typed)
