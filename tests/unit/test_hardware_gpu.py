"""read_gpus against a driver that answers, refuses or is absent; the stand-in is NVIDIA's library, not our code."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qlora_ui.hardware import gpu
from qlora_ui.runs import process
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.service import Service


class FakeNvml(ModuleType):
    """As much of pynvml as is asked for; `refused` holds names of calls that fail."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.refused: set[str] = set()
        self.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=700), SimpleNamespace(pid=1, usedGpuMemory=50)]

    def answer(self, name: str, value: Any) -> Any:
        if name in self.refused:
            raise self.NVMLError(name)
        return value

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: 7,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}abc",
            "nvmlDeviceGetName": lambda handle: b"NVIDIA X",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=1000, used=800, free=200),
            "nvmlDeviceGetPowerUsage": lambda handle: 250_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 5_000,
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=93),
            "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: self.processes,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: self.processes[:1],
            "nvmlSystemGetDriverVersion": lambda: b"580.1",
        }
        if name not in answers:
            raise AttributeError(name)
        return lambda *arguments: self.answer(name, answers[name](*arguments))  # type: ignore[operator]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "_given", [])
    gpu._nvml.cache_clear()
    yield fake
    gpu._nvml.cache_clear()


def test_reads_what_there_is(nvml: FakeNvml) -> None:
    first, second = gpu.read_gpus()
    assert (first.uuid, second.index, first.name) == ("GPU-0abc", 1, "NVIDIA X")
    assert first.ours_bytes == 700 and first.free_bytes == 200
    assert (first.power_w, first.energy_j, first.utilization_pct, first.temperature_c) == (250.0, 5.0, 93.0, 61.0)
    assert first.compute_capability == (9, 0)
    assert gpu.driver_version() == "580.1"


@pytest.mark.parametrize(
    ("variable", "indices"),
    [("1", [1]), ("1,0", [1, 0]), ("GPU-1", [1]), ("", []), ("-1", []), ("0,9,1", [0]), ("MIG-5", [0])],
)
def test_visible_cards(nvml: FakeNvml, variable: str, indices: list[int]) -> None:
    assert [state.index for state in gpu.read_gpus(environment={"CUDA_VISIBLE_DEVICES": variable})] == indices
    assert len(gpu.read_gpus(visible_only=False)) == 2


@pytest.mark.parametrize("given", [None, "1,0", "0,1"])
def test_what_the_user_gave_is_there_for_others_after_a_run_has_left_the_app_one_card(
    given: str | None, nvml: FakeNvml, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    else:
        # Put back at the end, whatever the code writes.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    before = [card.uuid for card in Service(workspace).gpus()]
    gpu.see_only("GPU-1abc")
    gpu.see_only("GPU-1abc")
    # What this process computes on, and what its page lists: all, the one it computes on first.
    assert [card.uuid for card in gpu.read_gpus()] == ["GPU-1abc"]
    assert [card.uuid for card in Service(workspace).gpus()] == ["GPU-1abc", "GPU-0abc"]
    assert sorted(before) == ["GPU-0abc", "GPU-1abc"]

    environments: list[dict[str, str]] = []
    child = SimpleNamespace(poll=lambda: 0, pid=2**22 + 1)  # above the largest pid
    monkeypatch.setattr(process.subprocess, "Popen", lambda words, **named: environments.append(named["env"]) or child)
    config = RunConfig().changed({"launch.where": "process", "launch.num_processes": 2})
    process.run_in_process(create_run(workspace, config), config, until=lambda: False)
    assert environments[0].get("CUDA_VISIBLE_DEVICES") == given


@pytest.mark.parametrize("call", ["Power", "TotalEnergy", "Utilization", "Temperature", "Capability", "RunningProcesses", "Name", "UUID"])
def test_a_refused_call_is_none_and_nothing_else(nvml: FakeNvml, call: str) -> None:
    nvml.refused = {name for name in (
        "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetName", "nvmlDeviceGetUUID") if call in name}  # fmt: skip
    assert nvml.refused
    assert [state.total_bytes for state in gpu.read_gpus()] == [1000, 1000]


def test_processes_of_others_or_without_a_figure_are_not_ours(nvml: FakeNvml) -> None:
    nvml.processes = [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]
    assert gpu.read_gpus()[0].ours_bytes is None


def test_a_lost_card_is_left_out(nvml: FakeNvml) -> None:
    nvml.refused = {"nvmlDeviceGetMemoryInfo"}
    assert gpu.read_gpus() == []


def test_a_driver_that_is_absent_is_asked_again_later(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.refused = {"nvmlInit"}
    now = 1000.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    assert gpu.read_gpus() == [] and gpu.driver_version() is None
    nvml.refused = set()
    assert gpu.read_gpus() == []
    now += gpu.RETRY_S
    assert len(gpu.read_gpus()) == 2
