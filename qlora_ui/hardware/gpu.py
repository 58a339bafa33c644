"""Cards as NVML sees them. An absent library, a lost card or a refused call is None and never an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuState:
    """One card, now."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    """By everybody."""
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
