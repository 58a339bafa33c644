"""A run from beginning to end. `run` knows nothing of its caller: a thread of the app, or a process under `accelerate launch`.

Rules that it keeps: one training thread; no second SFTConfig while it runs; no exception object outlives the job (its frames
hold a model); everything that happens is an event on the journal; what is on the disk is whole.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from qlora_ui.base.files import give_room
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine import build, processes
from qlora_ui.engine.adapter import base_identity, noted_weights, publish_adapter
from qlora_ui.engine.alike import check_all_alike
from qlora_ui.engine.base_model import ensure_model
from qlora_ui.engine.callbacks import Best, Control, Recorder, RequestDesk, agreement
from qlora_ui.engine.checkpoints import Checkpoint, CheckpointStore
from qlora_ui.engine.dataset import Receipt, build_datasets
from qlora_ui.engine.failures import AtOnce, NonFinite, StopRun, attempt, describe, forget
from qlora_ui.engine.fast.apply import FastReport
from qlora_ui.engine.fitting import Fitting, last_good
from qlora_ui.engine.initial_adapter import find_initial_adapter
from qlora_ui.engine.load import num_parameters, see_one_card, training_device
from qlora_ui.engine.memory_watch import MemoryWatch
from qlora_ui.engine.phases import Phases
from qlora_ui.engine.plan import Prediction, fingerprint, learn_from, notices, planned, predict, refuse_unsuited, started
from qlora_ui.engine.probes import Probes
from qlora_ui.engine.quiet import hush
from qlora_ui.engine.receipt import write_receipt
from qlora_ui.engine.release import release
from qlora_ui.engine.resume import check_same, find_checkpoint, own_rows, take_up
from qlora_ui.engine.sentinels import Sentinels
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.engine.trainer import QloraTrainer, Session
from qlora_ui.engine.unsaved import Unsaved, error_of, keep_room_for_result
from qlora_ui.models.weights_mark import replaced_words
from qlora_ui.runs.card import Turns
from qlora_ui.runs.events import Ended, Failed, Finished, MemoryMeasured, Noticed, Paused, Stopped
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Request, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import Intervals, intervals
from qlora_ui.settings.run_config import RunConfig

log = logging.getLogger(__name__)


def run(run_dir: Path, *, turns: Turns | None = None) -> Ended:
    """Train the run in `run_dir` to its end; every outcome, failures too, is the last event of its journal, and what is returned.

    `turns` lets others compute on the same card between two steps.
    """
    target = RunDir(Path(run_dir))
    is_owner = processes.is_first_process() or processes.is_first_of_further_machine()
    if is_owner:
        target.claim()
    try:
        return Job(target, turns or Turns(), is_main=processes.is_first_process(), is_owner=is_owner).work()
    finally:
        if is_owner:
            target.release()


class Job:
    """The state of a run while it is worked on."""

    def __init__(self, target: RunDir, turns: Turns, *, is_main: bool, is_owner: bool) -> None:
        self.run = target
        self.turns = turns
        self.is_main = is_main
        self.journal = processes.journal_of(target.journal_path)
        self.desk = RequestDesk(target if is_owner else RunDir(target.path / "other-process"), self.journal.write)
        self.workspace = Workspace.at(target.path.parent.parent)
        self.began = time.monotonic()
        self.phases = Phases(self.desk, self.journal.write)
        self._first_step = 0
        self.config: RunConfig | None = None
        self.watch: MemoryWatch | None = None
        self.trainer: QloraTrainer | None = None
        self.recorder: Recorder | None = None
        self.store: CheckpointStore | None = None
        self.probes: Probes | None = None
        self.tokenizer: Any = None
        self.base: dict[str, Any] = {}
        self.data_receipt: Receipt | None = None
        self.prediction = Prediction(None, None)
        self.best = Best(0, False)

    # From beginning to end

    def work(self) -> Ended:
        """All phases, and how they ended; never raises for what can go wrong in a run."""
        ending = self._end_of(self._work)
        if ending is None:
            ending = self._end_of(self._ended_early)
        return self._finish(ending or Stopped())

    def _end_of(self, work: Callable[[], Ended]) -> Ended | None:
        """How `work` ended, failures too; None where the user ended it. Nothing is done while an exception is still alive."""
        try:
            return work()
        except (StopRun, Cancelled) as stop:
            forget(stop)
            return None
        # The boundary: whatever goes wrong in a run is told on its journal.
        except Exception as error:
            failure = processes.failure_of_another(self.run, error) or describe(error, self.config, self._at_once())
            # As text: a log record with the exception itself would hold the model.
            log.error("run %s failed: %s\n%s", self.run.id, failure.what, failure.traceback)
            has_good_weights = isinstance(error, NonFinite | Unsaved)
            forget(error)
        if not self.is_main:
            return processes.leave_failure(self.run, failure)
        adapter = attempt("the adapter could not be kept", partial(self._keep_last_good, has_good_weights=has_good_weights))
        return attempt("the figures of the end", partial(self._fill, failure, adapter)) or replace(failure, adapter=adapter)

    def _at_once(self) -> AtOnce | None:
        """What the trainer works on at once; None before there is one."""
        if self.trainer is None or self.config is None:
            return None
        longest, limit = self.data_receipt.longest_tokens if self.data_receipt else None, self.config.data.max_length
        return AtOnce(self.trainer.args.per_device_train_batch_size, min(longest or limit, limit))

    def _work(self) -> Ended:
        config = self.config = self.run.config()
        self.store = CheckpointStore(self.run.checkpoints, config.output.keep_last)
        self.best = Best(config.eval.patience, config.eval.keep_best)
        hush()
        see_one_card()
        device = training_device(config)
        checkpoint = find_checkpoint(self.store, self.journal.write, is_main=self.is_main)
        self._first_step = self.journal.step = checkpoint.step if checkpoint else 0
        self.journal.write(started(device, checkpoint.step if checkpoint else None), durable=True)
        self.watch = MemoryWatch(device, self.journal.write, self.desk.look)
        with self.watch:
            folder = processes.first_process_first(lambda: self._download(config), self.phases.is_cancelled)
            if checkpoint is None:
                refuse_unsuited(config, folder)
            prepare = partial(self._data, config, folder, device, is_continued=checkpoint is not None)
            ground = processes.first_process_first(prepare, self.phases.is_cancelled)
            with self.turns.turn():
                return self._train(config, ground, checkpoint)

    def _train(self, config: RunConfig, ground: build.Ground, checkpoint: Checkpoint | None) -> Ended:
        assert self.watch is not None
        trainer, recorder = self._assemble(config, ground, checkpoint)
        fitting = Fitting(trainer, ground.rows, config, self.journal.write)
        self._announce(config, ground, trainer, fitting.enable_fast())
        if self.is_main and (told := keep_room_for_result(self.run, trainer.model, ground.folder)):
            self.journal.write(told)
        self.phases.enter("check")
        self.phases.raise_if_ending()
        self.journal.write(fitting.try_longest(self.watch))
        self.probes = Probes(trainer, ground.tokenizer, config, ground.plan.probe_every, self.phases, self.journal.write)
        if checkpoint is None:
            self.probes.ask(0)
        self.phases.enter("train")
        recorder.begin(checkpoint.step if checkpoint else 0, trainer.tokens_before)
        fitting.fit(checkpoint.path if checkpoint else None)
        return self._completed(config, trainer, ground.plan)

    def _completed(self, config: RunConfig, trainer: QloraTrainer, plan: Intervals) -> Ended:
        assert self.recorder is not None
        self.phases.enter("save")
        is_over = trainer.state.global_step >= plan.num_steps
        if self.desk.wants_end and not is_over:
            if self.desk.has(Request.PAUSE):
                if trainer.unsaved is not None:
                    raise error_of(trainer.unsaved)
                return self._fill(Paused(), None)
            return self._fill(Stopped(), self._publish(self._final_state(trainer, None)))
        best = self.best.step if config.eval.keep_best else None
        adapter = self._publish(self._final_state(trainer, best))
        if said := self.recorder.say_at_end():
            self.journal.write(said)
        reason = "all steps done" if is_over else f"the held-back loss did not get better in {config.eval.patience} checks"
        reason += ", without the last check, since you wanted an end" if trainer.owes_check else ""
        return self._fill(Finished(reason=reason), adapter)

    def _final_state(self, trainer: QloraTrainer, best_step: int | None) -> Any:
        """What the result is made of: the best step's checkpoint where there is one, else the model as it is."""
        assert self.store is not None
        if best_step is not None and best_step != trainer.state.global_step:
            if best := self.store.find(best_step):
                return best
            what = f"The step with the lowest held-back loss, {best_step}, is not there any more: the result is that of the last one."
            self.journal.write(Noticed(level="warning", code="best-lost", what=what, why="Its checkpoint was not saved, or is damaged"))
        # A split model is whole only in its checkpoints.
        return self.store.newest_whole()[0] if trainer.is_fsdp_enabled else trainer.accelerator.unwrap_model(trainer.model)

    # Phases

    def _download(self, config: RunConfig) -> Path:
        self.phases.enter("download")
        return ensure_model(config.model, self.workspace, self.phases.progress, self.phases.is_cancelled)

    def _data(self, config: RunConfig, folder: Path, device: torch.device, *, is_continued: bool) -> build.Ground:
        self.phases.enter("data")
        tokenizer = self.tokenizer = load_tokenizer(folder, config.model.template)
        data = own_rows(self.run, self.journal.write) if is_continued else None
        if data is None:
            into, phases = self.run if self.is_main else None, self.phases
            # Of the day on which the run was made: every process, and a run that goes on tomorrow, learns the same rows.
            made = read_run(self.run).created
            day = date.fromtimestamp(made) if made else None
            data = build_datasets(
                config, self.workspace, tokenizer, into, day=day, on_progress=phases.progress, is_cancelled=phases.is_cancelled
            )
        self.data_receipt = data.receipt
        self.base = base_identity(folder, config)
        rows = build.prepare_rows(data.train, data.eval, config, device, tokenizer.pad_token_id)
        return build.Ground(folder, tokenizer, rows, intervals(config, len(rows.train), rows.num_eval), device)

    def _assemble(self, config: RunConfig, ground: build.Ground, checkpoint: Checkpoint | None) -> tuple[QloraTrainer, Recorder]:
        assert self.store is not None
        self.phases.enter("load")
        agree = self.phases.agree = agreement(processes.num_processes(), ground.device)
        self.phases.raise_if_ending()
        marks = fingerprint(config, ground.rows.train) | {"weights_mark": self.base["weights_mark"]}
        if checkpoint is not None:
            check_same(checkpoint, marks, config)
        # A checkpoint holds the weights already, and where they once came from may be gone.
        initial = find_initial_adapter(config, self.base, self.workspace) if checkpoint is None else None
        model = build.load_model(ground, config)
        if initial is not None:
            initial.check_shapes(model)
        self.phases.raise_if_ending()
        check_all_alike(config, marks, checkpoint.step if checkpoint else 0, agree)
        sentinels = Sentinels()
        if checkpoint is not None:
            before = read_run(self.run)
            sentinels.follow(before.steps, before.evals)
        self.recorder = Recorder(self.journal, self.desk, self.best, sentinels)
        session = Session(
            config=config,
            store=self.store,
            best=self.best,
            write=self.journal.write,
            notes=lambda: {**marks, **self.best.as_notes(), **self._geometry()},
            turns=self.turns,
            resume_clock=self.recorder.resume_clock,
            between_steps=self._between_steps,
            tokens_before=int(checkpoint.notes.get("tokens", 0)) if checkpoint else 0,
        )
        control = Control(self.desk, agree, self.phases.enter)
        self.trainer = build.build_trainer(model, ground, session, control, self.recorder)
        if checkpoint is not None:
            take_up(checkpoint, self.trainer, self.best, self.store)
        if initial is not None:
            initial.copy_into(self.trainer.model)
            self.journal.write(Noticed(level="info", code="start-from", what=f"Starts from the adapter of {initial.name}."))
            if words := replaced_words(noted_weights(initial.folder), self.base["weights_mark"], ground.folder):
                self.journal.write(Noticed(level="warning", code="base-replaced", what=words))
        return self.trainer, self.recorder

    def _announce(self, config: RunConfig, ground: build.Ground, trainer: QloraTrainer, report: FastReport) -> None:
        rows, receipt = ground.rows, self.data_receipt
        self.prediction = predict(config, self.workspace, rows.lengths, len(rows.train) + rows.num_eval)
        event = planned(config, rows.train, ground.plan, num_parameters(trainer.model), self.prediction)
        self.journal.write(
            replace(
                event,
                num_eval_rows=rows.num_eval,
                num_train_tokens=sum(rows.lengths),
                packed=rows.is_packed,
                fast_path=report.parts if report.active else (),
                fast_path_reasons=report.reasons,
                dropped_rows=receipt.num_dropped if receipt else 0,
                truncated_rows=receipt.num_truncated if receipt else 0,
                num_conversations=receipt.num_train_rows if receipt and rows.is_packed else 0,
                num_eval_conversations=receipt.num_eval_rows if receipt and rows.is_packed else 0,
            )
        )
        for notice in notices(config, ground.plan.num_steps, on_gpu=ground.device.type == "cuda"):
            self.journal.write(notice)

    def _between_steps(self, step: int) -> None:
        assert self.watch is not None
        if step == self._first_step + 2:
            self.journal.write(self.watch.measure("step"))
        if self.probes is not None:
            self.probes.ask(step)

    # Endings

    def _ended_early(self) -> Ended:
        """Stop now, or a stop before the first step: what the newest checkpoint holds is the result."""
        if self.desk.has(Request.PAUSE):
            return self._fill(Paused(), None)
        newest = self.store.newest_adapter() if self.store else None
        return self._fill(Stopped(), self._publish(newest) if newest else None)

    def _keep_last_good(self, *, has_good_weights: bool) -> str | None:
        if self.trainer is None or self.store is None or self.trainer.state.global_step == self._first_step:
            return None
        source = last_good(self.trainer, self.store, has_good_weights=has_good_weights)
        return self._publish(source) if source is not None else None

    def _publish(self, source: Any) -> str | None:
        """Put the finished adapter, of a model or a Checkpoint, in its place."""
        if not self.is_main or self.config is None or source is None:
            return None
        give_room(self.run.adapter)
        publish_adapter(self.run.adapter, source, self.config, self.base, self.tokenizer)
        return self.run.adapter.name

    def _fill(self, ending: Ended, adapter: str | None) -> Ended:
        recorder, steps = self.recorder, read_run(self.run).steps if self.is_main else ()
        if recorder is not None and recorder.train_s:
            speed = recorder.session_tokens / recorder.train_s
        else:
            # Taken up after its last step: the speed is that of the attempt before.
            speed = median(event.tokens_per_s for event in steps) if steps else 0.0
        return replace(
            ending,
            step=self.trainer.state.global_step if self.trainer else self._first_step,
            duration_s=round(time.monotonic() - self.began, 2),
            adapter=adapter,
            final_loss=steps[-1].loss if steps else None,
            best_eval_loss=self.best.loss,
            tokens_per_s=round(speed, 2),
        )

    def _finish(self, ending: Ended) -> Ended:
        """Give the memory back, measured; then, and only then, the last event, whatever fails before it."""
        attempt("the last phase", partial(self.phases.enter, "finish"))
        end = attempt("the last measurement", partial(self._measured, "end"))
        if end is not None:
            ending = replace(ending, peak_bytes=end.peak_allocated_bytes or end.process_bytes)
            if isinstance(ending, Finished):
                attempt("what the estimates learn", partial(self._teach, end))
        trainer, self.trainer, self.recorder, self.probes = self.trainer, None, None, None
        held = attempt("release", partial(release, trainer))
        del trainer
        attempt("the memory given back", partial(self._measured, "returned"))
        if isinstance(ending, Paused):
            ending = replace(ending, held_bytes=held)
        for request in Request:
            self.desk.done(request)
        self.journal.write(ending, durable=True)
        # It speaks of the result that lies there: an attempt that left that of an earlier one in its place leaves its receipt, too.
        if self.is_main and not isinstance(ending, Paused) and (ending.adapter or not self.run.receipt_path.is_file()):
            attempt("the receipt", self._write_receipt)
        return ending

    def _measured(self, at: str) -> MemoryMeasured | None:
        if self.watch is None:
            return None
        self.watch.stop()
        measured = self.watch.measure(at)
        self.journal.write(measured)
        return measured

    def _teach(self, end: MemoryMeasured) -> None:
        if self.config is not None and self.trainer is not None and self.is_main:
            times = [event.step_s for event in read_run(self.run).steps if event.step > self._first_step]
            learn_from(self.workspace, self.config, self.prediction, end, times, is_fast=self.trainer.fast_step_active)

    def _write_receipt(self) -> None:
        data = self.data_receipt.as_dict() if self.data_receipt else {}
        write_receipt(read_run(self.run), data, self.base, self.prediction.as_dict())

    def _geometry(self) -> dict[str, int]:
        assert self.trainer is not None
        args = self.trainer.args
        return {"batch_size": args.per_device_train_batch_size, "accumulation": args.gradient_accumulation_steps}


def main() -> int:
    """`python -m qlora_ui.engine.job RUN_DIR`: the job in a process of its own; SIGTERM and Ctrl-C stop and save."""
    target = RunDir(Path(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING)
    presses = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal presses
        presses += 1
        target.request(Request.STOP if presses == 1 else Request.STOP_NOW)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # Others may wait for a process that has failed, on a card for ever: its code has the launcher end them.
    return int(isinstance(run(target.path), Failed) and processes.num_processes() > 1)


if __name__ == "__main__":
    sys.exit(main())
