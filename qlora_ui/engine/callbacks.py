"""What happens between the steps of the Trainer: the user's requests are taken, points of the curves are written down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_ui.base.units import format_duration
from qlora_ui.engine.failures import StopRun
from qlora_ui.engine.sentinels import Sentinels
from qlora_ui.runs.events import EvalLogged, Event, RequestSeen, StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import Request, RunDir

STEP_GRACE_S = 20.0
"""A step that has not ended so long after Stop is given up at its next micro-batch, without a save of its own."""


class EvaluationStopped(Exception):
    """A stop was asked during a check; the step before it is complete."""


WISHES = (None, Request.SAVE_NOW, Request.PAUSE, Request.STOP, Request.STOP_NOW)
"""From the weakest to the strongest: of several processes the strongest counts, and all end in the same way."""
SAVE, END, NOW = 1, 2, 4
"""Places in it: any wish, any that ends the run, the one that ends it at once."""


class RequestDesk:
    """Takes requests out of the run's control folder and remembers them; echoes each on the journal at once."""

    def __init__(self, run: RunDir, write: Callable[[Event], object]) -> None:
        self._run = run
        self._write = write
        self._lock = threading.Lock()
        self._asked: dict[Request, float] = {}
        self.phase = ""
        self.step_s: float | None = None

    def look(self) -> None:
        """Take what is new; called from the watching thread and between steps."""
        for request in self._run.pending_requests():
            with self._lock:
                if not self._run.take_request(request):
                    continue
                self._asked.setdefault(request, time.monotonic())
            self._write(RequestSeen(request=request.value, detail=self._echo(request)))

    def has(self, request: Request) -> bool:
        """Whether this was asked."""
        return request in self._asked

    def wish(self) -> int:
        """The strongest request as a number that processes can compare: its place in WISHES, 0 for none."""
        return max((place for place, request in enumerate(WISHES) if request in self._asked), default=0)

    def adopt(self, wish: int) -> None:
        """Take over what another process of the run was asked."""
        request = WISHES[wish]
        if request is not None and request not in self._asked:
            with self._lock:
                self._asked[request] = time.monotonic()
            self._write(RequestSeen(request=request.value, detail=self._echo(request)))

    def agreed(self, agree: Callable[[int], int], least: int) -> int:
        """The strongest wish of all processes, of those that count `least` or more; each takes it for its own."""
        mine = self.wish()
        wish = agree(mine if mine >= least else 0)
        self.adopt(wish)
        return wish

    def done(self, request: Request) -> None:
        """It was done; it can be asked again."""
        with self._lock:
            self._asked.pop(request, None)

    @property
    def wants_end(self) -> bool:
        """Whether the job shall end, in whatever way."""
        return any(request in self._asked for request in (Request.STOP, Request.STOP_NOW, Request.PAUSE))

    def waited_s(self) -> float:
        """Seconds since the first request to end."""
        # A copy first: the watching thread may add to them meanwhile.
        asked = [at for request, at in list(self._asked.items()) if request is not Request.SAVE_NOW]
        return time.monotonic() - min(asked) if asked else 0.0

    def _echo(self, request: Request) -> str:
        if request is Request.STOP_NOW:
            return "Ending now; the last checkpoint stays."
        word = {Request.STOP: "Stops and saves", Request.PAUSE: "Pauses, saved,", Request.SAVE_NOW: "Saves"}[request]
        if self.phase == "evaluate":
            return f"{word} after this batch of the check."
        if self.phase == "train":
            return f"{word} after this step{f', in about {format_duration(max(self.step_s, 1))}' if self.step_s else ''}."
        if request is Request.SAVE_NOW:
            return "Saves after the first step."
        return "Stops as soon as this phase allows; nothing is lost."


class Control(TrainerCallback):  # type: ignore[misc]
    """Turns requests into the Trainer's flags, at the boundaries where the state can be continued exactly.

    `agree` makes the processes of a distributed run decide the same.
    """

    def __init__(self, desk: RequestDesk, agree: Callable[[int], int], enter: Callable[[str], None]) -> None:
        """`enter` is told the phase: train or evaluate."""
        self._desk = desk
        self._agree = agree
        self._enter = enter

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A stop that came before the first step: the Trainer's flags were reset since then."""
        self._enter("train")
        self._desk.look()
        if self._agreed(NOW if state.global_step else END):
            raise StopRun

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Inside an accumulated step nothing can be saved exactly: only an end at once, or one that waited too long."""
        self._desk.look()
        late = self._desk.wants_end and self._desk.waited_s() > STEP_GRACE_S
        if self._agreed(END if late else NOW):
            raise StopRun

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """The boundary: here everything can be saved and continued bit for bit."""
        self._desk.look()
        wish = self._agreed(SAVE)
        if wish >= NOW:
            raise StopRun
        if wish >= END:
            control.should_training_stop = control.should_save = True
        elif wish:
            control.should_save = True
            self._desk.done(Request.SAVE_NOW)
        return control

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The Trainer ignores its flags while it evaluates."""
        self._enter("evaluate")
        self._desk.look()
        wish = self._agreed(END)
        if wish >= NOW:
            raise StopRun
        if wish:
            raise EvaluationStopped

    def _agreed(self, least: int) -> int:
        return self._desk.agreed(self._agree, least)


