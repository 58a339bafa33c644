"""Runs that are interrupted in every way, and what is left of them: exact continuation, bounded stops, a process that stays small.

    python tests/bench/survival.py resume --points 20 --out tests/bench/results/resume.json
    python tests/bench/survival.py stops --trials 100 --out tests/bench/results/stops.json
    python tests/bench/survival.py cycles --cycles 20 --out tests/bench/results/cycles.json

All on a two-layer model whose base is in 4 bits; `--device cuda` does the same on a card. The short forms are tests of tests/tiny.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import pydoc
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What torch asks for where a product of matrices must give the same bits twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import psutil

from qlora_ui.base.files import sha256_of
from qlora_ui.hardware.system import versions
from qlora_ui.runs.card import Card
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.jobs import curve, tiny_config, train, write_rows

WEIGHTS = "adapter_model.safetensors"
TRAINER = "qlora_ui.engine.trainer.QloraTrainer"
ENDINGS = {Request.STOP: Status.STOPPED, Request.STOP_NOW: Status.STOPPED, Request.PAUSE: Status.PAUSED}


@contextmanager
def replaced(target: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`target` is `make(what stood there)` inside the block."""
    owner_name, name = target.rsplit(".", 1)
    owner: Any = pydoc.locate(owner_name)
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def called_before(target: str, before: Callable[..., object]) -> Iterator[None]:
    """`before` is called with the arguments of every call of `target`, ahead of it."""

    def make(original: Any) -> Any:
        def calling(*arguments: Any, **named: Any) -> Any:
            before(*arguments)
            return original(*arguments, **named)

        return calling

    with replaced(target, make):
        yield


# Exact continuation

NUM_STEPS = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "NF4, fp32 arithmetic": {"quant__compute_dtype": "float32"},
    "NF4, bf16 arithmetic": {"quant__compute_dtype": "bfloat16"},
    "NF4, bf16 arithmetic, fp32 master weights": {"quant__compute_dtype": "bfloat16", "train__optimizer": "adamw_fp32"},
}
WAYS = ("stop", "pause", "stop now", "failure in the middle of a step")


