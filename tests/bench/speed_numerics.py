"""Fast against plain on the same real text: losses and gradient norms of every step, and the trained adapters' evaluation losses.

usage: python tests/bench/speed_numerics.py MODEL_FOLDER TEXT_FILE OUT_FILE [--steps 50] [--shape 4 256 2] [--mean-len 80] [--warmup 0.03]
       [--optimizer adamw_fp32] [--chat] [--deterministic] [--bfloat16 | --float32 | --runs NAME...]
Whole rows and packed ones, dropout 0, one seed. `eager` is the plain stack again with another attention: how far rounding alone goes.
Two runs that differ by a rounding drift apart; where one follows another, it takes that one's adapter before every step, so that each step
is compared by itself.
In float32 nothing but the mathematics is left, and it is what both bfloat16 stacks are rounded from; --float32 makes those runs alone: on a
processor too, where `--shape 1 128 2 --at-once 2` takes ten minutes and Triton's kernels are torch's operations anyway.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXACT = ("--dtype", "float32")
PACKED = ("--packed", "--mean-len", "@")
RUNS: dict[str, list[str]] = {
    "plain": ["plain", "--keep", "@plain"],
    "fast": ["fast"],
    "eager": ["plain", "--attention", "eager"],
    "packed plain": ["plain", *PACKED, "--keep", "@packed"],
    "packed plain again": ["plain", *PACKED],
    "packed fast": ["fast", "--mean-len", "@"],
    "packed eager": ["plain", *PACKED, "--attention", "eager"],
    "plain float32": ["plain", *EXACT],
    "fast float32": ["fast", *EXACT],
    "packed plain float32": ["plain", *PACKED, *EXACT],
    "packed fast float32": ["fast", "--mean-len", "@", *EXACT],
    "torch float32": ["fast", "--torch-operations", *EXACT],
    "packed torch float32": ["fast", "--torch-operations", "--mean-len", "@", *EXACT],
}
FOLLOWING: dict[str, list[str]] = {
    "fast follows": ["fast", "--follow", "@plain"],
    "eager follows": ["plain", "--attention", "eager", "--follow", "@plain"],
    "float32 follows": ["plain", *EXACT, "--follow", "@plain"],
    "packed fast follows": ["fast", "--mean-len", "@", "--follow", "@packed"],
    "packed eager follows": ["plain", *PACKED, "--attention", "eager", "--follow", "@packed"],
    "packed float32 follows": ["plain", *PACKED, *EXACT, "--follow", "@packed"],
}
"""Once the runs above have left their adapters."""
PAIRS = (
    ("plain", "fast follows"),
    ("packed plain", "packed fast follows"),
    ("plain", "eager follows"),
    ("packed plain", "packed eager follows"),
    ("float32 follows", "plain"),
    ("float32 follows", "fast follows"),
    ("packed float32 follows", "packed plain"),
    ("packed float32 follows", "packed fast follows"),
    ("plain float32", "fast float32"),
    ("packed plain float32", "packed fast float32"),
    ("plain float32", "torch float32"),
    ("packed plain float32", "packed torch float32"),
    ("plain", "fast"),
    ("packed plain", "packed fast"),
    ("packed plain", "packed plain again"),
    ("plain", "eager"),
    ("packed plain", "packed eager"),
    ("plain float32", "plain"),
    ("plain float32", "fast"),
    ("packed plain float32", "packed plain"),
    ("packed plain float32", "packed fast"),
)


def run_all(common: list[str], runs: dict[str, list[str]], folder: Path, mean_length: int) -> dict[str, dict[str, Any]]:
    """One row for each run, all at the same time: nothing is timed; `@name` is a folder of adapters in `folder`, `@` the mean length."""
    started = {}
    for name, (stack, *words) in runs.items():
        log = open(folder / name, "w", encoding="utf-8")  # noqa: SIM115  (lives as long as the process)
        own = [str(mean_length) if word == "@" else str(folder / f"adapters-{word[1:]}") if word[0] == "@" else word for word in words]
        command = [sys.executable, str(Path(__file__).with_name("speed_train.py")), stack, *common, *own, "--tag", name]
        started[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    rows = {}
    for name, process in started.items():
        process.wait()
        lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line[4:] for line in lines if line.startswith("ROW ")]
        row = json.loads(found[-1]) if found else {}
        if found and not any("is off" in note for note in row["notes"]):
            rows[name] = row
        else:
            print(name, "failed", *lines[-12:], sep="\n", flush=True)
    return rows


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Relative distances of `other` from `one`."""

    def distances(key: str) -> list[float]:
        return [abs(b - a) / abs(a) for a, b in zip(one[key], other[key], strict=True)]

    losses, norms = distances("losses"), distances("grad_norms")
    return {
        "loss_max": max(losses),
        "loss_steps_within_1_pct": sum(d <= 0.01 for d in losses),
        "norm_max": max(norms),
        "norm_median": sorted(norms)[len(norms) // 2],
        "norm_steps_within_3_pct": sum(d <= 0.03 for d in norms),
        "eval": other["eval_loss"] / one["eval_loss"] - 1,
        "eval_losses": [one["eval_loss"], other["eval_loss"]],
        "first_and_last_loss": [one["losses"][0], one["losses"][-1]],
        "steps": len(losses),
        "same_adapter": one["adapter_sha256"] == other["adapter_sha256"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs=3, default=(4, 256, 2), help="micro-batch, tokens of a row, gradient accumulation")
    parser.add_argument("--mean-len", type=int, default=80, help="tokens of a packed document, lognormal")
    parser.add_argument("--warmup", default="0", help="the recipe's own is 0.03")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "adamw_fp32"])
    parser.add_argument(
        "--chat", action="store_true", help="the text's pieces are answers in the model's chat template, as a run's rows are"
    )
    parser.add_argument("--bfloat16", action="store_true", help="only what is computed in bfloat16")
    parser.add_argument("--float32", action="store_true", help="only what is computed in float32")
    parser.add_argument("--runs", nargs="+", help="only these, and none that follows another")
    parser.add_argument("--deterministic", action="store_true", help="torch's deterministic algorithms in every run")
    parser.add_argument("--at-once", type=int, default=len(RUNS), help="with --float32: runs at a time")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    rows_at_once, tokens, accumulation = map(str, given.shape)
    common = [given.model, "--text", given.text, "--dropout", "0", "--steps", str(given.steps), "--eval-rows", "24"]
    common += ["--seq", tokens, "--bs", rows_at_once, "--ga", accumulation, "--warmup", given.warmup, "--optimizer", given.optimizer]
    common += ["--chat"] if given.chat else []
    common += ["--deterministic"] if given.deterministic else []
    rows: dict[str, dict[str, Any]] = {}
    if given.runs:
        rows |= run_all(common, {name: RUNS[name] for name in given.runs}, folder, given.mean_len)
    elif given.float32:
        exact = [name for name in RUNS if "float32" in name]
        for some in (exact[start : start + given.at_once] for start in range(0, len(exact), given.at_once)):
            rows |= run_all(common, {name: RUNS[name] for name in some}, folder, given.mean_len)
    else:
        for runs in (RUNS, FOLLOWING):
            wanted = {name: words for name, words in runs.items() if not (given.bfloat16 and "float32" in name)}
            rows |= run_all(common, wanted, folder, given.mean_len)
    pairs = {f"{one} - {other}": compare(rows[one], rows[other]) for one, other in PAIRS if one in rows and other in rows}
    for name, found in pairs.items():
        print(
            f"{name:28s} loss {found['loss_max']:.3%} ({found['loss_steps_within_1_pct']} of {found['steps']} within 1 %)  "
            f"norm {found['norm_max']:.2%}, median {found['norm_median']:.2%} ({found['norm_steps_within_3_pct']} within 3 %)  "
            f"evaluation {found['eval']:+.3%}  {'every bit of the adapter the same' if found['same_adapter'] else ''}",
            flush=True,
        )
    given.out.write_text(json.dumps({"pairs": pairs, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
