"""`app.py train`: a run without the page; the same job, the same files."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from qlora_ui.base.errors import Problem
from qlora_ui.base.signals import end_signals, is_hangup
from qlora_ui.base.units import format_bytes, format_duration
from qlora_ui.cli import silence
from qlora_ui.cli.config_flags import add_config_flags, config_from, refuse_settings_beside
from qlora_ui.runs.card import Card
from qlora_ui.runs.events import EvalLogged, Event, Failed, Healed, Noticed, PhaseChanged, Planned, ProbeAnswered, RequestSeen, StepLogged
from qlora_ui.runs.journal import JournalReader
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Ownership, Workspace

HELP = "train without the page"
LOOK_S = 0.2
SAVING_S = 30.0
_PHASES = {
    "launch": "Starting a process of its own",
    "download": "Getting the model ready",
    "data": "Reading the data",
    "load": "Loading the model in 4 bits",
    "check": "Trying the longest batch",
    "save": "Saving the adapter",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A preset or file, any option as a flag, or a run to continue."""
    add_config_flags(parser)
    parser.add_argument("--resume", metavar="RUN", help="continue a paused, stopped, failed or crashed run (latest: the newest)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Train and return 0 when done or stopped, 1 when the run failed. Ctrl-C stops and saves, a second one ends at once."""
    if arguments.resume:
        anew = f"start a new one: “script --run {arguments.resume} --format settings --out DIR”, then “train --config DIR/settings.yaml”."
        refuse_settings_beside("--resume", arguments, "A run goes on with its own settings.", anew)
    workspace = Workspace.at(arguments.workspace)
    with Ownership(workspace):
        launcher = Launcher(workspace, Card())
        patience_s = SAVING_S
        try:
            if arguments.resume:
                target = launcher.resume(find_run(workspace, arguments.resume))
            else:
                target = launcher.start(config_from(arguments, workspace))
            with _stopping(target):
                _follow(launcher, target, None if arguments.quiet else _say)
        except KeyboardInterrupt:
            patience_s = 0.0  # pressed three times
            raise
        finally:
            launcher.shutdown(patience_s)
    view = read_run(target)
    if arguments.json:
        values = ended_values(view)
        if isinstance(view.ended, Failed):
            values["error"] = _error(view.ended)
        _say(json.dumps(values, ensure_ascii=False), sys.stdout)
    else:
        _say(f"{view.id}: {view.status.value}, step {view.step}, {view.run.path}", sys.stdout)
    return 0 if view.status in (Status.DONE, Status.STOPPED, Status.PAUSED) else 1


def _follow(launcher: Launcher, target: RunDir, say: Callable[[str], None] | None) -> None:
    reader = JournalReader(target.journal_path, target.journal_size())
    is_idle = False
    plan: Planned | None = None
    while not is_idle:
        is_idle = launcher.wait_until_idle(LOOK_S)
        for event in reader.read():
            plan = event if isinstance(event, Planned) else plan
            if say and (line := _line(event, plan)):
                say(line)


def _line(event: Event, plan: Planned | None) -> str:
    match event:
        case PhaseChanged(phase=phase, detail=detail, progress=progress):
            share = f" {progress:.0%}" if progress is not None else ""
            return f"{_PHASES[phase]}{': ' + detail if detail else ''}{share}" if phase in _PHASES else ""
        case Planned():
            each = f" in each of {event.num_processes} processes" if event.num_processes > 1 else ""
            memory = f", about {format_bytes(event.predicted_bytes)}{each}" if event.predicted_bytes else ""
            return f"{event.rows_in_words()} to learn from, {event.num_steps} steps of {event.effective_batch}{memory}"
        case StepLogged():
            left = f", {format_duration((plan.num_steps - event.step) * event.step_s)} left" if plan else ""
            total = f"/{plan.num_steps}" if plan else ""
            return f"step {event.step}{total}  loss {event.loss:.4f}  {event.tokens_per_s:.0f} tokens/s{left}"
        case EvalLogged():
            return f"held-back loss {event.loss:.4f}{' (best so far)' if event.is_best else ''}"
        case ProbeAnswered():
            return f"“{event.prompt}” → {event.answer}"
        case Noticed() | Failed():
            return Problem("", event.what, event.why, event.fix).sentence()
        case Healed():
            return event.what
        case RequestSeen():
            return event.detail
    return ""


def _say(text: str, stream: TextIO | None = None) -> None:
    """A line, on stderr. Where its reader is gone (head, a closed terminal) the run goes on in silence: the journal has it all."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        silence(stream)


def ended_values(view: RunView) -> dict[str, Any]:
    """The line that `train --json` ends with."""
    ended = view.ended
    return {
        "run_id": view.id,
        "status": view.status.value,
        "run_dir": str(view.run.path),
        "steps": view.step,
        "final_loss": ended.final_loss if ended else None,
        "tokens_per_s": round(ended.tokens_per_s, 1) if ended else 0.0,
        "peak_bytes": ended.peak_bytes if ended and ended.peak_bytes else view.peak_bytes,
    }


def _error(failed: Failed) -> dict[str, Any]:
    return {
        "code": failed.code,
        "problems": [{"where": "", "what": failed.what, "why": failed.why, "fix": failed.fix, "code": failed.code}],
    }


@contextlib.contextmanager
def _stopping(target: RunDir) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal stop and save; the second, or the first after 25 seconds without an end, ends at once."""
    pressed: list[float] = []

    def stop(number: int, frame: Any) -> None:
        if pressed and is_hangup(number):
            return
        pressed.append(time.monotonic())
        target.request(Request.STOP if len(pressed) == 1 else Request.STOP_NOW)
        if len(pressed) > 2:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
