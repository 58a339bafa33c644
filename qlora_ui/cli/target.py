"""Who answers in the terminal or under the API: the flags that name a run or a model, and what they mean."""

from __future__ import annotations

import argparse

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import pasted_model


def add_target(parser: argparse.ArgumentParser) -> None:
    """`--run` with `--checkpoint`, or `--model` with `--revision`."""
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--run", metavar="RUN", help="run whose adapter answers; “latest” is the newest")
    who.add_argument("--model", metavar="ID", help="a base model: built-in, a folder, or an id on the Hub")
    parser.add_argument("--checkpoint", metavar="NAME", help="checkpoint-N of the run instead of its finished adapter")
    parser.add_argument("--revision", metavar="REVISION", help="version of --model on the Hub")


def target_of(arguments: argparse.Namespace, workspace: Workspace) -> ChatTarget:
    """What these flags name; raises QloraUiError where they do not go together, RunError for no such run or adapter."""
    if arguments.checkpoint and not arguments.run:
        raise QloraUiError("A checkpoint belongs to a run.", fix="Give --run too.", where="--checkpoint", code="usage")
    if arguments.revision and not arguments.model:
        raise QloraUiError("A version belongs to a model of the Hub.", fix="Give --model too.", where="--revision", code="usage")
    run_id = find_run(workspace, arguments.run).id if arguments.run else None
    named = {"model_id": pasted_model(arguments.model)} if arguments.model else {}
    target = ChatTarget(**named, revision=arguments.revision, run_id=run_id, checkpoint=arguments.checkpoint)
    adapter_folder(target, workspace)  # to refuse before torch is imported, which takes many seconds
    return target
