"""SFTTrainer with whole checkpoints, exact continuation, a stop in every phase and numbers that are checked before they are used.

The curve is the plain stack's: model, then `SFTTrainer(model, SFTConfig(**training_arguments(...)), peft_config=LoraConfig(...))`
on rows of `input_ids` and `labels`, then `match_adapter_dtype`. A stand-alone script that does the same in the same order gets
the same losses to the last digit on a CPU.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PrinterCallback, Trainer
from trl import SFTTrainer

from qlora_ui.base.errors import Problem, RunError
from qlora_ui.engine.adapter import WEIGHTS, write_adapter
from qlora_ui.engine.callbacks import Best, EvaluationStopped
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.engine.failures import NonFinite, StopRun, forget, is_out_of_memory
from qlora_ui.engine.fast.captured_step import FastStepMixin
from qlora_ui.engine.fast.packing import PackedCollator
from qlora_ui.engine.load import keep_layers
from qlora_ui.engine.randomness import RandomState, read_random_state, restore_random_state
from qlora_ui.engine.split import adapter_names, gather_adapter, scatter_adapter
from qlora_ui.engine.unlogged import Unlogged, unlogged_of
from qlora_ui.engine.unsaved import error_of, notice_of, unsaved_because
from qlora_ui.runs.card import Turns
from qlora_ui.runs.events import CheckpointSaved, Event, Healed
from qlora_ui.settings.intervals import Intervals, warmup_argument
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import sft_arguments

SKIPPED_SCALES = 12
"""Steps in a row that fp16's loss scaling may throw away before it counts as not a number."""
SCHEDULER = "scheduler.pt"
"""Transformers' name for it in a checkpoint."""


def training_arguments(config: RunConfig, plan: Intervals, output_dir: Path, *, on_gpu: bool, compute_dtype: str) -> dict[str, Any]:
    """Keyword arguments of trl.SFTConfig: those of the settings, and paths, intervals and silence."""
    return {
        **sft_arguments(config, on_gpu=on_gpu, compute_dtype=compute_dtype),
        "output_dir": str(output_dir),
        "max_length": config.data.max_length,
        "warmup_steps": warmup_argument(config, plan.num_steps),
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "eval_strategy": "steps" if plan.eval_every else "no",
        "eval_steps": plan.eval_every or None,
        "save_strategy": "steps",
        "save_steps": plan.save_every,
        "logging_strategy": "steps",
        "logging_first_step": True,
        # The filter would show 0.0 for a loss that is no number.
        "logging_nan_inf_filter": False,
        "prediction_loss_only": True,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
    }


def match_adapter_dtype(model: Any, compute_dtype: str) -> None:
    """Adapter weights in fp32 unless the arithmetic is bf16.

    TRL makes them bf16 whatever the arithmetic is: under fp16 the loss scaler then fails, and fp32 would lose its point.
    """
    if compute_dtype == "bfloat16":
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@dataclass
class Session:
    """What a job gives its trainer."""

    config: RunConfig
    store: CheckpointStore
    best: Best
    write: Callable[[Event], object]
    notes: Callable[[], Mapping[str, Any]]
    """What a checkpoint has to remember beside the Trainer's own state."""
    turns: Turns
    resume_clock: Callable[[], None]
    between_steps: Callable[[int], None]
    """Called with the step after its log, check and save are done."""
    tokens_before: int = 0
    """Tokens seen before this attempt; TRL would count from 0 again."""


