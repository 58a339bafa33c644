"""Model, adapter, rows and trainer put together, and a try of the heaviest batch before the first step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig

from qlora_ui.engine.callbacks import Control, Recorder
from qlora_ui.engine.fast import attention
from qlora_ui.engine.fast.apply import FastReport, apply_fast_path
from qlora_ui.engine.fast.packing import PackedCollator, best_fit, pack_examples
from qlora_ui.engine.load import compute_dtype, keep_layers, load_quantized
from qlora_ui.engine.master_weights import MasterAdamW
from qlora_ui.engine.randomness import untouched_randomness
from qlora_ui.engine.trainer import QloraTrainer, Session, match_adapter_dtype, training_arguments
from qlora_ui.settings.intervals import Intervals
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import lora_arguments


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run stands on before its first step."""

    folder: Path
    """Of the base model."""
    tokenizer: Any
    rows: Rows
    plan: Intervals
    device: torch.device


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run as the trainer takes them."""

    train: Dataset
    eval: Dataset | None
    collator: Any
    """None takes TRL's own."""
    is_packed: bool
    lengths: tuple[int, ...]
    """Tokens of each training row, packed rows by what they hold."""

    @property
    def num_eval(self) -> int:
        return len(self.eval) if self.eval is not None else 0


def wants_packing(config: RunConfig, device: torch.device) -> bool:
    """Whether conversations share rows: where asked, or where the packed attention kernel runs (bf16 on a card)."""
    if config.train.packing != "auto":
        return config.train.packing == "on"
    return device.type == "cuda" and compute_dtype(config, device) == "bfloat16" and config.model.attention == "auto"


def rows_in_one(config: RunConfig, train: Dataset) -> float:
    """Conversations of a row, on average, as a run on this machine would pack them; 1 where it would not."""
    on_card = config.launch.device != "cpu" and torch.cuda.is_available()
    if not wants_packing(config, torch.device("cuda" if on_card else "cpu")):
        return 1.0
    return len(train) / len(best_fit(_lengths(train), config.data.max_length).rows)


def prepare_rows(train: Dataset, evaluation: Dataset | None, config: RunConfig, device: torch.device, pad_token_id: int) -> Rows:
    """Tokenized rows (`input_ids`, `labels`) for the trainer, packed where it pays."""
    if not wants_packing(config, device):
        return Rows(train, evaluation, None, False, _lengths(train))
    length = config.data.max_length
    columns, packed = pack_examples(train["input_ids"], train["labels"], length)
    packed_eval = None
    documents = packed.max_documents
    if evaluation is not None:
        eval_columns, eval_packed = pack_examples(evaluation["input_ids"], evaluation["labels"], length)
        packed_eval, documents = Dataset.from_dict(eval_columns), max(documents, eval_packed.max_documents)
    collator = PackedCollator(pad_token_id, length, config.train.batch_size, documents)
    rows = Dataset.from_dict(columns)
    return Rows(rows, packed_eval, collator, True, _lengths(rows))


def load_model(ground: Ground, config: RunConfig) -> Any:
    """The base for training; packed rows need an attention that keeps conversations apart."""
    kernel = attention.register() if ground.rows.is_packed else None
    model = load_quantized(ground.folder, config, ground.device, attention=kernel, to_split=config.launch.sharding == "fsdp")
    if ground.device.type == "cuda":
        # Between the packed weights lie the holes of their 16-bit originals, too small for much of what training allocates.
        torch.cuda.empty_cache()
    return model


def build_trainer(model: Any, ground: Ground, session: Session, control: Control, recorder: Recorder) -> QloraTrainer:
    """The trainer with a fresh adapter on `model`. Its random numbers are those of the plain stack with the same seed."""
    config, rows = session.config, ground.rows
    on_gpu = ground.device.type == "cuda"
    dtype = compute_dtype(config, ground.device)
    arguments = training_arguments(config, ground.plan, session.store.folder, on_gpu=on_gpu, compute_dtype=dtype)
    if rows.is_packed:
        arguments["per_device_eval_batch_size"] = config.train.batch_size
    args = SFTConfig(**arguments)
    # Several cards visible and no launcher: one of them, instead of DataParallel, which SFTTrainer refuses.
    if args.world_size == 1 and args.n_gpu > 1:
        args._n_gpu = 1
    set_seed(config.train.seed)
    trainer = QloraTrainer(
        model=model,
        args=args,
        train_dataset=rows.train,
        eval_dataset=rows.eval,
        processing_class=ground.tokenizer,
        data_collator=rows.collator,
        peft_config=LoraConfig(**lora_arguments(config)),
        callbacks=[control, recorder],
        session=session,
        # Adapters of other arithmetic are in fp32 themselves.
        optimizer_cls_and_kwargs=_on_masters(args) if config.train.optimizer == "adamw_fp32" and dtype == "bfloat16" else None,
    )
    match_adapter_dtype(trainer.model, dtype)
    return trainer


