"""One micro-step (forward, loss, backward) on static buffers: run eagerly at first, then captured per shape and replayed.

Legend: T tokens of the micro-batch in one row, M documents.
"""

import functools
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .apply import FastState
from .attention import register
from .buckets import bucket_for
from .capture import capturing
from .dropout import step_seed
from .gradients import GradientBuffer
from .loss import tiled_loss

MAX_SHAPES = 12  # graphs kept; further shapes run uncaptured


@dataclass
class Batch:
    """The static inputs of one shape: ids_T, labels_T and positions_T int64, cumulative (M + 1) int32, the longest document possible."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cumulative: torch.Tensor
    max_length: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """What one captured graph is good for."""
        return self.ids.shape[0], self.cumulative.shape[0], self.max_length

    def copy_(self, other: "Batch") -> None:
        """Take another batch's values; shapes must agree."""
        for name in ("ids", "labels", "positions", "cumulative"):
            getattr(self, name).copy_(getattr(other, name))


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the process's one stream for first steps and captures on this device.

    cuBLAS keeps a workspace for every thread and stream that ever multiplied (66 MiB together on an H100) and never gives it back, so a
    fresh stream for every run would lose that much every time.
    """
    return torch.cuda.Stream(device)


def round_up_length(length: int) -> int:
    """Return the padded row length that a batch of this length is brought to, so that few shapes occur."""
    step = 64 if length <= 512 else 256
    return (length + step - 1) // step * step


def read_batch(inputs: Mapping[str, Any], device: torch.device, buckets: Sequence[int] = ()) -> Batch:
    """Return a collated batch as one row: packed rows as they are, padded rows (padding on the right) as a document each.

    Padded rows are brought to the next of `buckets`, or of round lengths where there is none. Raises ValueError for padding on the left,
    whose tokens would see the padding.
    """
    ids, labels = inputs["input_ids"].to(device), inputs["labels"].to(device)
    cumulative = inputs.get("cu_seq_lens_q")
    if cumulative is not None:
        positions = inputs["position_ids"].to(device)
        return Batch(
            ids.reshape(-1), labels.reshape(-1), positions.reshape(-1), cumulative.to(device, torch.int32), int(inputs["max_length_q"])
        )
    rows, length = ids.shape
    padded = bucket_for(length, buckets) if buckets and length <= buckets[-1] else round_up_length(length)
    if padded > length:
        ids = torch.nn.functional.pad(ids, (0, padded - length))
        labels = torch.nn.functional.pad(labels, (0, padded - length), value=-100)
    positions = torch.arange(padded, device=device).repeat(rows)
    starts = torch.arange(0, rows * padded + 1, padded, dtype=torch.int32, device=device)
    return Batch(ids.reshape(-1), labels.reshape(-1), positions, starts, padded)


class MicroStep:
    """Runs micro-steps of a fused model and accumulates gradients in place; `capture_lock` is held while a graph is captured."""

    def __init__(
        self, model: Any, state: FastState, *, run_seed: int, capture: bool, capture_lock: threading.Lock, on_note: Callable[[str], None]
    ) -> None:
        self._state, self._run_seed = state, run_seed
        self._capture, self._lock, self.note = capture, capture_lock, on_note
        self.num_runs = 0
        self.gradients = GradientBuffer([p for p in model.parameters() if p.requires_grad])
        device = self.gradients.flat.device
        self._device = device
        self._inverse_count = torch.ones(1, dtype=torch.float32, device=device)
        self._loss = torch.zeros((), dtype=torch.float32, device=device)
        # entropy and top-1 rate, summed over micro-steps, and their number: read and reset at a log
        self.metrics = torch.zeros(3, dtype=torch.float32, device=device)
        self._graphs: dict[tuple[int, int, int], tuple[Any, Batch]] = {}
        self._seen: set[tuple[int, int, int]] = set()
        self._stream = side_stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._attention = register()

    @property
    def num_graphs(self) -> int:
        """How many shapes have been captured."""
        return len(self._graphs)

    def run(self, batch: Batch, num_items: torch.Tensor | int | None, accumulation: int, global_step: int, micro_step: int) -> torch.Tensor:
        """Add one micro-batch's gradients and return its share of the step's loss, a tensor of its own that needs no synchronisation.

        The loss is summed over counted tokens and divided by `num_items`, the optimizer step's count, or by the micro-batch's own times
        `accumulation` where that is None.
        """
        self.gradients.attach()
        words = step_seed(self._run_seed, global_step, micro_step)
        self._state.dropout.seed.copy_(torch.tensor(words, dtype=torch.int32))
        if num_items is None:
            num_items = (_targets(batch) >= 0).sum() * accumulation
        count = torch.as_tensor(num_items, device=self._device).to(torch.float32).reshape(1)
        torch.reciprocal(count.clamp(min=1), out=self._inverse_count)
        shape = batch.shape
        if shape in self._graphs:
            graph, static = self._graphs[shape]
            static.copy_(batch)
            graph.replay()
        elif self._capture and shape in self._seen and len(self._graphs) < MAX_SHAPES:
            self._capture_shape(batch)
        else:
            # the first of a shape is an ordinary step: it compiles kernels and sizes buffers, which capture forbids
            self._seen.add(shape)
            self._eager(batch)
        self.num_runs += 1
        return self._loss.clone()

    def _eager(self, batch: Batch) -> None:
        if self._stream is None:
            self._compute(batch)
            return
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._compute(batch)
        current.wait_stream(self._stream)

    def _capture_shape(self, batch: Batch) -> None:
        static = Batch(batch.ids.clone(), batch.labels.clone(), batch.positions.clone(), batch.cumulative.clone(), batch.max_length)
        graph = torch.cuda.CUDAGraph()
        try:
            # while a graph is captured the default random generator belongs to it, and other threads must not allocate through it
            with self._lock, capturing(graph, self._pool, self._stream):
                self._compute(static)
        except RuntimeError as failure:
            reason = _capture_obstacle(failure)
            # Its frames hold the activations of the pass that was broken off.
            traceback.clear_frames(failure.__traceback__)
        else:
            self._graphs[static.shape] = graph, static
            graph.replay()
            return
        self._capture = False
        del graph, static
        torch.cuda.empty_cache()
        # Where memory does not suffice for that either, this raises, and the micro-batch is to blame and not the capture.
        self._eager(batch)
        self.note(reason)

    def _compute(self, batch: Batch) -> None:
        """Forward, loss and backward; gradients, loss and metrics are added in place."""
        decoder, head = self._state.decoder, self._state.head
        config = decoder.config
        before = config._attn_implementation
        config._attn_implementation = self._attention
        try:
            hidden = decoder(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                cu_seq_lens_q=batch.cumulative,
                cu_seq_lens_k=batch.cumulative,
                max_length_q=batch.max_length,
                max_length_k=batch.max_length,
            ).last_hidden_state[0]
        finally:
            config._attn_implementation = before
        with torch.no_grad():
            gradient, stats = tiled_loss(hidden.detach(), head, _targets(batch), self._inverse_count)
            sums = stats.sum(0)
            self._loss.copy_(sums[0] * self._inverse_count[0])
            means = sums[1:3] / sums[3].clamp(min=1)
            self.metrics[:2] += means
            self.metrics[2] += 1
        hidden.backward(gradient)

    def close(self) -> None:
        """Drop the graphs, their memory pool and the gradients."""
        self._graphs.clear()
        self._seen.clear()
        self._pool = None
        self._capture = False
        self.gradients.detach()


def _targets(batch: Batch) -> torch.Tensor:
    """Return the token that each position is to predict, -100 where the next one begins a document or does not count."""
    targets = torch.full_like(batch.labels, -100)
    targets[:-1] = batch.labels[1:].masked_fill(batch.positions[1:] == 0, -100)
    return targets


def _capture_obstacle(failure: RuntimeError) -> str:
    if isinstance(failure, torch.OutOfMemoryError):
        return "There is too little memory to capture the training step; it runs uncaptured, which is slower. Fewer rows at once fit."
    return f"The training step could not be captured and runs uncaptured, which is slower: {str(failure).splitlines()[0]}"
