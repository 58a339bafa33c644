"""The tokenizer of a model without its weights: counting tokens must not bring gigabytes."""

from __future__ import annotations

from pathlib import Path

from qlora_ui.base.errors import ModelError
from qlora_ui.base.progress import Folders, IsCancelled, OnProgress, never, silent
from qlora_ui.engine.base_model import ensure_model
from qlora_ui.models.catalogue import find_model_folder, is_hub_id
from qlora_ui.models.hub import endpoint, hub_errors
from qlora_ui.models.hub_cache import cache_folder
from qlora_ui.settings.sections import ModelSection

_FILES = [
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "config.json",
    "generation_config.json",
]


def tokenizer_folder(
    model: ModelSection,
    workspace: Folders,
    *,
    may_download: bool = False,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> Path:
    """A folder with the model's tokenizer; of a Hub model that is not here only the tokenizer's files are fetched.

    Raises ModelError where it is not on this computer and `may_download` is off, or the Hub refuses.
    """
    if not is_hub_id(model.id):
        return ensure_model(model, workspace, on_progress, is_cancelled)
    folder = find_model_folder(model.id, model.revision, workspace)
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return folder
    if not may_download:
        raise ModelError(
            f"{model.id} is not on this computer yet.",
            why="Its tokenizer is needed to count tokens.",
            fix="Download it on the Model tab.",
            where="model.id",
            code="model-absent",
        )
    from huggingface_hub import snapshot_download

    on_progress(f"Fetching the tokenizer of {model.id}", None)
    with hub_errors(model.id, model.revision):
        path = snapshot_download(model.id, revision=model.revision, allow_patterns=_FILES, endpoint=endpoint(), cache_dir=cache_folder())
    return Path(path)
