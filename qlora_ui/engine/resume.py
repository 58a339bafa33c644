"""Taking a run up where it was left: from the newest whole checkpoint, exactly, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qlora_ui.base.errors import RunError
from qlora_ui.engine.callbacks import Best
from qlora_ui.engine.checkpoints import Checkpoint, CheckpointStore
from qlora_ui.engine.dataset import Datasets, changed_files, kept_datasets
from qlora_ui.engine.fast.packing import PackedCollator
from qlora_ui.engine.plan import changed_settings
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.engine.unlogged import unlogged_in
from qlora_ui.runs.events import Event, Noticed
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings.run_config import RunConfig


def find_checkpoint(store: CheckpointStore, write: Callable[[Event], object], *, is_main: bool) -> Checkpoint | None:
    """The newest whole checkpoint; leftovers of a kill are removed, broken newer ones named and removed.

    What was learned is not: the newest whole adapter stays. Raises RunError where no checkpoint is left to go on from but such a one.
    """
    if is_main:
        store.clean()
    newest, broken = store.newest_whole()
    learned = store.newest_adapter()
    if newest is None and learned is not None:
        raise RunError(
            f"This run cannot be continued: its checkpoint of step {learned.step} is damaged.",
            why=f"{broken[0].why[:1].upper()}{broken[0].why[1:]}; the adapter is whole, but not what it takes to go on in the same way",
            fix="Put the file back where there is a copy, or start a new run from what this one has learned, which stays",
            code="checkpoint-broken",
        )
    for item in broken if is_main else ():
        instead = f"step {newest.step} is used instead" if newest else "the run starts again from its first step"
        write(
            Noticed(
                level="warning",
                code="checkpoint-broken",
                what=f"The checkpoint of step {item.step} is broken: {item.why}.",
                why=f"Training goes on without loss of exactness: {instead}",
            )
        )
        if learned is None or item.step != learned.step:
            shutil.rmtree(item.path, ignore_errors=True)
    return newest


def own_rows(run: RunDir, write: Callable[[Event], object]) -> Datasets | None:
    """The rows that the run began with, where they are still there: what became of their files is told, and does not matter."""
    data = kept_datasets(run)
    if data is not None and (names := changed_files(data.receipt)):
        what = f"The run goes on with the rows that it began with; changed or gone since then: {', '.join(names)}."
        write(Noticed(level="info", code="own-rows", what=what, fix="For other rows start a new run"))
    return data


def check_same(checkpoint: Checkpoint, marks: Mapping[str, Any], config: RunConfig) -> None:
    """Raise RunError (code `resume-changed`) where rows, settings or base are not those that the checkpoint was trained with.

    `marks` are those of rows and base as they are now, `config` the run's settings.
    """
    settings = changed_settings(config, checkpoint.notes)
    has_rows = checkpoint.notes.get("rows_sha256") == marks["rows_sha256"]
    # Earlier versions of the app noted nothing of the base.
    is_replaced = checkpoint.notes.get("weights_mark", marks.get("weights_mark")) != marks.get("weights_mark")
    if has_rows and not settings and not is_replaced:
        return
    if settings:
        what, why = "the settings", "; ".join(settings)
        undo = "Give the file config.yaml in the run's folder its former values"
    elif is_replaced:
        what, why = "the base model", "Its files hold other weights than those that the run was trained on"
        undo = "Put the former model back in its place"
    else:
        what = "the data"
        why = "Rows, their tokens or what is learned of them differ: a dataset was edited, or the model's tokenizer or this app was updated"
        undo = "Put the dataset back as it was"
    raise RunError(
        f"This run cannot be continued exactly: {what} changed since step {checkpoint.step}.",
        why=why,
        fix=f"{undo}, or start a new run from what this one has learned, which stays",
        code="resume-changed",
    )


def take_up(checkpoint: Checkpoint, trainer: QloraTrainer, best: Best, store: CheckpointStore) -> None:
    """What the Trainer does not restore: the best check, one that was broken off, sums of the curve, halved micro-batches."""
    best.restore(checkpoint.notes)
    trainer.unlogged = unlogged_in(checkpoint.notes.get("unlogged"))
    if best.step is not None and store.find(best.step) is None:
        best.step = None
    if checkpoint.notes.get("owes_check") and trainer.eval_dataset is not None:
        trainer.owe_check()
    size, accumulation = checkpoint.notes.get("batch_size"), checkpoint.notes.get("accumulation")
    if size and accumulation and int(size) != trainer.args.per_device_train_batch_size:
        trainer.set_geometry(int(size), int(accumulation))
        if isinstance(trainer.data_collator, PackedCollator):
            trainer.data_collator = replace(trainer.data_collator, batch_rows=int(size))
            trainer.args.per_device_eval_batch_size = int(size)
