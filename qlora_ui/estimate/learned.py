"""What runs teach about the machine: the context's size, and how far the estimates of memory and time are off."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from qlora_ui.estimate.memory import FAST_CONTEXT_BYTES
from qlora_ui.hardware.devices import FAST, PLAIN, DeviceProfile, HasCache, store_context, store_ratio, store_step_ratio


def learn(
    workspace: HasCache,
    device: DeviceProfile,
    predicted_bytes: int | None,
    *,
    process_bytes: int | None,
    reserved_bytes: int | None,
    is_fast: bool,
) -> None:
    """Take in the end of a run: `device` is the profile that the prediction was made with, the rest as measured.

    The context is what the driver counts beyond what the allocator has reserved; the correction compares what was reserved.
    """
    if device.is_cpu or reserved_bytes is None:
        return
    kernels = FAST_CONTEXT_BYTES if is_fast else 0
    if predicted_bytes is not None:
        predicted = (predicted_bytes - device.context_bytes - kernels) / device.correction
        if predicted > 0:
            store_ratio(workspace, device.uuid, device.name, reserved_bytes / predicted)
    if process_bytes is not None:
        store_context(workspace, device.uuid, device.name, process_bytes - reserved_bytes - kernels)


STEPS_NEEDED, STEPS_LEFT_OUT = 5, 2
"""A run of fewer steps teaches nothing; its first ones compile and warm up."""


def learn_speed(
    workspace: HasCache, device: DeviceProfile, estimated_step_s: float | None, step_times_s: Sequence[float], *, is_fast: bool
) -> None:
    """Take in how long the steps of a run took; the estimate is one without what was learned before."""
    if estimated_step_s and len(step_times_s) >= STEPS_NEEDED:
        measured = statistics.median(step_times_s[STEPS_LEFT_OUT:])
        store_step_ratio(workspace, device.uuid, device.name, FAST if is_fast else PLAIN, measured / estimated_step_s)
