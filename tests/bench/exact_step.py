"""Where the fast step parts from the plain SFTTrainer: the gradients and adapter of every step compared bit by bit, in one process.

usage: python tests/bench/exact_step.py MODEL_FOLDER TEXT_FILE OUT_FILE [--steps 50] [--shape 4 256 2] [--mean-len 80] [--warmup 0.03]
       [--whole] [--chat] [--uncaptured] [--deterministic] [--on-torch NAME...]
Packed rows, or whole ones with --whole, dropout 0, one seed. --on-torch puts modules of the fast step (ops, layer_ops, loss, rope, weights)
on torch's operations: what differs no more was theirs. The plain run is made twice, which says what the plain stack makes of itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import speed_train as stacks


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", default="50")
    parser.add_argument("--shape", nargs=3, default=("4", "256", "2"), help="micro-batch, tokens of a row, gradient accumulation")
    parser.add_argument("--mean-len", default="80", help="tokens of a packed document, lognormal")
    parser.add_argument("--warmup", default="0")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--on-torch", nargs="+", default=[], choices=["ops", "layer_ops", "loss", "rope", "weights"])
    for flag in ("--chat", "--uncaptured", "--deterministic"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def train(given: argparse.Namespace, stack: str) -> dict[str, Any]:
    """One run of a stack: gradients before clipping and the adapter, flat, of every step; losses, norms, names and sizes."""
    import torch
    from transformers import set_seed

    words = [stack, given.model, "--text", given.text, "--dropout", "0", "--steps", given.steps, "--warmup", given.warmup]
    words += ["--bs", given.shape[0], "--seq", given.shape[1], "--ga", given.shape[2]]
    words += [] if given.whole else ["--mean-len", given.mean_len, "--packed"]
    words += [f"--{flag}" for flag in ("chat", "uncaptured", "deterministic") if getattr(given, flag)]
    sys.argv = ["speed_train.py", *words]
    a = stacks.arguments()
    set_seed(0)
    stacks.be_deterministic(a)
    model, tokenizer, _ = stacks.load(a)
    data, collator, _ = stacks.batches(a, tokenizer)
    clock = stacks.make_clock(a)
    notes: list[str] = []
    named = {"model": model, "train_dataset": data, "processing_class": tokenizer, "callbacks": [clock]}
    named |= {"data_collator": collator} if collator is not None else {}
    trainer = stacks.fast_trainer(a, named, notes) if stack == "fast" else stacks.stock_trainer(a, named)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    found: dict[str, Any] = {"gradients": [], "adapters": [], "losses": clock.losses, "norms": clock.norms, "notes": notes}
    clip = trainer._clip_grad_norm

    def record(wrapped: Any) -> Any:
        found["gradients"].append(torch.cat([p.grad.detach().flatten() for p in trained.values()]).cpu())
        found["adapters"].append(torch.cat([p.detach().flatten() for p in trained.values()]).cpu())
        return clip(wrapped)

    trainer._clip_grad_norm = record
    trainer.train()
    if stack == "fast":
        trainer.close()
    return found | {"sizes": {name: p.numel() for name, p in trained.items()}}


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Shares of numbers that are not the same, step by step; of the first step where some are, the matrices they are in."""

    def shares(key: str) -> list[float]:
        return [float((a != b).float().mean()) for a, b in zip(one[key], other[key], strict=True)]

    gradients = shares("gradients")
    first = next((step for step, share in enumerate(gradients) if share), None)
    where: dict[str, float] = {}
    if first is not None:
        parts = [run["gradients"][first].split(list(one["sizes"].values())) for run in (one, other)]
        named = zip(one["sizes"], *parts, strict=True)
        where = {name: float((a != b).float().mean()) for name, a, b in named if not a.equal(b)}
    norms = [abs(b / a - 1) for a, b in zip(one["norms"], other["norms"], strict=True)]
    losses = [abs(b / a - 1) for a, b in zip(one["losses"], other["losses"], strict=True)]
    return {
        "steps": len(gradients),
        "first_step_that_differs": first,
        "where": where,
        "gradients": gradients,
        "adapters": shares("adapters"),
        "norm_max": max(norms),
        "norm_steps_within_3_pct": sum(d <= 0.03 for d in norms),
        "loss_max": max(losses),
        "norms": one["norms"],
        "losses": one["losses"],
        "notes": other["notes"],
    }


def main() -> None:
    given = arguments()
    plain = train(given, "plain")
    rows = {"plain again": compare(plain, train(given, "plain"))}
    for name in given.on_torch:
        importlib.import_module(f"qlora_ui.engine.fast.{name}").uses_triton = lambda tensor: False  # type: ignore[attr-defined]
    rows["fast"] = compare(plain, train(given, "fast"))
    for name, row in rows.items():
        first = row["first_step_that_differs"]
        same = "every bit the same" if first is None else f"differs from step {first} on: {list(row['where'].items())[:4]}"
        within = f"norm {row['norm_max']:.2%} ({row['norm_steps_within_3_pct']} of {row['steps']} within 3 %), loss {row['loss_max']:.3%}"
        print(f"{name}: {same}; {within}", flush=True)
    given.out.write_text(json.dumps({"about": stacks.about(stacks.arguments(), []), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
