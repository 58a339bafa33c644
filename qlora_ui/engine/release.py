"""Gives back what a job held, so that the next job, or a chat, finds the memory of before."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState

from qlora_ui.engine.failures import attempt
from qlora_ui.engine.fast.apply import remove_fast_path
from qlora_ui.engine.give_back import give_back_memory
from qlora_ui.engine.processes import num_processes

LARGE = ("model", "model_wrapped", "optimizer", "lr_scheduler", "train_dataset", "eval_dataset", "unlogged", "_session")
"""What a trainer holds on to."""


def release(trainer: Any) -> int | None:
    """Take a trainer apart and return the bytes of the card that torch still reserves; None on a CPU.

    The order matters: graphs and callbacks first, then accelerate's lists, then the objects in their reference cycles (one
    model stays alive until they are collected), then the allocator's cache, then accelerate's process-wide state. A step that
    fails, as all do that speak to a lost card, keeps none of the others from being done.
    """
    if trainer is not None:
        attempt("release of the graphs", trainer.close)
        if trainer.model is not None:
            attempt("release of the fast path", partial(remove_fast_path, trainer.model))
        trainer.callback_handler.callbacks.clear()
        for name in ("model", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"):
            setattr(trainer.callback_handler, name, None)
        attempt("release of accelerate's lists", trainer.accelerator.free_memory)
        # It empties them after it has spoken to the card.
        for name in ("_models", "_optimizers", "_schedulers", "_dataloaders"):
            setattr(trainer.accelerator, name, [])
        for name, value in list(trainer.__dict__.items()):
            # A number on the card (the sum of the losses) holds 2 MiB of it.
            if name in LARGE or isinstance(value, torch.Tensor):
                trainer.__dict__[name] = None
    attempt("release of the memory", give_back_memory)
    if num_processes() == 1:
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)
    return attempt("memory still held", _reserved_bytes)


def _reserved_bytes() -> int | None:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
