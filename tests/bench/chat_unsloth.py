"""Unsloth's chat speed on this machine, for the same model and prompt as `chat_speed.py`: prints a JSON row, adds it to --out.

usage: chat_unsloth.py MODEL_FOLDER [--name NAME] [--prompt 128] [--new 128] [--out FILE]
NF4 base, an unmerged adapter of rank 16 that says something, `for_inference`, and `generate` after two warm answers.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(folder: Path) -> Any:
    """The model as Unsloth's own notebooks prepare it for answers, with the weights that `chat_speed.py` gives its adapter."""
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=1024, dtype=torch.bfloat16, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=TARGETS, bias="none", random_state=0
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    FastLanguageModel.for_inference(model)
    return model


def measure(model: Any, num_prompt: int, num_new: int) -> dict[str, Any]:
    """Seconds to the first token (best of three) and tokens a second after it (best of three), batch of one, greedy."""
    import torch

    ids = torch.randint(5, 300, (1, num_prompt), generator=torch.Generator().manual_seed(0)).cuda()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run(count: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(**given, max_new_tokens=count, min_new_tokens=count)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.inference_mode():
        run(8)
        run(8)
        first = min(run(1) for _ in range(3))
        whole = min(run(num_new + 1) for _ in range(3))
    return {"first_token_s": first, "tok_s": num_new / (whole - first), "peak_bytes": torch.cuda.max_memory_allocated()}


def device_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    row: dict[str, Any] = {"what": "chat", "stack": "unsloth", "shape": f"{given.name or given.model.name} {given.prompt}+{given.new}"}
    row |= measure(load(given.model), given.prompt, given.new)
    row |= {"device": device_name(), "versions": {name: version(name) for name in ("torch", "transformers", "peft", "unsloth")}}
    print("ROW " + json.dumps(row), flush=True)
    if given.out:
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
        given.out.write_text(json.dumps([*known, row], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
