"""What a Trainer has added up since the last point of the curve.

Where not every step is logged (`output.log_every`), a run that is continued between two points needs it, or the next point
would be the mean of the steps after the continuation only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.trainer_pt_utils import nested_gather


@dataclass(frozen=True, slots=True)
class Unlogged:
    """The sums of a moment; nothing where training has not begun or an older checkpoint does not know them."""

    loss: Any = None
    """Sum of the steps' losses in this process; a tensor, so that reading it does not wait for the card."""
    last_logged: int = 0
    """Step of the last point."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """TRL's, a value for each micro-step."""
    fast_metrics: Any = None
    """Those of the fast step: entropy, accuracy, micro-steps; a tensor."""
    fast_tokens: Any = None
    """Tokens of the fast step that are not in the trainer's own count yet; a tensor."""

    @property
    def num_tokens(self) -> int:
        """Tokens to be added to the trainer's own count; waits for the card."""
        return int(self.fast_tokens) if self.fast_tokens is not None else 0

    def put_back(self, trainer: Any) -> None:
        """Let the next point of `trainer` begin with these sums; the tokens are its caller's."""
        metrics = trainer._metrics["train"]
        metrics.clear()
        metrics.update({name: list(values) for name, values in self.metrics.items()})
        if self.loss is not None:
            trainer._tr_loss = self.loss.to(trainer.args.device, copy=True)
            trainer._globalstep_last_logged = self.last_logged
        if self.fast_metrics is not None and trainer._micro is not None:
            trainer._micro.metrics.copy_(self.fast_metrics)

    def as_notes(self, trainer: Any) -> dict[str, Any]:
        """For a checkpoint; of several processes the mean, to which each of them goes back. Every process has to call it."""
        loss = nested_gather(self.loss, trainer.args.parallel_mode).mean().item()
        fast = self.fast_metrics.tolist() if self.fast_metrics is not None else None
        return {"loss": loss, "last_logged": self.last_logged, "metrics": self.metrics, "fast_metrics": fast}


def unlogged_of(trainer: Any) -> Unlogged:
    """The sums of now."""
    micro, tokens = trainer._micro, trainer._token_count
    return Unlogged(
        loss=trainer._tr_loss.detach().clone(),
        last_logged=trainer._globalstep_last_logged,
        metrics={name: list(values) for name, values in trainer._metrics["train"].items()},
        fast_metrics=micro.metrics.clone() if micro is not None else None,
        fast_tokens=tokens.clone() if tokens is not None else None,
    )


def unlogged_in(notes: dict[str, Any] | None) -> Unlogged:
    """What `as_notes` wrote."""
    if not notes:
        return Unlogged()
    fast = notes["fast_metrics"]
    return Unlogged(
        loss=torch.tensor(notes["loss"], dtype=torch.float32),
        last_logged=int(notes["last_logged"]),
        metrics=notes["metrics"],
        fast_metrics=torch.tensor(fast, dtype=torch.float32) if fast is not None else None,
    )