class Best:
    """The best check so far; ours, because the Trainer's own forgets it when it rotates."""

    def __init__(self, patience: int, keep: bool) -> None:
        self.step: int | None = None
        self.loss: float | None = None
        self.checks_since = 0
        self._patience = patience
        self._keep = keep

    def add(self, step: int, loss: float) -> bool:
        """Take the loss of a check; True where it is the best."""
        if self.loss is None or loss < self.loss:
            self.step, self.loss, self.checks_since = step, loss, 0
            return True
        self.checks_since += 1
        return False

    @property
    def is_satisfied(self) -> bool:
        """Whether patience has run out."""
        return bool(self._patience) and self.checks_since >= self._patience

    @property
    def wants_save(self) -> bool:
        """Whether the best check's step must lie on the disk."""
        return self._keep

    def as_notes(self) -> dict[str, Any]:
        """What a checkpoint remembers of it."""
        return {"best_step": self.step, "best_loss": self.loss, "checks_since_best": self.checks_since}

    def restore(self, notes: Any) -> None:
        """Take up where a checkpoint stood."""
        self.step, self.loss = notes.get("best_step"), notes.get("best_loss")
        self.checks_since = int(notes.get("checks_since_best", 0))


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes the curves down."""

    def __init__(self, journal: JournalWriter, desk: RequestDesk, best: Best, sentinels: Sentinels) -> None:
        self._journal = journal
        self._desk = desk
        self._best = best
        self._sentinels = sentinels
        self._mark = time.monotonic()
        self._spent = 0.0
        """Seconds in the steps since the last point: a point stands for all of them where not each step is logged."""
        self._mark_step = 0
        self._tokens = 0
        self.train_s = 0.0
        """Seconds in training steps, without checks, saves and probes."""
        self.session_tokens = 0

    def begin(self, step: int, tokens: int) -> None:
        """Training (re)starts at `step` with `tokens` seen so far."""
        self._tokens, self._mark_step, self._spent = tokens, step, 0.0
        self.resume_clock()

    def resume_clock(self) -> None:
        """Checks and saves are done; the next step's time begins."""
        self._mark = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Events that follow carry this step; its time is kept until the next point."""
        self._journal.step = state.global_step
        now = time.monotonic()
        self._spent, self._mark = self._spent + now - self._mark, now

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """A point of the training curve."""
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        steps = max(state.global_step - self._mark_step, 1)
        spent = self._spent + now - self._mark
        total = int(logs.get("num_tokens", self._tokens))
        fresh = total - self._tokens
        self._spent, self._mark = 0.0, now
        self._mark_step, self._tokens = state.global_step, total
        self.train_s += spent
        self.session_tokens += fresh
        self._desk.step_s = spent / steps
        event = StepLogged(
            step=state.global_step,
            loss=float(logs["loss"]),
            learning_rate=float(logs.get("learning_rate", 0.0)),
            grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
            epoch=float(logs.get("epoch", 0.0)),
            tokens=total,
            tokens_per_s=round(fresh / spent, 2) if spent > 0 else 0.0,
            step_s=round(spent / steps, 4),
            accuracy=logs.get("mean_token_accuracy"),
        )
        self._journal.write(event)
        self._notice(self._sentinels.on_step(event))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """A point of the held-back curve; the best one is saved, patience may end the run."""
        if not metrics or "eval_loss" not in metrics:
            return control
        loss = float(metrics["eval_loss"])
        is_best = self._best.add(state.global_step, loss)
        event = EvalLogged(
            step=state.global_step,
            loss=loss,
            accuracy=metrics.get("eval_mean_token_accuracy"),
            duration_s=round(float(metrics.get("eval_runtime", 0.0)), 3),
            is_best=is_best,
        )
        self._journal.write(event)
        self._notice(self._sentinels.on_eval(event))
        if is_best and self._best.wants_save:
            control.should_save = True
        if self._best.is_satisfied:
            control.should_training_stop = True
        return control

    def say_at_end(self) -> Event | None:
        """What the whole curve says."""
        return self._sentinels.on_end()

    def _notice(self, event: Event | None) -> None:
        if event is not None:
            self._journal.write(event)


def agreement(world_size: int, device: torch.device) -> Callable[[int], int]:
    """The highest of what all processes wish; in a single process the wish itself."""
    if world_size <= 1:
        return int

    def highest(wish: int) -> int:
        value = torch.tensor([int(wish)], device=device)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        return int(value.item())

    return highest
