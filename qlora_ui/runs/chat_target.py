"""What can be talked to: base models, runs and their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import resolve_inside
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import BUILTIN_MODEL


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """A base model (`model_id`), or a run's adapter (`run_id`), or one of its checkpoints (`checkpoint-30`)."""

    model_id: str = BUILTIN_MODEL
    revision: str | None = None
    run_id: str | None = None
    checkpoint: str | None = None

    @classmethod
    def of_key(cls, key: str) -> ChatTarget:
        """The one that a key names; a run's base does not stand in it."""
        kind, name, checkpoint = [*key.split("|"), "", ""][:3]
        return cls(run_id=name, checkpoint=checkpoint or None) if kind == "run" else cls(name or BUILTIN_MODEL)

    @property
    def key(self) -> str:
        """The same for the same one, on the page and in the saved conversation."""
        return f"run|{self.run_id}|{self.checkpoint or ''}" if self.run_id else f"model|{self.model_id}|"

    @property
    def label(self) -> str:
        """Its name for people, and the side of an added adapter."""
        if self.run_id is None:
            return self.model_id.rsplit("/", maxsplit=1)[-1].rsplit(":", maxsplit=1)[-1]
        return f"{self.run_id} · {self.checkpoint}" if self.checkpoint else self.run_id


def target_config(target: ChatTarget, workspace: Workspace) -> RunConfig:
    """The settings that the base is loaded with: the run's own, so that it is the base that the adapter was trained on."""
    if target.run_id is not None:
        return find_run(workspace, target.run_id).config()
    return RunConfig().changed({"model.id": target.model_id, "model.revision": target.revision})


def adapter_folder(target: ChatTarget, workspace: Workspace) -> Path | None:
    """Where the target's adapter lies; None for a base. Raises RunError where the run has none (yet)."""
    if target.run_id is None:
        return None
    run = find_run(workspace, target.run_id)
    folder = resolve_inside(run.checkpoints, target.checkpoint) if target.checkpoint else run.adapter
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if not target.checkpoint and run.stand_in:
            why, fix = f"It did not come to its end; its newest checkpoint is {run.stand_in}", "Choose that one, or continue the run first"
            raise RunError(f"Run {run.id} has no finished adapter.", why=why, fix=fix, code="adapter-missing")
        raise RunError(
            f"Run {run.id} has no {target.checkpoint or 'adapter'}.",
            why="It was not trained far enough to save one." if not target.checkpoint else "It may have been replaced by a newer one.",
            fix="Choose another run or checkpoint.",
            code="adapter-missing",
        )
    return folder
