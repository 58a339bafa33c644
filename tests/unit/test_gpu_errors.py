"""Every error that NVIDIA's library knows, from every call that is made to it: the page and the job go on with what is left."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from qlora_ui.hardware import gpu

ERRORS = {name: value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_") and isinstance(value, int)}
NEEDED = ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo")
ANSWERS: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "handle",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=1000, used=800, free=200),
    "nvmlDeviceGetUUID": "GPU-1",
    "nvmlDeviceGetName": "NVIDIA X",
    "nvmlDeviceGetPowerUsage": 250_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=93),
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetGraphicsRunningProcesses": [],
    "nvmlSystemGetDriverVersion": "580.1",
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The real library, its calls answered without a card."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, answer in ANSWERS.items():
        monkeypatch.setattr(pynvml, name, lambda *arguments, answer=answer: answer)
    gpu._nvml.cache_clear()
    yield monkeypatch
    gpu._nvml.cache_clear()


def refuse(library: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Let a call raise what the library raises for a code."""

    def refusing(*arguments: Any) -> Any:
        raise pynvml.NVMLError(code)

    library.setattr(pynvml, call, refusing)


def test_the_library_has_its_errors() -> None:
    assert len(ERRORS) >= 25 and {"NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_UNKNOWN"} <= set(ERRORS)


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_of_each_call_is_survived(name: str, library: pytest.MonkeyPatch) -> None:
    for call in ANSWERS:
        with pytest.MonkeyPatch.context() as patch:
            refuse(patch, call, ERRORS[name])
            gpu._nvml.cache_clear()
            states = gpu.read_gpus()
            gpu.driver_version()
        if call in NEEDED:
            assert states == [], call
        else:
            assert [(state.total_bytes, state.free_bytes) for state in states] == [(1000, 200)], call
    gpu._nvml.cache_clear()
    assert len(gpu.read_gpus()) == 1
