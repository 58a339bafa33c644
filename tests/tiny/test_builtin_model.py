"""The built-in model converted for real, once; skipped where its package is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ui.base.errors import ModelError
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine import builtin_model
from qlora_ui.engine.base_model import ensure_model
from qlora_ui.models import builtin
from qlora_ui.models.catalogue import list_models
from qlora_ui.models.folder import read_folder
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import ModelSection

needs_package = pytest.mark.skipif(builtin.gguf_path() is None, reason=f"{builtin.PACKAGE} is not installed")


@needs_package
def test_it_is_converted_once_whole_and_readable(workspace: Workspace) -> None:
    from transformers import AutoTokenizer

    seen: list[tuple[str, float | None]] = []
    folder = ensure_model(ModelSection(), workspace, lambda what, share: seen.append((what, share)))
    shares = [share for _, share in seen if share is not None]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) >= 5
    assert builtin.is_converted(workspace) and builtin.changed_files(workspace) == []
    facts = read_folder(folder).facts
    assert facts.stored_params == facts.num_params == 134_515_008
    assert (facts.licence, facts.has_chat_template) == (builtin.LICENCE, True)
    assert list_models(workspace)[0].folder == folder
    assert not any(workspace.temp.iterdir())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config and "_model_name_or_path" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Crème brûlée — 東京\n    indented 42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.model_max_length == 8192
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_model(ModelSection(), workspace) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_absent_package_says_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "gguf_path", lambda: None)
    with pytest.raises(ModelError, match="HuggingFaceTB/SmolLM2-135M-Instruct") as caught:
        ensure_model(ModelSection(), workspace)
    assert caught.value.code == "builtin-absent"
    assert list_models(workspace)[0].problem


def test_a_damaged_file_is_not_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / builtin.GGUF_NAME
    damaged.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(builtin, "gguf_path", lambda: damaged)
    with pytest.raises(ModelError) as caught:
        ensure_model(ModelSection(), workspace)
    assert caught.value.code == "builtin-damaged"


@needs_package
def test_stopping_leaves_nothing_behind(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_a_bit(gguf: Path, staged: Path, on_progress: object, is_cancelled: object) -> None:
        (staged / "model.safetensors").write_bytes(b"half")
        raise Cancelled("stopped")

    monkeypatch.setattr(builtin_model, "_write", write_a_bit)
    with pytest.raises(Cancelled):
        ensure_model(ModelSection(), workspace)
    assert not builtin.converted_folder(workspace).exists() and not any(workspace.temp.iterdir())
