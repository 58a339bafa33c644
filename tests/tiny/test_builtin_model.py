"""The built-in model's conversion as those see it who wait for another's."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from qlora_ui.base.errors import ModelError
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine import builtin_model
from qlora_ui.runs.workspace import Workspace


def test_who_waits_for_another_conversion_says_so_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(tmp_path)
    monkeypatch.setattr(builtin_model, "LOOK_S", 0.01)
    said: list[tuple[str, float | None]] = []
    with FileLock(workspace.models / ".smollm2.lock"), pytest.raises(Cancelled):
        builtin_model.convert(workspace, lambda what, share: said.append((what, share)), lambda: len(said) >= 2)
    assert len(said) == 2 and "as begun before" in said[0][0]


def test_too_little_space_names_what_is_needed_and_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_model, "free_bytes", lambda path: 400 << 20)
    with pytest.raises(ModelError) as caught:
        builtin_model.convert(Workspace.at(tmp_path))
    assert "takes 521 MiB; 400 MiB are free" in str(caught.value)