class QloraTrainer(FastStepMixin, SFTTrainer):  # type: ignore[misc]
    """The trainer of every run."""

    data_collator: Any

    def __init__(self, *arguments: Any, session: Session, **named: Any) -> None:
        self._session = session
        self._staged: Path | None = None
        self._num_skipped_scales = 0
        self.boundary: RandomState | None = None
        """Random state at the last point from which the run can be continued exactly."""
        self._boundary_tokens = 0
        self.unlogged = Unlogged()
        """What was added up for the curve at that point."""
        self._has_unlogged = False
        self.owes_check = False
        """Whether the check of the last step was left out for the sake of an end that the user asked for."""
        self.unsaved: Problem | None = None
        """Why the last checkpoint was not saved, where it was not."""
        self._adapter_names: dict[str, str] = {}
        super().__init__(*arguments, **named)
        self.remove_callback(PrinterCallback)

    @property
    def tokens_before(self) -> int:
        """Tokens seen before this attempt."""
        return self._session.tokens_before

    # Continuing

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **named: Any) -> Any:
        """Train, or continue from a verified checkpoint; tokens go on counting where they were."""
        self._total_train_tokens = self._boundary_tokens = self._session.tokens_before
        self.boundary = read_random_state()
        self._has_unlogged = False
        try:
            return super().train(resume_from_checkpoint, *arguments, **named)
        except EvaluationStopped:
            # Only the check that was owed comes outside of the steps: its checkpoint is as it was.
            raise StopRun from None

    def _run_epoch(self, *arguments: Any, **named: Any) -> Any:
        # The Trainer has set its sums to zero just before the first epoch of this attempt.
        if not self._has_unlogged:
            self._has_unlogged = True
            self.unlogged.put_back(self)
        if self._session.best.is_satisfied:
            # The run was killed between the check that used the patience up and its end.
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*arguments, **named)

    def owe_check(self) -> None:
        """The checkpoint to continue from was saved when its check was broken off: the check comes before the next step."""
        self.args.eval_on_start = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Copy the adapter into the parameters that are there.

        peft's own loading makes a bf16 adapter fp32: other numbers, twice the memory, and not what the fast step has fused.
        """
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        target = self.model if model is None else model
        if self.is_fsdp_enabled:
            unknown = sorted(set(tensors) ^ set(self._adapter_names.values()))
            if not unknown:
                scatter_adapter(target, self._adapter_names, tensors)
        else:
            unknown = set_peft_model_state_dict(self.accelerator.unwrap_model(target), tensors).unexpected_keys
        if unknown:
            raise RunError(
                "The checkpoint does not fit the adapter of this run.",
                why=f"They differ in {unknown[0]}",
                fix="Start a new run",
                code="resume-changed",
            )

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        if self.is_fsdp_enabled:
            self._adapter_names = adapter_names(self.accelerator.unwrap_model(self.model))
        prepared = super()._prepare_for_training(*arguments, **named)
        if self._session.config.train.checkpointing == "partly":
            # train() has just switched recomputation on for all layers.
            keep_layers(self.model, self._session.config.train.kept_layers)
        return prepared

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *arguments: Any, **named: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *arguments, **named)
        except EvaluationStopped:
            # The step before the check is complete; what the check has drawn from the random numbers it draws once.
            model.train()
            self.control.should_training_stop = True
            self.control.should_evaluate = self.control.should_save = False
            self.owes_check = True
            self._save_checkpoint(model, trial)
        self._session.between_steps(self.state.global_step)
        self._mark_boundary()
        self._session.turns.pass_on()
        self._session.resume_clock()

    def save_boundary(self) -> Path | None:
        """Write a checkpoint of the last complete step after a step was given up halfway; None before the first one."""
        step = self.state.global_step
        self.model.zero_grad()
        if self.boundary is not None:
            restore_random_state(self.boundary)
        # The step that was given up has added to the sums of the curve; its tokens are counted again.
        self.unlogged.put_back(self)
        self._total_train_tokens = self._session.tokens_before = self._boundary_tokens + self.unlogged.num_tokens
        self.unlogged = replace(self.unlogged, fast_tokens=None)
        if step == 0:
            return None
        self._save_checkpoint(self.model_wrapped, None, must=True)
        return self._session.store.path_of(step)

    def _mark_boundary(self) -> None:
        self.boundary, self.unlogged = read_random_state(), unlogged_of(self)
        self._boundary_tokens = int(self._total_train_tokens)

    def set_geometry(self, batch_size: int, accumulation: int) -> None:
        """Other micro-batches of the same effective batch; the order of the rows stays. Call between two `train`."""
        self.args.per_device_train_batch_size = batch_size
        self.args.gradient_accumulation_steps = accumulation
        self._train_batch_size = batch_size
        self.optimizer = self.lr_scheduler = None

    # Checking numbers

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        value = float(norm)
        # Over several processes only the gradient is the same everywhere; a loss that is no number shows in it.
        loss = float(self._tr_loss) if self.args.world_size == 1 else 0.0
        if math.isfinite(value) and math.isfinite(loss):
            self._num_skipped_scales = 0
            return norm
        self._num_skipped_scales += 1
        if self.args.fp16 and math.isfinite(loss) and self._num_skipped_scales <= SKIPPED_SCALES:
            return norm
        raise NonFinite(self.state.global_step, loss, value)

    # Evaluating

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        """Evaluate; where memory does not suffice, again with half as many rows at once."""
        self.args.eval_on_start = False
        state = self.accelerator.gradient_state
        loaders = list(state.dataloader_references)
        while True:
            try:
                return super().evaluate(*arguments, **named)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.args.per_device_eval_batch_size == 1:
                    raise
                forget(error)
            # What broke off has left its loader there, and training would take it for its own.
            state.dataloader_references = loaders
            self.halve_evaluation()

    def halve_evaluation(self) -> None:
        """Half as many rows at once in checks, from now on; the training's micro-batch stays."""
        old = self.args.per_device_eval_batch_size
        self.args.per_device_eval_batch_size = max(old // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._session.write(
            Healed(
                what="A check ran out of memory; it goes on with fewer rows at once.",
                changes={"eval.batch_size": [old, self.args.per_device_eval_batch_size]},
            )
        )

    @property
    def eval_collator(self) -> Any:
        """The collator of checks: packed batches have as many rows as are checked at once, not as are trained on."""
        if isinstance(self.data_collator, PackedCollator):
            return replace(self.data_collator, batch_rows=self.args.per_device_eval_batch_size)
        return self.data_collator

    def get_eval_dataloader(self, *arguments: Any, **named: Any) -> Any:
        """The loader of checks, with their own collator."""
        of_training, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(*arguments, **named)
        finally:
            self.data_collator = of_training

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staged) if self._staged is not None else str(super()._get_output_dir(trial))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; of a split model every process has to call it."""
        if self.is_fsdp_enabled:
            self._save(output_dir, gather_adapter(self.model, self._adapter_names))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Without the model's whole state, which transformers would gather and pickle beside the adapter.
        save_fsdp_optimizer(self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # No tokenizer (the base has it), no pickled arguments (they hold paths and are never read).
        if self.args.should_save:
            assert output_dir is not None
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_adapter(self.accelerator.unwrap_model(self.model), folder, self._session.config, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any, *, must: bool = False) -> None:
        """Write a checkpoint aside and rename it; a disk that does not take it costs it and not the run, unless it `must` be."""
        session, step = self._session, self.state.global_step
        if session.store.find(step) is not None:
            return
        try:
            self._save_whole(model, trial, step)
        except (OSError, RuntimeError, RunError, SafetensorError, ValueError) as error:
            session.store.abandon(step)
            self.unsaved = unsaved_because(error)
            if self.unsaved is None or self.args.world_size > 1:
                raise
            forget(error)
            if must:
                raise error_of(self.unsaved) from None
            session.write(notice_of(self.unsaved, step, goes_on=not self.control.should_training_stop))
        else:
            self.unsaved = None

    def _save_whole(self, model: Any, trial: Any, step: int) -> None:
        session, started = self._session, time.monotonic()
        unlogged = unlogged_of(self)
        notes = unlogged.as_notes(self)
        if self.args.should_save:
            session.store.check_space(self._expected_bytes())
            session.store.stage(step)
        self._barrier()
        self._write_staged(model, trial, step)
        if not self.args.should_save:
            return
        tokens = int(self._total_train_tokens) + unlogged.num_tokens
        own = {"tokens": tokens, "owes_check": self.owes_check, "unlogged": notes}
        saved = session.store.commit(step, {**session.notes(), **own})
        session.store.rotate(session.best.step if session.best.wants_save else None, saved=step)
        session.write(
            CheckpointSaved(
                step=step,
                path=saved.path.relative_to(session.store.folder.parent).as_posix(),
                num_bytes=saved.num_bytes,
                duration_s=round(time.monotonic() - started, 3),
                is_best=session.best.step == step,
            )
        )

    def _write_staged(self, model: Any, trial: Any, step: int) -> None:
        self._staged = session_folder = self._session.store.folder / f".saving-{step}"
        try:
            # The Trainer's own writer; SFTTrainer's would only put a model card before it.
            Trainer._save_checkpoint(self, model, trial)
        finally:
            self._staged = None
        self._barrier()
        if self.args.should_save:
            inner = session_folder / f"checkpoint-{step}"
            for file in inner.iterdir():
                os.replace(file, session_folder / file.name)
            inner.rmdir()

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _expected_bytes(self) -> int:
        """A checkpoint's size before there is one: the adapter and two moments for each of its numbers."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return sum(3 * parameter.numel() * parameter.element_size() for parameter in trained)
