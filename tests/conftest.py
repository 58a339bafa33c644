"""Fixtures for all tests. Nothing here imports torch before a test asks for a model."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tiny_model import make_tiny_model

from qlora_ui.runs.workspace import Workspace


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long forms are run by QLORA_UI_LONG=1; all others fit 20 minutes of two cores."""
    if not os.environ.get("QLORA_UI_LONG"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="minutes: set QLORA_UI_LONG=1"))


def pytest_collection_finish() -> None:
    """Half a million objects of the libraries stay for good; each end of a job, of which most tests have some, would look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace.at(tmp_path / "workspace")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a byte-level ChatML tokenizer, saved as safetensors."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
