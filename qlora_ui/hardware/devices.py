"""What a run can count on: this machine's card or processor, or a card from a list for machines that have none."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from qlora_ui.base.errors import HardwareError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.base.units import GIB, MIB
from qlora_ui.hardware.cards import KNOWN_CARDS, Card, card_of, find_card
from qlora_ui.hardware.gpu import GpuState, read_gpus
from qlora_ui.hardware.system import grows_segments, read_system


class HasCache(Protocol):
    """A workspace, as far as this layer knows one."""

    @property
    def cache(self) -> Path: ...


ASSUMED_CONTEXT_BYTES = 500 * MIB
"""CUDA context with the kernels' code, until this machine's was measured; 742 MiB on an H100."""
_DEVICES_FILE = "devices.json"
_RUNS_NEEDED, _RUNS_KEPT, _LARGEST_CORRECTION = 3, 20, 0.15
CPU_KEY = "cpu"
"""Under which this machine's processor stands among the devices that runs have taught something of."""
FAST, PLAIN = "fast", "plain"
"""Ways to train whose speed is learned apart."""
_STEP_RATIOS = {FAST: "step_ratios_fast", PLAIN: "step_ratios_plain"}


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured over estimated time of a step in earlier runs on a device."""

    factor: float
    """Their median."""
    num_runs: int
    spread: float | None
    """The largest distance of a run from the median, as a share of it; None before the third run."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What an estimate needs to know of a device."""

    name: str
    total_bytes: int
    free_bytes: int
    """Free for us: what we hold ourselves counts as free."""
    others_bytes: int
    """Held by other processes, the desktop and the driver."""
    context_bytes: int
    """CUDA context and loaded kernels; 0 on a CPU."""
    context_source: str
    """`measured` on this machine, `assumed`, or `none`."""
    is_cpu: bool
    supports_bf16: bool
    tflops: float
    bandwidth_bytes_per_s: float
    watts: float | None = None
    uuid: str = ""
    is_present: bool = True
    """False for a card chosen from the list."""
    capability: tuple[int, int] | None = None
    correction: float = 1.0
    """Measured over predicted memory of earlier runs on this machine, without the context."""
    num_learned: int = 0
    """Runs behind the correction."""
    speeds: Mapping[str, Speed] = field(default_factory=dict, hash=False)
    """By way to train."""
    grows_segments: bool = field(default_factory=grows_segments)
    """Whether torch's allocator grows its segments there, instead of adding new ones beside those that do not fit."""


def current_device(workspace: HasCache | None = None, wanted: str = "auto") -> DeviceProfile:
    """The device that a run with `launch.device` = `wanted` would use on this machine.

    Raises HardwareError where a card is asked for and there is none.
    """
    gpus = read_gpus() if wanted != "cpu" else []
    if gpus:
        return card_profile(gpus[0], workspace)
    if wanted == "cuda":
        raise HardwareError(
            "There is no NVIDIA card that the driver answers for.",
            fix="Choose “Automatic” or “CPU”, or see “python app.py doctor”.",
            where="launch.device",
            code="no-gpu",
        )
    return cpu_profile(workspace)


def card_profile(gpu: GpuState, workspace: HasCache | None = None) -> DeviceProfile:
    """The profile of a card of this machine, with its measured context where the workspace has one."""
    spec = card_of(gpu.name, gpu.total_bytes)
    context = stored_context(workspace, gpu.uuid)
    ours = gpu.ours_bytes or 0
    others = max(0, gpu.used_bytes - ours)
    capability = gpu.compute_capability or (spec.capability if spec else None)
    assumed_tflops, assumed_bandwidth = (spec.tflops, spec.bandwidth_gb_per_s) if spec else _assumed_speed(capability, gpu.total_bytes)
    correction, num_learned = stored_correction(workspace, gpu.uuid)
    return DeviceProfile(
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.total_bytes - others,
        others_bytes=others,
        context_bytes=context if context is not None else assumed_context(capability),
        context_source="measured" if context is not None else "assumed",
        is_cpu=False,
        supports_bf16=capability is None or capability >= (8, 0),
        tflops=assumed_tflops,
        bandwidth_bytes_per_s=assumed_bandwidth * 1e9,
        watts=spec.watts if spec else None,
        uuid=gpu.uuid,
        capability=capability,
        correction=correction,
        num_learned=num_learned,
        speeds=stored_speeds(workspace, gpu.uuid),
    )


