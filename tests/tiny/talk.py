"""What the tests of chats share: an adapter that can be heard, a question, and the answers to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import Delta
from qlora_ui.engine.load import load_quantized
from qlora_ui.settings.run_config import RunConfig

HELLO = [Message("user", "hello world, how are you")]


def write_adapter(folder: Path, model_dir: Path, seed: int, **changes: Any) -> Path:
    """An adapter that changes what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    model = load_quantized(model_dir, RunConfig(), torch.device("cpu"))
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            torch.nn.init.normal_(parameter, std=0.3) if "lora_B" in name else parameter.data.mul_(1.3)
    peft_model.save_pretrained(str(folder))
    return folder


def answers(deltas: Iterator[Delta]) -> dict[str, str]:
    """What each side said, whole."""
    text: dict[str, str] = {}
    for delta in deltas:
        text[delta.side] = text.get(delta.side, "") + delta.text
    return text
