"""The training itself, healed where memory runs out: half as many rows at once, added up twice as often, on from the last step."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qlora_ui.engine import build
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.engine.failures import forget, is_out_of_memory
from qlora_ui.engine.fast.apply import FastReport, remove_fast_path
from qlora_ui.engine.memory_watch import MemoryWatch
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import Event, Healed, MemoryMeasured, Noticed
from qlora_ui.settings.run_config import RunConfig

MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""Types that running out of memory comes as; `is_out_of_memory` tells it from the rest."""


class Fitting:
    """A trainer, its rows, and what to do when they do not fit."""

    def __init__(self, trainer: QloraTrainer, rows: build.Rows, config: RunConfig, write: Callable[[Event], object]) -> None:
        self._trainer = trainer
        self._rows = rows
        self._config = config
        self._write = write
        self._capture_lock = threading.Lock()

    def enable_fast(self) -> FastReport:
        """Switch the fast path on where it can run."""
        return build.enable_fast(self._trainer, self._rows, self._config, self._capture_lock, self._note)

    def try_longest(self, watch: MemoryWatch) -> MemoryMeasured:
        """Try the heaviest batches, of the training and of its checks, healing until they fit; returns the memory that they took."""
        while True:
            watch.reset_peak()
            try:
                build.dry_run(self._trainer, self._rows)
                break
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error) or not self._can_heal():
                    raise
                forget(error)
            self._heal()
        while True:
            try:
                build.dry_check(self._trainer, self._rows)
                break
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error) or self._trainer.args.per_device_eval_batch_size == 1:
                    raise
                forget(error)
            # The training's own batch fits, as has been seen.
            self._trainer.halve_evaluation()
        measured = watch.measure("dry-run")
        watch.reset_peak()
        return measured

    def fit(self, resume: Path | None) -> None:
        """Train to the end, or on from a checkpoint; running out of memory costs the step that was in work."""
        while True:
            try:
                self._trainer.train(resume_from_checkpoint=str(resume) if resume else None)
                return
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error) or not self._can_heal():
                    raise
                forget(error)
            resume = self._heal()

    def _can_heal(self) -> bool:
        # An odd micro-batch has no half with the same rows in the same order; several processes would have to agree.
        args = self._trainer.args
        return bool(args.per_device_train_batch_size % 2 == 0 and args.world_size == 1)

    def _heal(self) -> Path | None:
        """Change the micro-batch and return the checkpoint of the last complete step; None before the first."""
        trainer = self._trainer
        size, accumulation = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
        trainer.close()
        remove_fast_path(trainer.model)
        resume = trainer.save_boundary()
        trainer.set_geometry(size // 2, accumulation * 2)
        if self._rows.is_packed:
            trainer.data_collator = build.halved(trainer.data_collator)
        build.forget_dataloaders(trainer)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.enable_fast()
        self._write(
            Healed(
                what=f"Memory ran out; it goes on with {size // 2} conversations at once, added up {accumulation * 2} times. "
                "The effective batch and the order of the rows stay.",
                changes={"train.batch_size": [size, size // 2], "train.accumulation": [accumulation, accumulation * 2]},
            )
        )
        return resume

    def _note(self, text: str) -> None:
        self._write(Noticed(level="info", code="fast-path", what=text))


def last_good(trainer: QloraTrainer, store: CheckpointStore, *, has_good_weights: bool) -> Any:
    """What to keep after a failure: the model itself where the failure left it as it was, else the newest checkpoint, else None."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if has_good_weights and all(bool(torch.isfinite(weight).all()) for weight in model.parameters() if weight.requires_grad):
        return model
    return store.newest_adapter()
