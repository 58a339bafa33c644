"""The settings of a page: what the next visit finds of them."""

from __future__ import annotations

import pytest

from qlora_ui.base.files import write_json
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.service import Service


@pytest.mark.parametrize(("name", "found"), [("demo", "demo"), ("", ""), ("deleted", ""), ("broken", ""), (None, "")])
def test_a_preset_that_is_gone_is_not_picked_again_and_its_settings_stay(workspace: Workspace, name: str | None, found: str) -> None:
    (workspace.presets / "broken.yaml").write_text("lora: [", encoding="utf-8")
    write_json(workspace.root / "draft.json", {"preset": name, "settings": {"lora": {"rank": 7}}})
    preset, config = Service(workspace).last_draft()
    assert (preset, config.lora.rank) == (found, 7)
