"""One micro-step of a shape in several variants, in one process: milliseconds of a replay, peak memory, and where the time goes.

usage: python tests/bench/speed_micro.py NAME ROWS LENGTH [--out FILE] [--variants "label: words; label: words"] [--profile LABELS]
NAME is a shape of speed_base.py; the model is made on the card, 4-bit, with random weights. Words of a variant: `kept=N` (layers that keep
their activations, -1: all), `plain` (transformers' and PEFT's own modules, uncaptured), `module.NAME=value` (a constant of the fast path).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bitsandbytes as bnb
import peft
import torch
import transformers
from speed_base import SHAPES
from speed_profile import profiled
from torch import nn

from qlora_ui.engine.fast.apply import apply_fast_path, fast_state, remove_fast_path
from qlora_ui.engine.fast.micro_step import MicroStep, read_batch

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPLAYS, BURSTS = 5, 4


def build(name: str) -> Any:
    """A PeftModel of the shape over NF4 weights with double quantization, without a detour over the disk."""
    family, shape = SHAPES[name]
    config = transformers.AutoConfig.for_model(family, **shape)
    torch.manual_seed(0)
    with DEVICE:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for module in list(model.model.layers.modules()):
        for child, linear in module.named_children():
            if type(linear) is nn.Linear:
                setattr(module, child, quantized(linear))
    model.is_loaded_in_4bit = True
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lora = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DEVICE, torch.bfloat16)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    return model.train()


def quantized(linear: nn.Linear) -> nn.Module:
    """The layer in 4 bits."""
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        torch.bfloat16,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4").to(DEVICE)
    layer.bias = linear.bias
    return layer


def settings_of(words: list[str]) -> tuple[int, bool, dict[tuple[Any, str], Any]]:
    """(kept layers, plain, constants of modules) of a variant."""
    kept, plain, constants = 0, False, {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "plain":
            plain = True
        elif name == "kept":
            kept = int(value) if int(value) >= 0 else 10**6
        else:
            module, _, constant = name.rpartition(".")
            constants[importlib.import_module(f"qlora_ui.engine.fast.{module}"), constant] = json.loads(value)
    return kept, plain, constants


def timed(step: Any) -> float:
    """Milliseconds of one call: the fastest of several rows of calls, since other processes may be at work."""
    step()
    torch.cuda.synchronize()
    found = []
    for _ in range(BURSTS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(REPLAYS):
            step()
        end.record()
        torch.cuda.synchronize()
        found.append(float(start.elapsed_time(end)) / REPLAYS)
    return min(found)


def fast_row(model: Any, kept: int, ids: torch.Tensor, profile: bool) -> dict[str, Any]:
    """The captured micro-step."""
    report = apply_fast_path(model, dropout=0.05, num_kept_layers=kept, packed=False)
    if not report.active:
        raise SystemExit(" ".join(report.reasons))
    model.train()
    notes: list[str] = []
    micro = MicroStep(model, fast_state(model), run_seed=0, capture=True, capture_lock=threading.Lock(), on_note=notes.append)
    batch = read_batch({"input_ids": ids, "labels": ids.clone()}, DEVICE)

    def step() -> torch.Tensor:
        return micro.run(batch, ids.numel(), 1, 0, 0)

    first = float(step())
    step()
    row: dict[str, Any] = {"ms": timed(step), "peak_bytes": torch.cuda.max_memory_allocated(), "loss": float(step()), "notes": notes}
    assert abs(first - row["loss"]) < 1e-3, (first, row["loss"])
    if profile:
        row["profile"] = profiled(step, num_listed=24)
    micro.close()
    remove_fast_path(model)
    return row


def plain_row(model: Any, kept: int, ids: torch.Tensor, profile: bool) -> dict[str, Any]:
    """The same micro-step as transformers and PEFT run it."""
    if kept == 0:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    step()
    row: dict[str, Any] = {"ms": timed(step), "peak_bytes": torch.cuda.max_memory_allocated(), "loss": None, "notes": []}
    if profile:
        row["profile"] = profiled(step, num_listed=24)
    if kept == 0:
        model.gradient_checkpointing_disable()
    model.zero_grad(set_to_none=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=list(SHAPES))
    parser.add_argument("rows", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("--variants", default="fast:")
    parser.add_argument("--profile", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = build(given.name)
    ids = torch.randint(5, 300, (given.rows, given.length), device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    results = []
    for variant in given.variants.split(";"):
        label, _, words = (part.strip() for part in variant.partition(":"))
        kept, plain, constants = settings_of(words.split())
        before = {place: getattr(*place) for place in constants}
        for (module, name), value in constants.items():
            setattr(module, name, value)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = torch.cuda.memory_allocated()
        row = (plain_row if plain else fast_row)(model, kept, ids, label in given.profile.split(","))
        for (module, name), value in before.items():
            setattr(module, name, value)
        gc.collect()
        row |= {"tokens_per_s": round(ids.numel() / row["ms"] * 1000), "left_over_bytes": torch.cuda.memory_allocated() - started}
        head = {"what": "micro-step", "variant": label, "words": words, "shape": f"{given.name} {given.rows}x{given.length}"}
        results.append({**head, **row, "card": torch.cuda.get_device_name(), "versions": versions()})
        gib = row["peak_bytes"] / 2**30
        print(
            f"{label:28s} {row['ms']:8.2f} ms  {row['tokens_per_s']:7d} tok/s  peak {gib:.3f} GiB  left {row['left_over_bytes']}",
            flush=True,
        )
        if "profile" in row:
            print("   " + json.dumps({k: v for k, v in row["profile"].items() if k != "kernels"}), flush=True)
            for kernel in row["profile"]["kernels"]:
                print(f"      {kernel['ms']:7.2f} ms {kernel['launches']:5d} x {kernel['name'][:70]}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


def versions() -> dict[str, str]:
    """What ran."""
    return {module.__name__: module.__version__ for module in (torch, transformers, peft, bnb)}


if __name__ == "__main__":
    main()