def cpu_profile(workspace: HasCache | None = None) -> DeviceProfile:
    """This machine's processor and memory. Speed: 2 FLOP x 16 lanes x 1.2 GHz a core, a deliberately modest figure."""
    system = read_system()
    return DeviceProfile(
        name="CPU",
        total_bytes=system.ram_total_bytes,
        free_bytes=system.ram_available_bytes,
        others_bytes=max(0, system.ram_total_bytes - system.ram_available_bytes),
        context_bytes=0,
        context_source="none",
        is_cpu=True,
        supports_bf16=system.has_bf16,
        tflops=0.04 * system.num_cpus,
        bandwidth_bytes_per_s=10e9,
        uuid=CPU_KEY,
        speeds=stored_speeds(workspace, CPU_KEY),
    )


def named_device(words: str, workspace: HasCache | None = None) -> DeviceProfile:
    """The device that a user names: `cpu`, a known card (`RTX 4060`), or a size (`8GB`, `12 GiB`, bytes).

    Raises HardwareError naming the known cards.
    """
    text = words.strip()
    if text.lower() in ("auto", "current", ""):
        return current_device(workspace)
    if text.lower() == "cpu":
        return cpu_profile(workspace)
    size = _parse_size(text)
    if size:
        return sized_profile(size, f"A card with {size / GIB:.3g} GiB")
    card = find_card(text)
    if card is None:
        names = ", ".join(card.name for card in KNOWN_CARDS)
        raise HardwareError(
            f"There is no card “{text[:60]}” on the list.",
            fix=f"Give its memory (8GB), or one of {names}.",
            where="--device",
            code="device",
        )
    return listed_profile(card)


def listed_profile(card: Card) -> DeviceProfile:
    """The profile of a card from the list, empty but for the desktop of the cards that draw one."""
    base = sized_profile(card.total_mib * MIB, card.name)
    others = 400 * MIB if card.draws_a_desktop else 0
    return replace(
        base,
        free_bytes=base.total_bytes - others,
        others_bytes=others,
        supports_bf16=card.capability >= (8, 0),
        tflops=card.tflops,
        bandwidth_bytes_per_s=card.bandwidth_gb_per_s * 1e9,
        watts=card.watts,
        capability=card.capability,
        context_bytes=assumed_context(card.capability),
    )


def sized_profile(total_bytes: int, name: str) -> DeviceProfile:
    """The profile of a card of which only the memory is known."""
    tflops, bandwidth = _assumed_speed(None, total_bytes)
    return DeviceProfile(
        name=name,
        total_bytes=total_bytes,
        free_bytes=total_bytes,
        others_bytes=0,
        context_bytes=ASSUMED_CONTEXT_BYTES,
        context_source="assumed",
        is_cpu=False,
        supports_bf16=True,
        tflops=tflops,
        bandwidth_bytes_per_s=bandwidth * 1e9,
        is_present=False,
    )


def assumed_context(capability: tuple[int, int] | None) -> int:
    """Context of a card that was not measured: the larger the chip, the more its kernels' code and the driver take."""
    return 742 * MIB if capability is not None and (9, 0) <= capability < (11, 0) else ASSUMED_CONTEXT_BYTES


def stored_context(workspace: HasCache | None, uuid: str) -> int | None:
    """Context size of a card as measured on this machine; None before the first run."""
    value = _stored(workspace).get(uuid)
    number = value.get("context_bytes") if isinstance(value, dict) else None
    return number if isinstance(number, int) and 0 < number < 4 * GIB else None


def store_context(workspace: HasCache, uuid: str, name: str, context_bytes: int) -> None:
    """Remember the context size of a card; implausible figures (under 50 MiB, over 4 GiB) are not kept."""
    if uuid and 50 * MIB < context_bytes < 4 * GIB:
        _store(workspace, uuid, name=name, context_bytes=context_bytes)


