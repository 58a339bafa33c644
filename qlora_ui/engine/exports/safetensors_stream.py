"""Safetensors files written one tensor after the other, so that memory holds one tensor and never a shard."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qlora_ui.models.folder import read_header

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}
_HEADER_ALIGNMENT = 8


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, torch.Tensor], torch.Tensor],
    extra: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Write `source` anew in 16 bits, each tensor passed through `change`, `extra` ones behind; returns the bytes of all tensors.

    `change` gets the name and the stored tensor, and must keep the shape.
    """
    extra = extra or {}
    entries = sorted(read_header(source).items(), key=lambda item: item[1]["data_offsets"][0])
    shapes: dict[str, Iterable[int]] = {name: entry["shape"] for name, entry in entries}
    shapes |= {name: tensor.shape for name, tensor in extra.items()}
    header, total = _header(shapes, dtype)
    with safe_open(str(source), framework="pt") as stored, target.open("wb") as file:
        file.write(header)
        for name, _ in entries:
            _write(file, change(name, stored.get_tensor(name)), dtype)
        for tensor in extra.values():
            _write(file, tensor, dtype)
    return total


def _header(shapes: Mapping[str, Iterable[int]], dtype: torch.dtype) -> tuple[bytes, int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        sides = list(shape)
        size = dtype.itemsize
        for side in sides:
            size *= side
        header[name] = {"dtype": _NAMES[dtype], "shape": sides, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, at


def _write(file: Any, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    data = tensor.detach().to("cpu", dtype).contiguous()
    file.write(data.view(torch.uint8).reshape(-1).numpy().data if data.numel() else b"")
