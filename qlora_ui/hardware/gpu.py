"""Cards as NVML sees them. An absent library, a lost card or a refused call is None and never an exception."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
RETRY_S = 30.0
"""How long a failed start of NVML is believed; a driver that comes back is found after that."""
_given: list[str | None] = []
"""What the user had written into the variable, once this process has written into it; None for nothing."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One card, now."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    """By everybody, the driver's own share included."""
    ours_bytes: int | None
    """By this process; None where the driver does not say (containers, Windows)."""
    utilization_pct: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None
    """Since the driver was loaded."""
    compute_capability: tuple[int, int] | None = None

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def supports_bf16(self) -> bool:
        return self.compute_capability is None or self.compute_capability >= (8, 0)


def read_gpus(*, visible_only: bool = True, environment: Mapping[str, str] | None = None) -> list[GpuState]:
    """The cards that CUDA will see (CUDA_VISIBLE_DEVICES, by number or UUID), or all; empty without a driver."""
    nvml = _nvml(int(time.monotonic() // RETRY_S))
    if nvml is None:
        return []
    handles = list(_handles(nvml))
    if visible_only:
        variables = os.environ if environment is None else environment
        handles = _visible(nvml, handles, variables.get(VISIBLE))
    states = (_read(nvml, index, handle) for index, handle in handles)
    return [state for state in states if state is not None]


def see_only(uuid: str) -> None:
    """Leave this process one card, for good once CUDA has begun; what the user had given it is remembered."""
    if not _given:
        _given.append(os.environ.get(VISIBLE))
    os.environ[VISIBLE] = uuid


def given_environment() -> dict[str, str]:
    """The environment with the cards that the user gave the app: for processes of their own, which may need several."""
    environment = dict(os.environ)
    if _given:
        environment.pop(VISIBLE, None)
        if _given[0] is not None:
            environment[VISIBLE] = _given[0]
    return environment


def read_given_gpus() -> list[GpuState]:
    """The cards that the user gave the app; where this process was left one of them, that one first."""
    if not _given:
        return read_gpus()
    return sorted(read_gpus(environment=given_environment()), key=lambda card: card.uuid != os.environ.get(VISIBLE))


def driver_version() -> str | None:
    """Version of the driver; None without one."""
    nvml = _nvml(int(time.monotonic() // RETRY_S))
    value = _ask(nvml, "nvmlSystemGetDriverVersion") if nvml is not None else None
    return _text(value) if value is not None else None


@lru_cache(maxsize=1)
def _nvml(slot: int) -> Any | None:
    """The started library, asked for anew in every slot of RETRY_S seconds: starting twice only counts a reference."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return None
    return pynvml


def _ask(nvml: Any, function: str, *arguments: Any) -> Any | None:
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _handles(nvml: Any) -> Iterator[tuple[int, Any]]:
    for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0):
        handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is not None:
            yield index, handle


def _visible(nvml: Any, handles: list[tuple[int, Any]], wanted: str | None) -> list[tuple[int, Any]]:
    """The handles that the variable names, in its order; like CUDA, the first wrong entry ends the list."""
    if wanted is None:
        return handles
    chosen: list[tuple[int, Any]] = []
    by_uuid = {_text(_ask(nvml, "nvmlDeviceGetUUID", handle)): (index, handle) for index, handle in handles}
    for entry in (word.strip() for word in wanted.split(",")):
        found = None
        if entry.isdigit():
            found = next((item for item in handles if item[0] == int(entry)), None)
        elif entry.startswith("MIG-"):
            handle = _ask(nvml, "nvmlDeviceGetHandleByUUID", entry)
            found = (len(chosen), handle) if handle is not None else None
        elif entry.startswith("GPU-"):
            found = next((item for uuid, item in by_uuid.items() if uuid.startswith(entry)), None)
        if found is None:
            break
        chosen.append(found)
    return chosen


def _read(nvml: Any, index: int, handle: Any) -> GpuState | None:
    # The first version of the call: its `used` holds the driver's reserve, so that total - used is what can be had.
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if memory is None:
        return None
    power_mw = _ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    energy_mj = _ask(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle)
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    temperature = _ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    return GpuState(
        index=index,
        uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", handle) or ""),
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle) or "GPU"),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        ours_bytes=_ours(nvml, handle),
        utilization_pct=float(rates.gpu) if rates is not None else None,
        power_w=power_mw / 1000 if power_mw is not None else None,
        temperature_c=float(temperature) if temperature is not None else None,
        energy_j=energy_mj / 1000 if energy_mj is not None else None,
        compute_capability=(int(capability[0]), int(capability[1])) if capability is not None else None,
    )


def _ours(nvml: Any, handle: Any) -> int | None:
    """Bytes of this process. Inside a container the driver lists pids of the host: the kernel tells ours in /proc where it can."""
    listed = [
        *(_ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []),
        *(_ask(nvml, "nvmlDeviceGetGraphicsRunningProcesses", handle) or []),
    ]
    pids = _own_pids()
    ours = [process.usedGpuMemory for process in listed if process.pid in pids and process.usedGpuMemory is not None]
    # A process that computes and draws stands in both lists with the same figure.
    return int(max(ours)) if ours else None


def _own_pids() -> set[int]:
    pids = {os.getpid()}
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                pids.update(int(word) for word in line.split()[1:])
    return pids
