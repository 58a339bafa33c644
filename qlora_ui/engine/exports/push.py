"""Uploading an export to the Hub: private unless told otherwise, and only what an export holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import size_of_tree
from qlora_ui.engine.exports.adapter import refuse_leaks
from qlora_ui.models.hub import endpoint, hub_errors
from qlora_ui.runs.workspace import Workspace

_NEVER = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "checkpoint-*", "optimizer*", ".*"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What an upload made."""

    url: str
    num_bytes: int
    is_private: bool


def can_push_or_fail(repository: str) -> None:
    """Raise QloraUiError where the name cannot be one, and RunError where nobody is logged in: to be asked before the export is made."""
    from huggingface_hub import get_token

    if "/" not in repository or repository.count("/") > 1:
        raise QloraUiError(
            f"“{repository[:80]}” is not a name on the Hub.", fix="Names look like OWNER/NAME.", where="--to", code="hub-name"
        )
    if get_token() is None and not os.environ.get("HF_TOKEN"):
        raise RunError(
            "You are not logged in to the Hub.",
            fix="Run “hf auth login”, or set HF_TOKEN to a token that may write.",
            code="hub-login",
        )


def push_folder(folder: Path, repository: str, workspace: Workspace, *, public: bool = False) -> Pushed:
    """Upload an export's folder as a model of the user's on the Hub.

    The token comes from HF_TOKEN or the Hub's own login. Raises RunError without one, ModelError where the Hub refuses, and
    RunError where the folder holds what should not leave this machine.
    """
    from huggingface_hub import HfApi

    can_push_or_fail(repository)
    if not (folder / "README.md").is_file():
        raise RunError(
            f"{folder.name} is not an export that can be uploaded.", fix="Export the run as adapter or whole model first.", code="push"
        )
    refuse_leaks(folder, workspace)
    with hub_errors(repository):
        api = HfApi(endpoint=endpoint())
        url = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and api.model_info(repository).private is False:
            raise RunError(
                f"{repository} is there already, and public.",
                why="Everybody would see the upload.",
                fix="Choose another name, or say that it may be public (--public).",
                code="push-public",
            )
        try:
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                ignore_patterns=_NEVER,
                commit_message="Upload from QLoRA UI",
            )
        except ValueError as error:
            if not str(error).startswith("Invalid metadata"):
                raise
            raise RunError(
                "The Hub refuses the model card, so nothing was uploaded.",
                why=" ".join(str(error).split())[:300],
                fix=f"Correct the lines between --- in {folder / 'README.md'} and upload the folder with “hf upload”.",
                code="push-card",
            ) from None
    return Pushed(str(url), size_of_tree(folder), not public)
