"""AdamW for adapters in bfloat16, whose weights have 8 bits of precision: a step below 1/512 of a weight leaves it where it is."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW on fp32 copies of the weights (master weights), some of them in a row in each; after a step the weights are these, rounded."""

    ROW = 2**22  # numbers; gradients in fp32 exist for one row at a time

    def __init__(self, params: Iterable[dict[str, Any]], **named: Any) -> None:
        groups = [dict(group) for group in params if group["params"]]
        self._weights: list[list[torch.Tensor]] = []
        for group in groups:
            rows: list[list[torch.Tensor]] = []
            for weight in group["params"]:
                if not rows or sum(other.numel() for other in rows[-1]) + weight.numel() > self.ROW:
                    rows.append([])
                rows[-1].append(weight)
            self._weights += rows
            group["params"] = [torch.cat([weight.detach().flatten() for weight in row]).float().requires_grad_() for row in rows]
        super().__init__(groups, **named)

    def _masters(self) -> list[torch.Tensor]:
        return [master for group in self.param_groups for master in group["params"]]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step with the gradients of the rounded weights; AdamW passes over masters that have no gradient."""
        loss = None if closure is None else closure()
        for master, weights in zip(self._masters(), self._weights, strict=True):
            grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
            master.grad = torch.cat([grad.detach().flatten() for grad in grads]).float()
            super().step()
            master.grad = None
        self._round()
        return loss

    def _round(self) -> None:
        for master, weights in zip(self._masters(), self._weights, strict=True):
            parts = master.detach().split([weight.numel() for weight in weights])
            with torch.no_grad():
                torch._foreach_copy_(weights, [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """The states and the copies: from rounded weights alone a run would not continue exactly."""
        return {**super().state_dict(), "masters": [master.detach() for master in self._masters()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take states and copies; the weights follow the copies."""
        for master, saved in zip(self._masters(), state_dict["masters"], strict=True):
            master.detach().copy_(saved)
        self._round()
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