def resume_points(folder: Path, model_dir: Path, num_points: int, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    """Interrupt a run after `num_points` different steps, in four ways by turns, continue it, and compare with an undisturbed one."""
    settings: dict[str, Any] = {"train__max_steps": NUM_STEPS, "eval__every": 6, "output__save_every": 5, "launch__device": device}
    config = tiny_config(model_dir, write_rows(folder / "rows.jsonl"), **{**settings, **changes})
    calm = train(Workspace.at(folder / "calm"), config)
    assert calm.status is Status.DONE, calm.ended
    adapter = sha256_of(calm.run.adapter / WEIGHTS)
    points, problems = [], []
    for number in range(num_points):
        # The step after is still done: the last one must not be it.
        after_step = 1 + number * (NUM_STEPS - 3) // max(num_points - 1, 1)
        way = WAYS[number % len(WAYS)]
        made = create_run(Workspace.at(folder / "interrupted"), config)
        _interrupt(made, way, after_step)
        left = read_run(made)
        _run(made)
        view = read_run(made)
        row = {"after_step": after_step, "way": way, "left_as": left.status.value, "left_at_step": left.step}
        row["resumed_from"] = view.started.resumed_from if view.started else None
        row["differences"] = _differences(calm, view, adapter)
        points.append(row)
        if left.status is Status.DONE or row["differences"]:
            problems.append(row)
    return {
        "points": len(points),
        "identical": sum(not row["differences"] for row in points),
        "compared": "loss, gradient norm and tokens of all steps, held-back losses, SHA-256 of the adapter",
        "steps": NUM_STEPS,
        "fast_path": list(calm.planned.fast_path) if calm.planned else [],
        "receipt": receipt(calm),
        "problems": problems,
        "rows": points,
    }


def receipt(view: RunView) -> dict[str, Any]:
    """What the receipt of a run says was predicted and measured."""
    values = json.loads(view.run.receipt_path.read_text(encoding="utf-8"))
    return {name: values[name] for name in ("device", "predicted", "measured")}


def _run(made: RunDir) -> None:
    from qlora_ui.engine.job import run

    run(made.path)


def _interrupt(made: RunDir, way: str, after_step: int) -> None:
    """Run the job until it is interrupted in the step that follows `after_step`."""
    if way == "failure in the middle of a step":
        calls: list[int] = []

        def fail(trainer: Any, *rest: Any) -> None:
            if trainer.is_in_train and trainer.state.global_step == after_step:
                calls.append(1)
                if len(calls) == 2:
                    raise RuntimeError("made to fail")

        # The fast path has micro-steps of its own.
        with called_before(f"{TRAINER}.training_step", fail):
            _run(made)
        return
    request = {"stop": Request.STOP, "pause": Request.PAUSE, "stop now": Request.STOP_NOW}[way]
    asked: list[bool] = []

    def ask(recorder: Any, args: Any, state: Any, *rest: Any) -> None:
        if state.global_step == after_step and not asked:
            asked.append(True)
            made.request(request)

    with called_before("qlora_ui.engine.callbacks.Recorder.on_log", ask):
        _run(made)


def _differences(calm: RunView, view: RunView, adapter: str) -> list[str]:
    checks = {
        "did not end": view.status is Status.DONE,
        "losses or gradient norms": curve(view) == curve(calm),
        "tokens": [event.tokens for event in view.steps] == [event.tokens for event in calm.steps],
        "held-back losses": {event.step: event.loss for event in view.evals} == {event.step: event.loss for event in calm.evals},
        "adapter": view.status is Status.DONE and sha256_of(view.run.adapter / WEIGHTS) == adapter,
    }
    return [name for name, holds in checks.items() if not holds]


# Stops

IN_PHASES: dict[str, tuple[str, Callable[..., bool]]] = {
    "download": ("qlora_ui.models.hub_download._run_child", lambda *rest: True),
    "map": ("qlora_ui.engine.dataset.tokenize_all", lambda *rest: True),
    "load": ("qlora_ui.engine.build.load_model", lambda *rest: True),
    "try of the longest batch": ("qlora_ui.engine.build.dry_run", lambda *rest: True),
    "step": (f"{TRAINER}.training_step", lambda trainer, *rest: in_step(trainer, 0)),
    "accumulation": (f"{TRAINER}.training_step", lambda trainer, *rest: in_step(trainer, 1)),
    "evaluation": (f"{TRAINER}.prediction_step", lambda trainer, *rest: trainer.is_in_train and trainer.state.global_step == 4),
    "save": ("qlora_ui.engine.checkpoints.CheckpointStore.commit", lambda *rest: True),
}


def in_step(trainer: Any, micro_step: int) -> bool:
    """Whether the trainer begins this micro-batch of a step after its third."""
    if not trainer.is_in_train or trainer.state.global_step < 3:
        return False
    count = getattr(trainer, "_trial_calls", 0)
    trainer._trial_calls = count + 1
    return bool(count % trainer.args.gradient_accumulation_steps == micro_step)


@dataclass
class Trial:
    """One stop: where it was asked and what came after."""

    phase: str
    request: Request
    asked_at: float = 0.0
    steps_before: int = 0
    batches_after: int = 0
    micro_batches_after: int = 0
    took_s: float = 0.0
    steps_after: int = 0
    problem: str = ""

    def ask(self, made: RunDir) -> None:
        """Ask the run for its end, once."""
        if not self.asked_at:
            self.steps_before = read_run(made).step
            self.asked_at = time.monotonic()
            made.request(self.request)


def stop_trials(folder: Path, model_dir: Path, num_trials: int, device: str = "cpu", *, hub: str = "", seed: int = 0) -> dict[str, Any]:
    """Ask for an end in every phase, in three ways, and at random moments; measure how long it takes and what is still done."""
    chance = random.Random(seed)
    settings: dict[str, Any] = {"train__max_steps": 12, "eval__every": 4, "eval__batch_size": 1, "train__accumulation": 3}
    config = tiny_config(model_dir, write_rows(folder / "rows.jsonl", 60), launch__device=device, **settings)
    many = write_rows(folder / "many.jsonl", 3000)
    phases = [*IN_PHASES, "any moment"] if hub else [name for name in (*IN_PHASES, "any moment") if name != "download"]
    # The first run imports, the second says how long one takes.
    for _ in range(2):
        began = time.monotonic()
        train(Workspace.at(folder / "calm"), config)
        length_s = time.monotonic() - began
    trials: list[Trial] = []
    number = -1
    while sum(bool(trial.asked_at) for trial in trials) < num_trials:
        number += 1
        request = (Request.STOP, Request.STOP_NOW, Request.PAUSE)[number // len(phases) % 3]
        trial = Trial(phases[number % len(phases)], request)
        # Tokens are kept for the next run: only a workspace of its own makes them anew.
        workspace = Workspace.at(folder / (f"map-{number}" if trial.phase == "map" else "stops"))
        changes: dict[str, dict[str, Any]] = {"download": {"model.id": hub}, "map": {"data.sources": [{"id": str(many)}]}}
        made = create_run(workspace, config.changed(changes.get(trial.phase, {})))
        _try_to_stop(made, trial, chance.uniform(0.02, 0.8) * length_s)
        trials.append(trial)
    return _summary(trials)


def _try_to_stop(made: RunDir, trial: Trial, delay_s: float) -> None:
    def count_batch(trainer: Any, *rest: Any) -> None:
        trial.batches_after += bool(trial.asked_at and trainer.is_in_train)

    def count_micro_batch(trainer: Any, *rest: Any) -> None:
        trial.micro_batches_after += bool(trial.asked_at and trainer.is_in_train)

    def ask_there(*arguments: Any) -> None:
        if not trial.asked_at and holds(*arguments):
            trial.ask(made)

    timer = threading.Timer(delay_s, trial.ask, (made,))
    target, holds = IN_PHASES.get(trial.phase, (f"{TRAINER}.train", lambda *rest: False))
    with (
        called_before(f"{TRAINER}.prediction_step", count_batch),
        called_before(f"{TRAINER}.training_step", count_micro_batch),
        called_before(target, ask_there),
    ):
        if trial.phase == "any moment":
            timer.start()
        _run(made)
        timer.cancel()
    view = read_run(made)
    trial.took_s = time.monotonic() - trial.asked_at
    trial.steps_after = view.step - trial.steps_before
    if not trial.asked_at:
        # A run that was shorter than the chosen moment is no trial.
        trial.problem = "" if trial.phase == "any moment" else "was never asked"
    elif view.status is not ENDINGS[trial.request] and not (trial.phase == "any moment" and view.status is Status.DONE):
        trial.problem = f"ended as {view.status.value}: {view.ended}"
    elif trial.request is not Request.STOP_NOW and view.step and not (made.checkpoints / f"checkpoint-{view.step}").is_dir():
        trial.problem = f"step {view.step} was not saved"


def _summary(trials: list[Trial]) -> dict[str, Any]:
    asked = [trial for trial in trials if trial.asked_at]
    by_phase = {}
    for phase in dict.fromkeys(trial.phase for trial in asked):
        some = [trial for trial in asked if trial.phase == phase]
        times = [trial.took_s for trial in some]
        by_phase[phase] = {
            "trials": len(some),
            "median_s": round(statistics.median(times), 3),
            "worst_s": round(max(times), 3),
            "most_steps_after": max(trial.steps_after for trial in some),
            "most_evaluation_batches_after": max(trial.batches_after for trial in some),
        }
    return {
        "trials": len(asked),
        "requests": dict(Counter(trial.request.value for trial in asked)),
        "worst_s": round(max(trial.took_s for trial in asked), 3),
        "most_steps_after": max(trial.steps_after for trial in asked),
        "most_evaluation_batches_after": max(trial.batches_after for trial in asked),
        "problems": [f"{trial.phase}, {trial.request.value}: {trial.problem}" for trial in trials if trial.problem],
        "by_phase": by_phase,
    }


# Cycles

QUESTIONS = ("hello world", "how are you today", "user system hello")


def cycles(folder: Path, model_dir: Path, num_cycles: int, device: str = "cpu", say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train to the end, stop, fail and chat in one process, over and over, with a pause in the first round; what it holds after each."""
    from qlora_ui.engine.chat import ChatService

    settings: dict[str, Any] = {"train__max_steps": 4, "output__save_every": 2, "eval__every": 4, "launch__device": device}
    config = tiny_config(model_dir, write_rows(folder / "rows.jsonl"), **settings)
    workspace, card = Workspace.at(folder / "cycles"), Card()
    launcher, chat = Launcher(workspace, card), ChatService(workspace, card)
    rows: list[dict[str, Any]] = []
    held = None
    try:
        for number in range(num_cycles):
            done = _round(launcher, config)
            _chat(chat, done.id, number)
            rows.append(_levels())
            if number == 0:
                held = _paused(launcher, config)
            say(f"cycle {number + 1}: {rows[-1]}")
    finally:
        launcher.shutdown()
        chat.close()
    each = "train to the end, stop now, fail, chat with both sides"
    return {**growth(rows), "held_while_paused_bytes": held, "each_cycle": each, "rows": rows}


def _paused(launcher: Launcher, config: RunConfig) -> int | None:
    """Pause a run and continue it; returns the bytes of the card that were held meanwhile."""
    paused = _ended_by(launcher, config, Request.PAUSE)
    held: int | None = getattr(read_run(paused).ended, "held_bytes", None)
    launcher.resume(paused)
    _wait(launcher, paused, Status.DONE)
    return held


def _round(launcher: Launcher, config: RunConfig) -> RunDir:
    """A run of each kind of ending; returns the one that came to its end."""
    done = launcher.start(config, key=os.urandom(8).hex())
    _wait(launcher, done, Status.DONE)
    _ended_by(launcher, config, Request.STOP_NOW)
    with replaced(f"{TRAINER}._get_grad_norm", lambda original: _broken):
        failed = launcher.start(config, key=os.urandom(8).hex())
        _wait(launcher, failed, Status.FAILED)
    return done


def _ended_by(launcher: Launcher, config: RunConfig, request: Request) -> RunDir:
    """A run that is asked for its end in its third step."""
    made = launcher.start(config, key=os.urandom(8).hex())
    asked: list[bool] = []

    # The second logged point, whichever path the steps take.
    def ask(recorder: Any, args: Any, state: Any, *rest: Any) -> None:
        if state.global_step == 2 and not asked:
            asked.append(True)
            made.request(request)

    with called_before("qlora_ui.engine.callbacks.Recorder.on_log", ask):
        _wait(launcher, made, ENDINGS[request])
    return made


def _broken(trainer: Any, *arguments: Any, **named: Any) -> Any:
    weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    raise RuntimeError(f"an error that holds {len(weights)} tensors")


def _wait(launcher: Launcher, made: RunDir, ending: Status) -> None:
    assert launcher.wait_until_idle(300)
    view = read_run(made)
    assert view.status is ending, (view.status, view.ended)


def _chat(chat: Any, run_id: str, number: int) -> None:
    from qlora_ui.data.rows import Message
    from qlora_ui.runs.chat_target import ChatTarget
    from qlora_ui.settings.sampling import Sampling

    chat.load(ChatTarget(run_id=run_id))
    deltas = list(chat.stream([Message("user", QUESTIONS[number % 3])], Sampling(max_tokens=12), ("base", "adapter")))
    assert deltas[-1].is_done
    chat.unload()


def _levels() -> dict[str, Any]:
    import torch

    gc.collect()
    me = psutil.Process()
    allocated = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else None
    reserved = torch.cuda.memory_reserved() if torch.cuda.is_initialized() else None
    if sys.platform == "win32":
        files = me.num_handles()
    else:
        files = me.num_fds()
    threads = me.num_threads()
    return {"rss_bytes": me.memory_info().rss, "threads": threads, "files": files, "allocated_bytes": allocated, "reserved_bytes": reserved}


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was added after the second cycle; memory of the card as the largest distance from the first cycle's."""
    level, last = rows[min(1, len(rows) - 1)], rows[-1]
    result: dict[str, Any] = {
        "cycles": len(rows),
        "rss_growth_pct": round(100 * (last["rss_bytes"] / level["rss_bytes"] - 1), 2),
        "worst_rss_growth_pct": round(100 * (max(row["rss_bytes"] for row in rows[1:] or rows) / level["rss_bytes"] - 1), 2),
        "threads_added": last["threads"] - level["threads"],
        "files_added": last["files"] - level["files"],
    }
    if last["allocated_bytes"] is not None:
        result["allocated_distance_bytes"] = max(abs(row["allocated_bytes"] - rows[0]["allocated_bytes"]) for row in rows)
    return result


def device_name(device: str) -> str:
    """What the numbers were measured on."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"


def in_words(arguments: argparse.Namespace) -> str:
    """The command that gives this result again."""
    count = {"resume": "points", "stops": "trials", "cycles": "cycles"}[arguments.word]
    device = "" if arguments.device == "cpu" else f" --device {arguments.device}"
    return f"python tests/bench/survival.py {arguments.word} --{count} {getattr(arguments, count)}{device}"


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The result of one word of the command line."""
    from tests.tiny_model import make_tiny_model

    model_dir = make_tiny_model(folder / "tiny-llama", 2, arguments.hidden)
    if arguments.word == "resume":
        return {
            name: resume_points(_sub(folder, f"variant-{number}"), model_dir, arguments.points, arguments.device, **changes)
            for number, (name, changes) in enumerate(VARIANTS.items())
        }
    if arguments.word == "stops":
        return _stops_with_hub(folder, model_dir, arguments)
    return cycles(folder, model_dir, arguments.cycles, arguments.device, lambda text: print(text, file=sys.stderr))


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _stops_with_hub(folder: Path, model_dir: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A Hub on this computer that sends half of the weights and then nothing more."""
    import huggingface_hub.constants

    from tests.unit.hub_stub import HubStub, serve

    stub = HubStub()
    stub.repos["some-owner/tiny"] = {path.name: path.read_bytes() for path in model_dir.iterdir() if path.is_file()}
    stub.cut_at["model.safetensors"] = 50_000
    with serve(stub) as address:
        os.environ.update(HF_ENDPOINT=address, HF_HUB_CACHE=str(folder / "hub"), NO_PROXY="127.0.0.1")
        os.environ.pop("HF_HUB_OFFLINE", None)
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        return stop_trials(folder, model_dir, arguments.trials, arguments.device, hub="some-owner/tiny")


def main() -> int:
    """Run one long form and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("word", choices=("resume", "stops", "cycles"))
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--trials", type=int, default=105)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.word != "stops":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.device == "cuda":
        import torch

        torch.use_deterministic_algorithms(arguments.word == "resume", warn_only=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    head = {"what": arguments.word, "command": in_words(arguments), "device": device_name(arguments.device)}
    load, seconds = round(os.getloadavg()[1], 1), round(time.monotonic() - began)
    tail = {"load": load, "seconds": seconds, "python": platform.python_version(), "versions": versions()}
    text = json.dumps({**head, **({"variants": result} if arguments.word == "resume" else result), **tail}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
