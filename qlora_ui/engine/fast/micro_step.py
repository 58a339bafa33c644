"""One micro-step (forward, loss, backward) on static buffers: run eagerly at first, then captured per shape and replayed.

Forward and backward are a graph each. The loss between them is launched as ever: how many tokens it multiplies changes from micro-batch to
micro-batch, as on the plain path, and with it which kernels cuBLAS takes. Legend: T tokens of the micro-batch in one row, M documents.
"""

import functools
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .apply import FastState
from .attention import register
from .buckets import bucket_for
from .capture import borrowed, capturing
from .dropout import step_seed
from .gradients import GradientBuffer
from .loss import Workspace, tiled_loss, workspace, workspace_memory
from .packing import COUNTED

MAX_SHAPES = 12  # graphs kept; further shapes run uncaptured


@dataclass
class Batch:
    """A micro-batch: ids_T, labels_T and positions_T int64, cumulative (M + 1) int32, the longest document possible.

    `counted` int64 are the positions that predict a token that counts.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cumulative: torch.Tensor
    max_length: int
    counted: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """What one captured graph is good for."""
        return self.ids.shape[0], self.cumulative.shape[0], self.max_length

    def copy_(self, other: "Batch") -> None:
        """Take another batch's inputs; shapes must agree. What the loss reads stays: it is not captured."""
        for name in ("ids", "positions", "cumulative"):
            getattr(self, name).copy_(getattr(other, name))


