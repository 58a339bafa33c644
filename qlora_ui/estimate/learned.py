"""What runs teach about the machine: the context's size after the first one, and how far the estimate is off."""

from __future__ import annotations

from qlora_ui.estimate.memory import FAST_CONTEXT_BYTES
from qlora_ui.hardware.devices import DeviceProfile, HasCache, store_context, store_ratio


def learn_context(
    workspace: HasCache, device: DeviceProfile, process_bytes: int | None, reserved_bytes: int | None, *, is_fast: bool
) -> None:
    """Take the context's size from a training process: what the driver counts beyond what the allocator has reserved."""
    if process_bytes is None or reserved_bytes is None or device.is_cpu:
        return
    own = process_bytes - reserved_bytes - (FAST_CONTEXT_BYTES if is_fast else 0)
    store_context(workspace, device.uuid, device.name, own)


def learn_ratio(workspace: HasCache, device: DeviceProfile, predicted_bytes: int | None, process_bytes: int | None) -> None:
    """Take how far the prediction (made for this `device`) was off from the process's memory at the end of a run."""
    if predicted_bytes is None or process_bytes is None or device.is_cpu:
        return
    predicted = (predicted_bytes - device.context_bytes) / device.correction
    if predicted > 0:
        store_ratio(workspace, device.uuid, device.name, (process_bytes - device.context_bytes) / predicted)
