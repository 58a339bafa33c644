"""All adapter gradients in one buffer: accumulated in place, zeroed and scaled with one call each."""

from collections.abc import Sequence

import torch


class GradientBuffer:
    """Views of one flat tensor as the parameters' `.grad`; the parameters must share dtype and device."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        # each view starts at a multiple of 64 elements, so that kernels may load 16 bytes at once
        starts, total = [], 0
        for p in self.parameters:
            starts.append(total)
            total += (p.numel() + 63) // 64 * 64
        first = self.parameters[0]
        self.flat = torch.zeros(total, dtype=first.dtype, device=first.device)
        self.views = [self.flat[start : start + p.numel()].view_as(p) for start, p in zip(starts, self.parameters, strict=True)]

    def attach(self) -> None:
        """Make the views the parameters' gradients; where something dropped them (`zero_grad`), they start at zero again."""
        if self.parameters[0].grad is self.views[0]:
            return
        self.flat.zero_()
        for p, view in zip(self.parameters, self.views, strict=True):
            p.grad = view

    def detach(self) -> None:
        """Leave the parameters without gradients."""
        for p in self.parameters:
            p.grad = None

    def zero(self) -> None:
        """Set all gradients to zero in place."""
        self.flat.zero_()

    def norm(self) -> torch.Tensor:
        """Return the joint 2-norm as torch's own clipping finds it: 0-dim in the gradients' dtype, to which each one's norm is rounded."""
        return torch.nn.utils.get_total_norm(self.views)

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients so that their joint 2-norm is at most `max_norm`; return the norm before.

        To the last bit what `torch.nn.utils.clip_grad_norm_` does: a factor rounded otherwise would part a run from the plain one.
        """
        norm = self.norm()
        self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm
