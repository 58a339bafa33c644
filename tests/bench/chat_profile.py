"""Where one decode step of the chat goes, kernel by kernel, on this card; prints a table and writes it with --out.

usage: chat_profile.py MODEL_FOLDER [--sides 1|2] [--steps 20] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from chat_speed import adapter
from torch.profiler import ProfilerActivity, profile

from qlora_ui.engine.chat_answer import BUCKET_TOKENS
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.load import load_quantized
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.settings.run_config import RunConfig


def step_of(chat: ChatModel, sides: tuple[str, ...]) -> Any:
    """A captured decode step at position 200."""
    cache = ChatCache(chat.num_layers, chat.context_tokens, BUCKET_TOKENS["cuda"])
    known = ("base", "adapter")
    cache.reserve(known, 600)
    forward = ForwardPass(chat.base, cache, chat.switch, chat.device, capture=True, tokens=chat.tokens)
    rows = [known.index(side) for side in sides]
    return lambda: forward.run(sides, [[7] for _ in sides], [200 for _ in sides], rows)


def kernels_of(step: Any, num_steps: int) -> tuple[float, list[dict[str, Any]]]:
    """Milliseconds of a step without the profiler, and each kernel's launches and microseconds in one."""
    for _ in range(3):
        step()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_steps):
        step()
    end.record()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(num_steps):
            step()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    times: dict[str, float] = defaultdict(float)
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            counts[event.name] += 1
            times[event.name] += event.device_time
    rows = [{"kernel": name, "launches": counts[name] / num_steps, "us": times[name] / num_steps} for name in counts]
    return begin.elapsed_time(end) / num_steps, sorted(rows, key=lambda row: -row["us"])


def main() -> None:
    """Profile one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--sides", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda", 0)
    model = load_quantized(given.model, RunConfig().changed({"model.id": str(given.model)}), device)
    with tempfile.TemporaryDirectory() as folder:
        path = adapter(model, Path(folder))
        chat = ChatModel(given.model, model, load_tokenizer(given.model), device)
        chat.add_adapter("adapter", path)
    with torch.inference_mode():
        step_ms, rows = kernels_of(step_of(chat, ("base", "adapter")[2 - given.sides :]), given.steps)
    for row in rows[:30]:
        print(f"{row['us']:9.1f} us {row['launches']:7.1f} x  {row['kernel'][:120]}")
    busy, launches = sum(row["us"] for row in rows) / 1000, sum(row["launches"] for row in rows)
    print(f"a step {step_ms:.3f} ms: {launches:.0f} launches, {busy:.3f} ms busy")
    if given.out:
        shape = {"model": given.model.name, "sides": given.sides, "card": torch.cuda.get_device_name(), "torch": torch.__version__}
        given.out.write_text(json.dumps({**shape, "step_ms": step_ms, "busy_ms": busy, "launches": launches, "kernels": rows}, indent=1))


if __name__ == "__main__":
    main()