def _on_masters(args: SFTConfig) -> tuple[type[MasterAdamW], dict[str, Any]]:
    return MasterAdamW, QloraTrainer.get_optimizer_cls_and_kwargs(args)[1]


def enable_fast(trainer: QloraTrainer, rows: Rows, config: RunConfig, lock: threading.Lock, note: Callable[[str], None]) -> FastReport:
    """Fuse the model and switch the fast step on where that is possible; the report says what is on and why the rest is not."""
    if config.train.fast_path == "off":
        return FastReport(False, (), ("The fast path is switched off.",))
    if trainer.args.world_size > 1 or config.launch.sharding != "none":
        return FastReport(False, (), ("The fast path runs on one card.",))
    if config.model.attention == "eager":
        return FastReport(False, (), ("Eager attention was chosen.",))
    layers = trainer.model.config.get_text_config().num_hidden_layers
    kept = {"all": 0, "none": layers, "partly": config.train.kept_layers}[config.train.checkpointing]
    report = apply_fast_path(trainer.model, dropout=config.lora.dropout, num_kept_layers=kept, packed=rows.is_packed)
    notes: list[str] = []

    def take(text: str) -> None:
        notes.append(text)
        note(text)

    if report.active and not trainer.enable_fast_step(report, run_seed=config.train.seed, capture_lock=lock, on_note=take):
        return FastReport(False, (), (*report.reasons, *notes))
    return replace(report, reasons=(*report.reasons, *notes))


def halved(collator: PackedCollator) -> PackedCollator:
    """The collator for half as many packed rows at once."""
    return replace(collator, batch_rows=max(collator.batch_rows // 2, 1))


def forget_dataloaders(trainer: QloraTrainer) -> None:
    """A run that broke off leaves its loaders in accelerate's list, and the next one would take the wrong one for its own."""
    state = trainer.accelerator.gradient_state
    state.dataloader_references = [None]


def dry_run(trainer: QloraTrainer, rows: Rows) -> None:
    """One forward and backward pass on the longest rows; leaves no trace.

    Raises what the heaviest batch would have raised hours later.
    """
    model = trainer.model
    with untouched_randomness():
        # Hand-made batches count into the Trainer's metrics and, with it, into the first point of the curve.
        model.train()
        if trainer.args.gradient_checkpointing and not trainer.fast_step_active:
            # train() switches recomputation on only when it begins; without it the try takes many times the run's memory.
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs)
            if trainer._session.config.train.checkpointing == "partly":
                keep_layers(model, trainer._session.config.train.kept_layers)
        batch = trainer._prepare_inputs(trainer.data_collator(_longest(rows.train, trainer.args.per_device_train_batch_size)))
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        counted = (batch["labels"] != -100).sum()
        with trainer.accelerator.autocast():
            trainer.training_step(model, batch, counted)
        model.zero_grad()
    _forget_the_try(trainer)


def dry_check(trainer: QloraTrainer, rows: Rows) -> None:
    """One forward pass on the longest held-back rows; leaves no trace, raises as `dry_run` does."""
    if rows.eval is None:
        return
    with untouched_randomness():
        trainer.model.eval()
        batch = trainer.eval_collator(_longest(rows.eval, trainer.args.per_device_eval_batch_size))
        with trainer.accelerator.autocast():
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
        trainer.model.train()
    _forget_the_try(trainer)


def _forget_the_try(trainer: QloraTrainer) -> None:
    for metrics in trainer._metrics.values():
        metrics.clear()
    trainer._total_train_tokens = 0
    trainer.forget_micro_steps()


def _longest(data: Dataset, count: int) -> list[dict[str, Any]]:
    lengths = _lengths(data)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [data[index] for index in order[:count]]


def _lengths(data: Dataset) -> tuple[int, ...]:
    return tuple(len(ids) for ids in data["input_ids"])
