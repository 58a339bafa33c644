"""Memory, processor, disk and installed versions, without importing what is looked at."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "safetensors",
    "tokenizers",
    "gradio",
    "huggingface_hub",
    "pydantic",
    "nvidia-ml-py",
    "triton",
)
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
GROWING_SEGMENTS = "expandable_segments:True"
"""Setting of torch's CUDA allocator under which it leaves almost nothing unused, also where batches differ in length."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class SystemState:
    """The machine beside its cards, now."""

    os: str
    cpu: str
    num_cpus: int
    """Cores that this process may use."""
    ram_total_bytes: int
    ram_available_bytes: int
    process_bytes: int
    """Resident memory of this process."""
    has_bf16: bool
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16 or AMX)."""


def read_system() -> SystemState:
    """Memory and processor; inside a container its limit counts and not the host's memory."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _first_number(_CGROUP_LIMITS)
    if limit is not None and limit < total:
        used = _first_number(_CGROUP_USED) or 0
        total, available = limit, max(0, min(available, limit - used))
    return SystemState(
        os=f"{platform.system()} {platform.release()}",
        cpu=_cpu_name(),
        num_cpus=_num_cpus(),
        ram_total_bytes=total,
        ram_available_bytes=available,
        process_bytes=process_bytes(),
        has_bf16=_has_bf16(),
    )


def process_bytes() -> int:
    """Resident memory of this process."""
    return int(_process(os.getpid()).memory_info().rss)


def grows_segments(environment: Mapping[str, str] | None = None) -> bool:
    """Whether torch's CUDA allocator grows its segments here, as the user has set it or as this app does.

    Not on Windows, where torch cannot, nor under WSL, whose driver has refused the calls that it takes.
    """
    variables = os.environ if environment is None else environment
    chosen = next((variables[name] for name in ALLOCATOR_VARIABLES if name in variables), None)
    if chosen is not None:
        return GROWING_SEGMENTS.lower() in chosen.replace(" ", "").lower()
    return sys.platform == "linux" and "microsoft" not in platform.release().lower()


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide what a run does; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _process(pid: int) -> psutil.Process:
    """Pages ask each second, and making one reads several files."""
    return psutil.Process(pid)


def _num_cpus() -> int:
    try:
        return len(_process(os.getpid()).cpu_affinity() or []) or psutil.cpu_count() or 1
    except (AttributeError, psutil.Error):
        # No affinity on macOS.
        return psutil.cpu_count() or 1


def _first_number(paths: tuple[str, ...]) -> int | None:
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text(encoding="ascii"))
    return None


@cache
def _cpu_info() -> str:
    if sys.platform != "linux":
        return ""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return ""


@cache
def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _cpu_info().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"


@cache
def _has_bf16() -> bool:
    lines = [line for line in _cpu_info().splitlines() if line.startswith("flags")]
    return bool(lines) and not {"avx512_bf16", "amx_bf16"}.isdisjoint(lines[0].split())
