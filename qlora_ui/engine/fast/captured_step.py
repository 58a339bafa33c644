"""The mixin that gives `SFTTrainer` the fast training step; everything else of the trainer stays as it is."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .apply import FastReport, fast_state, remove_fast_path
from .buckets import batch_buckets
from .micro_step import MicroStep, read_batch
from .ops import KERNEL_ERRORS
from .packing import COUNTED, PADDING, CountingCollator, PackedCollator


class FastStepMixin:
    """Put in front of `SFTTrainer`: `training_step` captured once per shape and replayed, with the ordinary step as the fallback.

    Call `enable_fast_step` after construction and `close` in a `finally` after training. Until enabled, and where the fast step cannot run,
    every method is the trainer's own.
    """

    _micro: MicroStep | None = None
    _micro_model: Any = None
    _micro_position: tuple[int, int] = (-1, 0)
    _token_count: torch.Tensor | None = None
    _num_parameters: int | None = None
    _buckets: tuple[int, ...] = ()
    data_collator: Any

    def enable_fast_step(self, report: FastReport, *, run_seed: int, capture_lock: threading.Lock, on_note: Callable[[str], None]) -> bool:
        """Switch the fast step on if `apply_fast_path` fused the model and nothing in the arguments forbids it; return whether it is on.

        `run_seed` keys dropout, `capture_lock` is held while a graph is captured (others must not draw from the default CUDA generator
        then), `on_note` is told in words what falls back and why, at once or later.
        """
        if not report.active:
            return False
        obstacle = self._fast_obstacle()
        if obstacle:
            on_note(f"The fast path is off: {obstacle}.")
            remove_fast_path(self.model)  # type: ignore[attr-defined]
            return False
        model = self.model  # type: ignore[attr-defined]
        self._start_fast_step(
            model, MicroStep(model, fast_state(model), run_seed=run_seed, capture=True, capture_lock=capture_lock, on_note=on_note)
        )
        return True

    def _start_fast_step(self, model: Any, micro: MicroStep) -> None:
        self._micro, self._micro_model = micro, model
        self._buckets = self._padded_lengths()
        # all of it, once: a freshly wrapped PeftModel calls itself training while the base below it is still in evaluation mode
        model.train()
        self._token_count = torch.zeros((), dtype=torch.int64, device=micro.gradients.flat.device)
        # the trainer zeroes through the model after every optimizer step: one fill instead of a walk over all parameters
        model.__dict__["zero_grad"] = lambda set_to_none=True: micro.gradients.zero()

    def _padded_lengths(self) -> tuple[int, ...]:
        """The few lengths to which padded batches are brought; none where rows are packed and have one length anyway."""
        data: Any = self.train_dataset  # type: ignore[attr-defined]
        if isinstance(self.data_collator, PackedCollator) or "input_ids" not in (getattr(data, "column_names", None) or ()):
            return ()
        return batch_buckets([len(ids) for ids in data["input_ids"]], int(self.args.per_device_train_batch_size))  # type: ignore[attr-defined]

    def _fast_obstacle(self) -> str:
        """Why the arguments rule the fast step out, or an empty string."""
        args: Any = self.args  # type: ignore[attr-defined]
        checks = (
            (args.world_size > 1, "training runs on several GPUs"),
            (args.fp16, "half precision needs loss scaling"),
            (bool(args.neftune_noise_alpha), "NEFTune noise changes with every forward pass"),
            (args.label_smoothing_factor > 0, "label smoothing needs the whole logits"),
            (getattr(args, "loss_type", "nll") not in ("nll", "chunked_nll"), "the loss is not plain next-token cross entropy"),
            (getattr(self, "compute_loss_func", None) is not None, "a custom loss is set"),
            (bool(getattr(self, "aux_loss_enabled", False)), "the model is a mixture of experts"),
            (bool(args.deepspeed), "DeepSpeed owns the step"),
            (bool(getattr(args, "activation_offloading", False)), "activations are moved to the host"),
        )
        return next((words for holds, words in checks if holds), "")

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """Add one micro-batch's gradients and return its share of the loss (detached), as `Trainer.training_step` does."""
        micro = self._micro
        if micro is None:
            untouched: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
            return untouched
        if not model.training:
            model.train()
        step = int(self.state.global_step)  # type: ignore[attr-defined]
        position = self._micro_position[1] + 1 if self._micro_position[0] == step else 0
        self._micro_position = (step, position)
        if self._token_count is not None:
            mask = inputs.get("attention_mask")
            packed = inputs["input_ids"].numel() - inputs.get(PADDING, 0)
            self._token_count += packed if mask is None else mask.sum().to(self._token_count.device)
        accumulation = int(self.current_gradient_accumulation_steps)  # type: ignore[attr-defined]
        try:
            return micro.run(
                read_batch(inputs, micro.gradients.flat.device, self._buckets), num_items_in_batch, accumulation, step, position
            )
        except KERNEL_ERRORS as failure:
            # what a card or a driver cannot do shows in the very first step; later failures, and memory, are not ours to hide
            if micro.num_runs or isinstance(failure, torch.OutOfMemoryError):
                raise
            micro.note(f"The fast path is off: this machine could not run its first step ({str(failure).splitlines()[0]}).")
        self.close()
        plain: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        return plain

    def get_train_dataloader(self) -> Any:
        """The trainer's loader; for the fast step its batches say which tokens count, as packed ones do by themselves."""
        collator = self.data_collator
        if self._micro is not None and not isinstance(collator, PackedCollator):
            self.data_collator = CountingCollator(collator)
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Prepare a batch for the plain step or a check, without what only the fast step reads, which does not come by here."""
        inputs.pop(COUNTED, None)
        padding = inputs.pop(PADDING, None)
        if padding is not None and self.model.training:  # type: ignore[attr-defined]
            # SFTTrainer's step will count every position of a packed batch, over several processes by this function.
            accelerator: Any = self.accelerator  # type: ignore[attr-defined]
            self._total_train_tokens -= int(accelerator.gather_for_metrics(torch.tensor(padding, device=accelerator.device)).sum())
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Return 6 operations per parameter and token; the parameters are counted once, not in every micro-step."""
        if self._micro is None:
            plain: int = super().floating_point_ops(inputs)  # type: ignore[misc]
            return plain
        if self._num_parameters is None:
            self._num_parameters = int(self.model.num_parameters(exclude_embeddings=True))  # type: ignore[attr-defined]
        return 6 * int(inputs["input_ids"].numel()) * self._num_parameters

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._micro is None:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        return self._micro.gradients.clip(float(self.args.max_grad_norm))  # type: ignore[attr-defined]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self._micro is None or grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        return self._micro.gradients.norm()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does; the training metrics, summed on the device since the last log, are read here and only here."""
        if self._micro is not None and self.model.training:  # type: ignore[attr-defined]
            self._read_metrics(self._micro)
        super().log(logs, start_time)  # type: ignore[misc]

    def _read_metrics(self, micro: MicroStep) -> None:
        entropy, accuracy, count = micro.metrics.tolist()
        metrics: Any = self._metrics["train"]  # type: ignore[attr-defined]
        if count and self._token_count is not None:
            metrics["entropy"] = [entropy / count]
            metrics["mean_token_accuracy"] = [accuracy / count]
            self._total_train_tokens: Any = self._total_train_tokens + int(self._token_count)
            metrics["num_tokens"] = [self._total_train_tokens]
            micro.metrics.zero_()
            self._token_count.zero_()

    @property
    def fast_step_active(self) -> bool:
        """Whether `training_step` runs the fast step."""
        return self._micro is not None

    def forget_micro_steps(self) -> None:
        """Count nothing that ran so far: for a trial step before training, whose metrics and dropout position must leave no trace."""
        self._micro_position = (-1, 0)
        if self._micro is not None and self._token_count is not None:
            self._micro.metrics.zero_()
            self._token_count.zero_()

    def close(self) -> None:
        """Release graphs, their pool, gradients and buffers and unfuse the model; the trainer's own step runs afterwards.

        Safe to call twice.
        """
        if self._micro is not None:
            self._micro.close()
            self._micro_model.__dict__.pop("zero_grad", None)
            remove_fast_path(self._micro_model)
        self._micro = self._micro_model = self._token_count = None
