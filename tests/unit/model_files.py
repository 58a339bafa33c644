"""Model folders of a few KiB, written without torch: a config, safetensors of zeros, a tokenizer's name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def safetensors_bytes(**shapes: tuple[int, ...]) -> bytes:
    """A safetensors file of bf16 zeros."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def model_files(**config: Any) -> dict[str, bytes]:
    """The files of a small model by name."""
    return {
        "config.json": json.dumps(CONFIG | config).encode(),
        "model.safetensors": safetensors_bytes(embed=(64, 16), layer=(2304,), norms=(3, 16)),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}).encode(),
        "README.md": b"---\nlicense: apache-2.0\ntags:\n- x\n---\nHello\n",
    }


def write_model(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write the files of a model to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or model_files()).items():
        (folder / name).write_bytes(content)
    return folder
