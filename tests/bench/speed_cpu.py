"""The demo on the CPU: what a step of the product's job and of the plain SFTTrainer costs, in turns, and where its time goes.

usage: python tests/bench/speed_cpu.py WORKSPACE [--model FOLDER] [--steps 8] [--turns 2] [--out FILE]
With another model folder, say a two-layer one, what the product itself adds to a step stands out.
Plain is the stand-alone script that the product writes for the same settings. Both are clocked by the same callback: seconds, and
seconds of processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "dequantization": ("dequantize",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("attention",),
    "optimizer": ("adam", "optimizer", "_foreach", "_fused"),
    "softmax and loss": ("softmax", "logsumexp", "exp", "gather", "scatter", "nll"),
    "copies": ("copy_", "aten::cat", "clone", "fill_", "zero_", "contiguous"),
    "elementwise": (
        "aten::mul",
        "aten::add",
        "aten::silu",
        "aten::pow",
        "aten::mean",
        "aten::sum",
        "aten::rsqrt",
        "aten::neg",
        "aten::div",
    ),
}


def clocked(target: str, model: str, out: Path) -> None:
    """Run a job's folder or a script with a clock on every step and the profiler on the last but one."""
    import time

    import torch
    import trl
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record
    from transformers import TrainerCallback

    times: list[tuple[float, float]] = []
    found: dict[str, Any] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.recorder = record(activities=[ProfilerActivity.CPU]) if state.global_step == args.max_steps - 2 else None
            if self.recorder is not None:
                self.recorder.__enter__()
            self.began, self.used = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            took, used = time.perf_counter() - self.began, time.process_time() - self.used
            if self.recorder is None:
                times.append((round(took, 3), round(used, 3)))
                return
            self.recorder.__exit__(None, None, None)
            found.update(by_kind(self.recorder))

    create = trl.SFTTrainer.__init__

    def with_clock(self: Any, *arguments: Any, **named: Any) -> None:
        create(self, *arguments, **named)
        self.add_callback(Clock())

    trl.SFTTrainer.__init__ = with_clock
    if target.endswith(".py"):
        import runpy

        os.chdir(Path(target).parent)
        sys.argv = [target, model]
        runpy.run_path(target, run_name="__main__")
    else:
        from qlora_ui.engine.job import run

        run(Path(target))
    out.write_text(json.dumps({"steps_s": times, "profile": found, "threads": torch.get_num_threads(), "torch": torch.__version__}))


def by_kind(recorded: Any) -> dict[str, Any]:
    """Self time of torch's operations in one step by kind, in milliseconds."""
    kinds: dict[str, float] = {}
    calls = 0
    for event in recorded.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other operations")
        kinds[kind] = kinds.get(kind, 0.0) + event.self_cpu_time_total / 1000
        calls += event.count
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return {"operations": calls, "ms": {kind: round(ms, 1) for kind, ms in ordered}}


def prepare(workspace: str, model: str, steps: int, folder: Path) -> tuple[str, str]:
    """A new run of the demo that nobody has started, and the stand-alone script of the same settings."""
    from qlora_ui.runs.registry import create_run
    from qlora_ui.runs.workspace import Workspace
    from qlora_ui.settings.presets import find_preset

    changes = {"model.id": model, "train.max_steps": steps, "eval.share": 0.0, "launch.device": "cpu"}
    config = find_preset("demo").config.changed(changes)
    run = create_run(Workspace.at(Path(workspace)), config)
    words = [f"--{name}={value}" for name, value in changes.items()]
    script = folder / "script"
    if not script.exists():
        command = [sys.executable, "app.py", "script", "--workspace", workspace, "--preset", "demo", "--out", str(script), *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return str(run.path), str(script / "train.py")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace")
    parser.add_argument("--model", default="", help="a folder; the built-in model, converted, by default")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--clocked", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.clocked:
        clocked(given.clocked[0], given.clocked[1], Path(given.clocked[2]))
        return
    sys.path.insert(0, str(ROOT))
    folder = Path(tempfile.mkdtemp())
    model = given.model or str(Path(given.workspace, "models", "smollm2-135m-instruct").resolve())
    rows: list[dict[str, Any]] = []
    for turn in range(given.turns):
        run, script = prepare(given.workspace, model, given.steps, folder)
        for stack, target in (("product", run), ("plain", script)):
            out = folder / f"{stack}{turn}.json"
            command = [sys.executable, __file__, given.workspace, "--clocked", target, model, str(out)]
            env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            if not out.exists():
                raise SystemExit(done.stdout[-1500:] + done.stderr[-2500:])
            row = json.loads(out.read_text())
            used = sorted(cpu for _, cpu in row["steps_s"][1:])
            rows.append({"what": "demo on the CPU", "stack": stack, "turn": turn, "processor_s": used[len(used) // 2], **row})
            print(f"{stack:8s} processor time {rows[-1]['processor_s']:.4f} s  {json.dumps(row)}", flush=True)
    load = os.getloadavg()[0]
    if given.out:
        given.out.write_text(json.dumps({"cores": os.cpu_count(), "load_at_the_end": load, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
