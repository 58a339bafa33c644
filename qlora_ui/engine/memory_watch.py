"""The live line of memory, power and temperature, from a thread of its own beside the training loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from qlora_ui.hardware.gpu import GpuState, read_gpus
from qlora_ui.hardware.system import process_bytes, read_system
from qlora_ui.runs.events import MemoryMeasured

TICK_S = 1.0
SLOWEST_TICK_S = 10.0
LOOK_S = 0.2
"""How often pending requests are looked at, so that the page shows an echo at once."""


class MemoryWatch:
    """Measures memory, on demand and once a second; a context manager around a job.

    `on_tick` writes a point of the live line, `on_look` is called five times a second. Long runs tick more slowly (every
    ten seconds after three hours), so that the journal stays small.
    """

    def __init__(self, device: torch.device, on_tick: Callable[[MemoryMeasured], object], on_look: Callable[[], None]) -> None:
        self._device = device
        self._on_tick = on_tick
        self._on_look = on_look
        self._done = threading.Event()
        self._started = time.monotonic()
        self._first_energy_j: float | None = None
        self._peak_process_bytes = 0
        # The page and the libraries were there before; what is predicted, and what has to fit what is free, comes on top of them.
        self._held_before_bytes = process_bytes() if device.type == "cpu" else 0
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the thread; a second call does nothing."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def measure(self, at: str) -> MemoryMeasured:
        """Memory now, and its peak since the last `reset_peak`; `at` as in MemoryMeasured."""
        return self._measure_cpu(at) if self._device.type == "cpu" else self._measure_card(at)

    def reset_peak(self) -> None:
        """Start a new peak; the dry run has one of its own."""
        self._peak_process_bytes = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _measure_cpu(self, at: str) -> MemoryMeasured:
        system, grown = read_system(), max(0, process_bytes() - self._held_before_bytes)
        self._peak_process_bytes = max(self._peak_process_bytes, grown)
        return MemoryMeasured(
            allocated_bytes=None,
            reserved_bytes=None,
            peak_allocated_bytes=None,
            process_bytes=grown if at in ("tick", "returned") else self._peak_process_bytes,
            device_used_bytes=system.ram_total_bytes - system.ram_available_bytes,
            device_total_bytes=system.ram_total_bytes,
            at=at,
        )

    def _measure_card(self, at: str) -> MemoryMeasured:
        card = _our_card(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        event = MemoryMeasured(
            allocated_bytes=torch.cuda.memory_allocated(self._device),
            reserved_bytes=torch.cuda.memory_reserved(self._device),
            peak_allocated_bytes=torch.cuda.max_memory_allocated(self._device),
            peak_reserved_bytes=torch.cuda.max_memory_reserved(self._device),
            process_bytes=card.ours_bytes if card else None,
            device_used_bytes=total - free,
            device_total_bytes=total,
            at=at,
        )
        if card is None:
            return event
        if self._first_energy_j is None:
            self._first_energy_j = card.energy_j
        energy = card.energy_j - self._first_energy_j if card.energy_j is not None and self._first_energy_j is not None else None
        return replace(event, power_w=card.power_w, utilization_pct=card.utilization_pct, temperature_c=card.temperature_c, energy_j=energy)

    def _watch(self) -> None:
        next_tick = time.monotonic()
        while not self._done.wait(LOOK_S):
            self._on_look()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + min(max((now - self._started) / 1000, TICK_S), SLOWEST_TICK_S)
                # CUDA is not touched before the job has initialised it: the first touch makes a context.
                if self._device.type == "cpu" or torch.cuda.is_initialized():
                    self._on_tick(self.measure("tick"))


def _our_card(device: torch.device) -> GpuState | None:
    """NVML's view of the card that torch calls `device`; the visible ones are listed in torch's order."""
    cards = read_gpus()
    index = device.index or 0
    return cards[index] if index < len(cards) else None
