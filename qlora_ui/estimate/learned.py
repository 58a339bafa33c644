"""What runs teach about the machine: the context's size, and how far the estimate is off."""

from __future__ import annotations

from qlora_ui.estimate.memory import FAST_CONTEXT_BYTES
from qlora_ui.hardware.devices import DeviceProfile, HasCache, store_context, store_ratio


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
