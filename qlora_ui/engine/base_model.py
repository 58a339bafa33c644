"""The base model's folder, made ready: what the job, the chat, the evaluation and the exports call first."""

from __future__ import annotations

from pathlib import Path

from qlora_ui.base.errors import ModelError
from qlora_ui.base.progress import Folders, IsCancelled, OnProgress, never, silent
from qlora_ui.models import builtin
from qlora_ui.models.catalogue import find_model_folder, is_hub_id
from qlora_ui.models.folder import INCOMPLETE, read_folder
from qlora_ui.models.hub_download import download
from qlora_ui.settings.sections import ModelSection


def ensure_model(model: ModelSection, workspace: Folders, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The folder of a model: the built-in one converted where needed, a Hub model downloaded where needed, every one checked.

    Raises ModelError where it cannot be had or must not be used, and Cancelled.
    """
    if builtin.is_builtin(model.id):
        from qlora_ui.engine.builtin_model import convert

        return convert(workspace, on_progress, is_cancelled)
    folder = find_model_folder(model.id, model.revision, workspace)
    if not is_hub_id(model.id):
        assert folder is not None
        read_folder(folder)
        return folder
    if folder is not None:
        try:
            read_folder(folder)
            return folder
        except ModelError as error:
            if error.code not in INCOMPLETE:
                raise
    return download(model.id, model.revision, on_progress, is_cancelled)