@dataclass(frozen=True)
class Captured:
    """The two graphs of a shape and what lies between them: its static inputs, the hidden states and their gradient.

    `space` is in memory that the backward graph overwrites, which is why nothing may own it.
    """

    forward: Any
    backward: Any
    batch: Batch
    hidden: torch.Tensor
    gradient: torch.Tensor
    space: Workspace


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

    Padded rows are brought to the next of `buckets`, or of round lengths where there is none.
    """
    ids, labels = inputs["input_ids"].to(device), inputs["labels"].to(device)
    cumulative = inputs.get("cu_seq_lens_q")
    if cumulative is not None:
        labels, positions = labels.reshape(-1), inputs["position_ids"].to(device).reshape(-1)
        counted = inputs.get(COUNTED)
        counted = _counted(labels, positions) if counted is None else counted.to(device)
        return Batch(ids.reshape(-1), labels, positions, cumulative.to(device, torch.int32), int(inputs["max_length_q"]), counted)
    rows, length = ids.shape
    padded = bucket_for(length, buckets) if buckets and length <= buckets[-1] else round_up_length(length)
    if padded > length:
        ids = torch.nn.functional.pad(ids, (0, padded - length))
        labels = torch.nn.functional.pad(labels, (0, padded - length), value=-100)
    positions = torch.arange(padded, device=device).repeat(rows)
    starts = torch.arange(0, rows * padded + 1, padded, dtype=torch.int32, device=device)
    labels, counted = labels.reshape(-1), inputs.get(COUNTED)
    if counted is None:
        counted = _counted(labels, positions)
    else:
        counted = counted.to(device)
        counted = counted // length * padded + counted % length
    return Batch(ids.reshape(-1), labels, positions, starts, padded, counted)


def _counted(labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The positions that predict a token that counts: all but those before a label of -100 or before the beginning of a document.

    How many there are is asked of the device, which waits for it.
    """
    return ((labels[1:] != -100) & (positions[1:] > 0)).nonzero()[:, 0]


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
        self._graphs: dict[tuple[int, int, int], Captured] = {}
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
            num_items = batch.counted.shape[0] * accumulation
        count = torch.as_tensor(num_items, device=self._device).to(torch.float32).reshape(1)
        torch.reciprocal(count.clamp(min=1), out=self._inverse_count)
        if self._stream is None:
            self._step(batch)
        else:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream):
                    self._step(batch)
            finally:
                # a step that failed half way may still be writing into gradients whose memory is about to be given back
                current.wait_stream(self._stream)
        self.num_runs += 1
        return self._loss.clone()

    def _step(self, batch: Batch) -> None:
        captured = self._graphs.get(batch.shape)
        if captured is None and self._capture and batch.shape in self._seen and len(self._graphs) < MAX_SHAPES:
            captured = self._capture_shape(batch)
        if captured is None:
            # the first of a shape is an ordinary step: it compiles kernels and sizes buffers, which capture forbids
            self._seen.add(batch.shape)
            self._compute(batch)
            return
        captured.batch.copy_(batch)
        captured.forward.replay()
        self._loss_into(captured.gradient, captured.hidden, batch, captured.space)
        captured.backward.replay()

    def _capture_shape(self, batch: Batch) -> Captured | None:
        """Capture both passes for batches of this shape, or note why they cannot be and capture nothing more."""
        try:
            # while a graph is captured the default random generator belongs to it, and other threads must not allocate through it
            with self._lock:
                captured = self._captured(batch)
        except RuntimeError as failure:
            reason = _capture_obstacle(failure)
            # Its frames hold the activations of the pass that was broken off.
            traceback.clear_frames(failure.__traceback__)
        else:
            self._graphs[batch.shape] = captured
            return captured
        self._capture = False
        torch.cuda.empty_cache()
        self.note(reason)
        return None

    def _captured(self, batch: Batch) -> Captured:
        static = replace(batch, ids=batch.ids.clone(), positions=batch.positions.clone(), cumulative=batch.cumulative.clone())
        head, exact = self._state.head, self._state.is_exact
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capturing(forward, self._pool, self._stream):
            hidden = self._forward(static)
            gradient = torch.empty_like(hidden)
            memory = workspace_memory(hidden, head, exact=exact)
        # free for the backward pass, whose graph is replayed when the loss is done with it
        memory = borrowed(memory)
        with capturing(backward, self._pool, self._stream):
            hidden.backward(gradient)
        hidden = hidden.detach()
        return Captured(forward, backward, static, hidden, gradient, workspace(memory, hidden, head, exact=exact))

    def _compute(self, batch: Batch) -> None:
        """Forward, loss and backward; gradients, loss and metrics are added in place."""
        hidden = self._forward(batch)
        gradient = torch.empty_like(hidden)
        memory = workspace_memory(hidden, self._state.head, exact=self._state.is_exact)
        space = workspace(memory, hidden, self._state.head, exact=self._state.is_exact)
        self._loss_into(gradient, hidden.detach(), batch, space)
        del memory, space
        hidden.backward(gradient)

    def _forward(self, batch: Batch) -> torch.Tensor:
        """The decoder's hidden states (T, H)."""
        decoder = self._state.decoder
        config = decoder.config
        before = config._attn_implementation
        config._attn_implementation = self._attention
        try:
            hidden: torch.Tensor = decoder(
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
        return hidden

    def _loss_into(self, gradient: torch.Tensor, hidden: torch.Tensor, batch: Batch, space: Workspace) -> None:
        """Fill the gradient of the hidden states, set the loss and add to the metrics."""
        with torch.no_grad():
            sums = tiled_loss(hidden, self._state.head, batch.labels, batch.counted, self._inverse_count, space, gradient)
            self._loss.copy_(sums[0] * self._inverse_count[0])
            self.metrics[:2] += sums[1:] / max(batch.counted.shape[0], 1)
            self.metrics[2] += 1

    def close(self) -> None:
        """Drop the graphs, their memory pool and the gradients."""
        self._graphs.clear()
        self._seen.clear()
        self._pool = None
        self._capture = False
        self.gradients.detach()


def _capture_obstacle(failure: RuntimeError) -> str:
    if isinstance(failure, torch.OutOfMemoryError):
        return "There is too little memory to capture the training step; it runs uncaptured, which is slower. Fewer rows at once fit."
    return f"The training step could not be captured and runs uncaptured, which is slower: {str(failure).splitlines()[0]}"