def stored_correction(workspace: HasCache | None, uuid: str) -> tuple[float, int]:
    """(factor, number of runs): the median of measured over predicted, at most 15 % either way; 1 before the third run."""
    ratios = _ratios(workspace, uuid)
    if len(ratios) < _RUNS_NEEDED:
        return 1.0, len(ratios)
    return min(max(statistics.median(ratios), 1 - _LARGEST_CORRECTION), 1 + _LARGEST_CORRECTION), len(ratios)


def store_ratio(workspace: HasCache, uuid: str, name: str, ratio: float) -> None:
    """Remember measured over predicted memory of a run (context left out of both, the correction of then left out of the prediction)."""
    if uuid and 0.5 < ratio < 2.0:
        _store(workspace, uuid, name=name, ratios=[*_ratios(workspace, uuid), ratio][-_RUNS_KEPT:])


def stored_speeds(workspace: HasCache | None, uuid: str) -> dict[str, Speed]:
    """What earlier runs say of a device's speed, by way to train."""
    found = {}
    for way in (FAST, PLAIN):
        ratios = _numbers(workspace, uuid, _STEP_RATIOS[way])
        if ratios:
            middle = statistics.median(ratios)
            spread = max(abs(ratio / middle - 1) for ratio in ratios) if len(ratios) >= _RUNS_NEEDED else None
            found[way] = Speed(middle, len(ratios), spread)
    return found


def store_step_ratio(workspace: HasCache, uuid: str, name: str, way: str, ratio: float) -> None:
    """Remember measured over estimated time of a run's steps (what was learned before left out of the estimate)."""
    if uuid and 0.02 < ratio < 50:
        key = _STEP_RATIOS[way]
        _store(workspace, uuid, name=name, **{key: [*_numbers(workspace, uuid, key), ratio][-_RUNS_KEPT:]})


def forget_learned(workspace: HasCache) -> None:
    """Forget what runs have taught of all devices' memory and speed; the measured context stays."""
    for known in list(_stored(workspace)):
        _store(workspace, known, ratios=[], **{key: [] for key in _STEP_RATIOS.values()})


def _ratios(workspace: HasCache | None, uuid: str) -> list[float]:
    return _numbers(workspace, uuid, "ratios")


def _numbers(workspace: HasCache | None, uuid: str, key: str) -> list[float]:
    value = _stored(workspace).get(uuid)
    numbers = value.get(key) if isinstance(value, dict) else None
    return [number for number in numbers if isinstance(number, float | int)] if isinstance(numbers, list) else []


def _store(workspace: HasCache, uuid: str, **values: Any) -> None:
    stored = _stored(workspace)
    known = stored.get(uuid)
    write_json(workspace.cache / _DEVICES_FILE, {**stored, uuid: {**(known if isinstance(known, dict) else {}), **values}})


def _stored(workspace: HasCache | None) -> dict[str, Any]:
    value = read_json(workspace.cache / _DEVICES_FILE) if workspace is not None else None
    return value if isinstance(value, dict) else {}


def _assumed_speed(capability: tuple[int, int] | None, total_bytes: int) -> tuple[float, float]:
    """(TFLOP/s, GB/s) of an unknown card: larger memory comes with faster cards."""
    gib = total_bytes / GIB
    steps = ((9, 20.0, 300.0), (13, 40.0, 450.0), (17, 70.0, 600.0), (26, 100.0, 900.0), (50, 200.0, 900.0))
    tflops, bandwidth = next(((speed, rate) for limit, speed, rate in steps if gib < limit), (400.0, 2000.0))
    return (tflops / 2, bandwidth) if capability is not None and capability < (8, 0) else (tflops, bandwidth)


def _parse_size(text: str) -> int | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(b|bytes|mb|mib|gb|gib|g|m)?", text.lower())
    if match is None:
        return None
    number, unit = float(match[1]), match[2] or ""
    if not unit and 1024 < number < 1e8:
        return None  # “4090” is a card
    # A card “of 8 GB” has 8 GiB; without a unit small numbers are GiB.
    factor = GIB if unit.startswith("g") or (not unit and number <= 1024) else MIB if unit.startswith("m") else 1
    return round(number * factor)
