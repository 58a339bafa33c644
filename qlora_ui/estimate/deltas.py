"""What a change of one option would cost: memory, trained numbers, the adapter's file and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_ui.estimate.adapter import adapter_of
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.workload import DataShape, workload_of
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """Memory, trained numbers, file and time of one setting of the options."""

    memory_bytes: int
    trainable_params: int
    adapter_bytes: int
    """Of the file on the disk."""
    total_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """Before and after a change."""

    path: str
    before: Cost
    after: Cost

    @property
    def memory_bytes(self) -> int:
        return self.after.memory_bytes - self.before.memory_bytes

    @property
    def trainable_params(self) -> int:
        return self.after.trainable_params - self.before.trainable_params

    @property
    def total_s(self) -> float:
        return self.after.total_s - self.before.total_s


def deltas(  # noqa: PLR0917
    facts: ModelFacts, config: RunConfig, device: DeviceProfile, path: str, new_value: Any, data: DataShape | None = None
) -> Delta:
    """What setting `path` to `new_value` would change; raises SettingsError where the value is none."""
    return Delta(path, cost_of(facts, config, device, data), cost_of(facts, config.changed({path: new_value}), device, data))


def cost_of(facts: ModelFacts, config: RunConfig, device: DeviceProfile, data: DataShape | None = None) -> Cost:
    """The cost of a configuration, in well under a millisecond."""
    data = data or DataShape()
    memory = estimate_memory(facts, config, device, data)
    duration = estimate_duration(facts, config, device, data.num_rows, data.mean_tokens)
    params = adapter_of(facts, config.lora).num_params
    return Cost(memory.total_bytes, params, params * workload_of(facts, config, device, data).adapter_bytes, duration.total_s)
