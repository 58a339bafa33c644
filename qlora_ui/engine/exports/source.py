"""What an export is made of: the run's finished adapter, or where there is none its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import read_json
from qlora_ui.engine.adapter import CONFIG, base_identity, publish_adapter
from qlora_ui.engine.checkpoints import Checkpoint, CheckpointStore
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, RunDir
from qlora_ui.settings.run_config import RunConfig


def checkpoint_or_fail(run: RunDir) -> Checkpoint | None:
    """The checkpoint that stands for an adapter which is not finished; None where the run has one.

    Raises RunError where there is neither, or where the adapter's file is not whole.
    """
    if run.has_adapter:
        _refuse_damaged(run)
        return None
    newest = CheckpointStore(run.checkpoints, 1).newest_adapter()
    if newest is None:
        raise RunError(
            f"Run {run.id} has no adapter to export.",
            why="Those of its checkpoints are damaged." if run.saved_steps() else "It was not trained far enough to save one.",
            fix="Let it finish, or choose another run.",
            code="adapter-missing",
        )
    return newest


def as_adapter(checkpoint: Checkpoint, folder: Path, config: RunConfig, base: Path) -> Path:
    """The checkpoint's adapter in a folder of its own, as a finished one lies there: a run that goes on may remove the checkpoint."""
    try:
        return publish_adapter(folder, checkpoint, config, base_identity(base, config), load_tokenizer(base, config.model.template))
    except FileNotFoundError:
        raise RunError(
            f"The checkpoint of step {checkpoint.step} was replaced by a newer one meanwhile.", fix="Make it again", code="adapter-missing"
        ) from None


def _refuse_damaged(run: RunDir) -> None:
    """Whatever is made of a damaged adapter would take a good export's place."""
    if not isinstance(read_json(run.adapter / CONFIG), dict):
        raise _damaged(run, CONFIG, "is missing or holds no JSON")
    try:
        # Reads the header, which says how long the file has to be.
        with safe_open(run.adapter / ADAPTER_WEIGHTS, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _damaged(run, ADAPTER_WEIGHTS, f"cannot be read: {str(error)[:200]}") from None


def _damaged(run: RunDir, name: str, why: str) -> RunError:
    newest = CheckpointStore(run.checkpoints, 1).newest_adapter()
    fix = "Take it from a copy of the run's folder, or from an export."
    if newest is not None:
        fix = f"Copy {newest.path / name} in its place: what the run had learned at step {newest.step}, whole."
    what = f"The adapter of run {run.id} is damaged, so nothing was made of it."
    return RunError(what, why=f"Its file {name} {why}", fix=fix, code="adapter-damaged")
