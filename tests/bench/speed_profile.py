"""Where the GPU's time of one call goes, by kind of kernel, with what the card idles in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

KINDS = {
    "attention": ("flash", "fmha", "attention"),
    "products": ("gemm", "cutlass", "nvjet", "sm90_xmma", "cublas"),
    "dequantization": ("dequant", "nf4"),
    "LoRA": ("lora_",),
    "gated MLP": ("gated_", "silu"),
    "norm and rotary": ("norm_", "rope_"),
    "loss": ("fold_logits", "to_gradient", "logprob"),
    "copies": ("memcpy", "memset", "copy"),
}


def profiled(step: Callable[[], Any], *, num_listed: int = 0) -> dict[str, Any]:
    """Run `step` twice to warm up and once recorded; milliseconds by kind, launches, and how long the card had nothing to do.

    `kernels_ms` adds all kernels up and may exceed `busy_ms`, the time in which at least one ran, where streams overlap.
    """
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with record(activities=[ProfilerActivity.CUDA]) as recorded:
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - started) * 1000
    kinds: dict[str, list[float]] = {}
    names: dict[str, list[float]] = {}
    spans = []
    for event in recorded.profiler.kineto_results.events():
        if event.device_type() != DeviceType.CUDA:
            continue
        name, ms = event.name(), event.duration_ns() / 1e6
        kind = next((k for k, words in KINDS.items() if any(w in name.lower() for w in words)), "elementwise and other")
        for table, key in ((kinds, kind), (names, name)):
            slot = table.setdefault(key, [0.0, 0])
            slot[0] += ms
            slot[1] += 1
        spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
    busy = _covered(spans) / 1e6
    span = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e6 if spans else 0.0
    result: dict[str, Any] = {
        "wall_ms": round(wall, 1),
        "span_ms": round(span, 2),
        "busy_ms": round(busy, 2),
        "idle_ms": round(span - busy, 2),
        "kernels_ms": round(sum(ms for ms, _ in kinds.values()), 2),
        "launches": int(sum(count for _, count in kinds.values())),
        "kinds": {k: {"ms": round(ms, 2), "launches": int(n)} for k, (ms, n) in sorted(kinds.items(), key=lambda item: -item[1][0])},
    }
    if num_listed:
        largest = sorted(names.items(), key=lambda item: -item[1][0])[:num_listed]
        result["kernels"] = [{"ms": round(ms, 2), "launches": int(n), "name": name[:90]} for name, (ms, n) in largest]
    return result


def _covered(spans: list[tuple[int, int]]) -> int:
    """Nanoseconds that lie in at least one span."""
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
