"""What bfloat16 costs an adapter: the same steps with its weights and AdamW's states in fp32, rounded to bfloat16, and on master weights.

usage: python tests/bench/adapter_precision.py MODEL_FOLDER TEXT_FILE OUT_FILE [--steps 60]
On a CPU. All arithmetic is in fp32, so that nothing but the adapter's own precision differs; the base is whole. `fp32` rounds nothing,
`bf16` the gradients, the weights and the states (torch's AdamW on bf16 weights), `weights` all but the states (paged AdamW 32-bit),
`master` what the model sees, its gradients, and nothing else (`MasterAdamW`). One seed, one order of rows, cosine schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = ("fp32", "bf16", "weights", "master")
TOKENS, ROWS, CHECKED = 128, 2, 24


def build(folder: str) -> tuple[Any, Any]:
    """Model with a fresh adapter, and its tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    set_seed(1)
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer: Any, text: str, count: int) -> Any:
    """Rows (count, TOKENS) of a text, from random places."""
    import numpy as np
    import torch

    ids = tokenizer(Path(text).read_text(encoding="utf-8"))["input_ids"]
    starts = np.random.default_rng(0).integers(0, len(ids) - TOKENS, count)
    return torch.tensor([ids[start : start + TOKENS] for start in starts])


def round_(tensor: Any) -> None:
    """To bfloat16 and back, in place."""
    tensor.copy_(tensor.bfloat16().float())


def train(kind: str, model: Any, rows: Any, steps: int, rate: float) -> list[float]:
    """The losses of all steps."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            round_(parameter)
    masters = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, foreach=False)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = rows[step * ROWS : (step + 1) * ROWS]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        for parameter in trained if kind != "fp32" else ():
            round_(parameter.grad)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        with torch.no_grad():
            if kind == "master":
                torch._foreach_copy_(trained, masters)
            optimizer.step()
            torch._foreach_copy_(masters, trained)
            for parameter in trained if kind != "fp32" else ():
                round_(parameter)
                for name in ("exp_avg", "exp_avg_sq") if kind == "bf16" else ():
                    round_(optimizer.state[parameter][name])
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    """Train each kind once and write what it came to."""
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for kind in given.kinds:
        model, tokenizer = build(given.model)
        rows = pieces(tokenizer, given.text, given.steps * ROWS + CHECKED)
        began = time.time()
        losses = train(kind, model, rows, given.steps, given.rate)
        model.eval()
        with torch.no_grad():
            checks = [float(model(input_ids=row[None], labels=row[None]).loss) for row in rows[given.steps * ROWS :]]
        last = losses[-10:]
        found[kind] = {"losses": losses, "last_10": sum(last) / len(last), "evaluation": sum(checks) / CHECKED, "s": time.time() - began}
        print(kind, {name: value for name, value in found[kind].items() if name != "losses"}, flush=True)
    about = {
        "command": " ".join(sys.argv[:1] + sys.argv[3:]),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "steps": given.steps,
    }
    given.out.write_text(json.dumps({**about, "kinds": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
