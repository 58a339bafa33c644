"""A run from beginning to end. `run` knows nothing of its caller: a thread of the app, or a process under `accelerate launch`.

Rules that it keeps: one training thread; no second SFTConfig while it runs; no exception object outlives the job (its frames
hold a model); everything that happens is an event on the journal; what is on the disk is whole.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
import transformers

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine import build
from qlora_ui.engine.adapter import base_identity, publish_adapter
from qlora_ui.engine.base_model import ensure_model
from qlora_ui.engine.callbacks import Best, Control, Recorder, RequestDesk, agreement
from qlora_ui.engine.checkpoints import Checkpoint, CheckpointStore
from qlora_ui.engine.dataset import build_datasets, load_tokenizer
from qlora_ui.engine.failures import NonFinite, StopRun, describe, forget, is_out_of_memory
from qlora_ui.engine.load import num_parameters, see_one_card, training_device
from qlora_ui.engine.memory_watch import MemoryWatch
from qlora_ui.engine.plan import Prediction, fingerprint, predict
from qlora_ui.engine.probes import answer_probes
from qlora_ui.engine.receipt import write_receipt
from qlora_ui.engine.release import release
from qlora_ui.engine.sentinels import Sentinels
from qlora_ui.engine.trainer import QloraTrainer, Session
from qlora_ui.hardware.system import versions
from qlora_ui.runs.card import Turns
from qlora_ui.runs.events import Ended, Event, Failed, Finished, Healed, Noticed, Paused, PhaseChanged, Planned, Started, Stopped
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Request, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import Intervals, intervals
from qlora_ui.settings.run_config import RunConfig

PROGRESS_EVERY_S = 0.5
NOISY = ("transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
log = logging.getLogger(__name__)


def run(run_dir: Path, *, turns: Turns | None = None) -> None:
    """Train the run in `run_dir` to its end; every outcome, failures too, is the last event of its journal.

    `turns` lets others compute on the same card between two steps.
    """
    target = RunDir(Path(run_dir))
    is_main = int(os.environ.get("RANK", "0")) == 0
    if is_main:
        target.claim()
    try:
        Job(target, turns or Turns(), is_main=is_main).work()
    finally:
        if is_main:
            target.release()


class SilentJournal(JournalWriter):
    """What the other processes of a distributed run write to: only one writes the journal."""

    def __init__(self) -> None:
        self.step = 0

    def write(self, event: Event, *, durable: bool = False) -> None:
        """Nothing."""


class Job:
    """The state of a run while it is worked on."""

    def __init__(self, target: RunDir, turns: Turns, *, is_main: bool) -> None:
        self.run = target
        self.turns = turns
        self.is_main = is_main
        self.journal = JournalWriter(target.journal_path) if is_main else SilentJournal()
        self.desk = RequestDesk(target if is_main else RunDir(target.path / "other-process"), self.journal.write)
        self.workspace = Workspace.at(target.path.parent.parent)
        self.began = time.monotonic()
        self.capture_lock = threading.Lock()
        self._phase_name = ""
        self._phase_at = 0.0
        self._probed_at = -1
        self._first_step = self._num_dropped = self._num_truncated = 0
        self.config: RunConfig | None = None
        self.watch: MemoryWatch | None = None
        self.trainer: QloraTrainer | None = None
        self.recorder: Recorder | None = None
        self.store: CheckpointStore | None = None
        self.tokenizer: Any = None
        self.base: dict[str, Any] = {}
        self.data_receipt: dict[str, Any] = {}
        self.prediction = Prediction(None, None)
        self.best = Best(0, False)

    # From beginning to end

    def work(self) -> None:
        """All phases; never raises for what can go wrong in a run."""
        ending: Ended
        try:
            ending = self._work()
        except (StopRun, Cancelled) as stop:
            forget(stop)
            ending = self._ended_early()
        # The boundary: whatever goes wrong in a run is told on its journal.
        except Exception as error:
            log.exception("run %s failed", self.run.id)
            failure = describe(error, self.config)
            adapter = self._keep_last_good(is_finite=not isinstance(error, NonFinite))
            forget(error)
            del error
            ending = self._fill(
                Failed(
                    code=failure.code,
                    what=failure.what,
                    why=failure.why,
                    fix=failure.fix,
                    traceback=failure.traceback,
                    suggestions=failure.suggestions,
                ),
                adapter,
            )
        self._finish(ending)

    def _work(self) -> Ended:
        config = self.config = self.run.config()
        self.store = CheckpointStore(self.run.checkpoints, config.output.keep_last)
        self.best = Best(config.eval.patience, config.eval.keep_best)
        hush()
        see_one_card()
        device = training_device(config)
        checkpoint = self._find_checkpoint()
        self._started(device, checkpoint)
        self.watch = MemoryWatch(device, self.journal.write, self.desk.look)
        with self.watch:
            folder = self._main_first(lambda: self._download(config))
            ground = self._main_first(lambda: self._data(config, folder, device))
            with self.turns.turn():
                return self._train(config, ground, checkpoint)

    def _train(self, config: RunConfig, ground: build.Ground, checkpoint: Checkpoint | None) -> Ended:
        rows = ground.rows
        trainer, recorder = self._assemble(config, ground, checkpoint)
        self._announce(config, ground, trainer)
        self._try_longest(trainer, rows)
        if checkpoint is None:
            self._ask_probes(0)
        self._enter("train")
        recorder.begin(checkpoint.step if checkpoint else 0, trainer.tokens_before)
        self._fit(trainer, rows, checkpoint.path if checkpoint else None)
        return self._completed(config, trainer, ground.plan)

    def _completed(self, config: RunConfig, trainer: QloraTrainer, plan: Intervals) -> Ended:
        assert self.recorder is not None
        self._enter("save")
        if said := self.recorder.say_at_end():
            self.journal.write(said)
        is_over = trainer.state.global_step >= plan.num_steps
        if self.desk.wants_end and not is_over:
            if self.desk.has(Request.PAUSE):
                return self._fill(Paused(), None)
            return self._fill(Stopped(), self._publish(trainer, None))
        best = self.store.find(self.best.step) if self.store and self.best.step and config.eval.keep_best else None
        adapter = self._publish(trainer, best if best and best.step != trainer.state.global_step else None)
        reason = "all steps done" if is_over else f"the held-back loss did not get better in {config.eval.patience} checks"
        return self._fill(Finished(reason=reason), adapter)

    # Phases

    def _find_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; broken newer ones are named and put aside."""
        assert self.store is not None
        if self.is_main:
            self.store.clean()
        newest, broken = self.store.newest_whole()
        for item in broken if self.is_main else ():
            instead = f"step {newest.step} is used instead" if newest else "the run starts again from its first step"
            self.journal.write(
                Noticed(
                    level="warning",
                    code="checkpoint-broken",
                    what=f"The checkpoint of step {item.step} is broken: {item.why}.",
                    why=f"Training goes on without loss of exactness: {instead}",
                )
            )
            shutil.rmtree(item.path, ignore_errors=True)
        return newest

    def _started(self, device: torch.device, checkpoint: Checkpoint | None) -> None:
        me = psutil.Process()
        self._first_step = self.journal.step = checkpoint.step if checkpoint else 0
        self.journal.write(
            Started(
                pid=me.pid,
                process_started=me.create_time(),
                host=socket.gethostname(),
                launcher="process" if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ else "thread",
                versions=versions(),
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
                resumed_from=checkpoint.step if checkpoint else None,
            ),
            durable=True,
        )

    def _download(self, config: RunConfig) -> Path:
        self._enter("download")
        return ensure_model(config.model, self.workspace, self._progress, self._is_cancelled)

    def _data(self, config: RunConfig, folder: Path, device: torch.device) -> build.Ground:
        self._enter("data")
        tokenizer = self.tokenizer = load_tokenizer(folder, config.model.template)
        into = self.run if self.is_main else None
        data = build_datasets(config, self.workspace, tokenizer, into, on_progress=self._progress, is_cancelled=self._is_cancelled)
        self.data_receipt = data.receipt.as_dict()
        self._num_dropped, self._num_truncated = data.receipt.num_dropped, data.receipt.num_truncated
        self.base = base_identity(folder, config)
        rows = build.prepare_rows(data.train, data.eval, config, device, tokenizer.pad_token_id)
        return build.Ground(folder, tokenizer, rows, intervals(config, len(rows.train), rows.num_eval), device)

    def _assemble(self, config: RunConfig, ground: build.Ground, checkpoint: Checkpoint | None) -> tuple[QloraTrainer, Recorder]:
        assert self.store is not None
        self._enter("load")
        self._raise_if_ending()
        marks = fingerprint(config, ground.rows.train)
        if checkpoint is not None:
            self._check_same(checkpoint, marks)
        model = build.load_model(ground, config)
        self._raise_if_ending()
        agree = agreement(int(os.environ.get("WORLD_SIZE", "1")), ground.device)
        self.recorder = Recorder(self.journal, self.desk, self.best, Sentinels())
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
        control = Control(self.desk, agree, self._enter)
        self.trainer = build.build_trainer(model, ground, session, control, self.recorder)
        if checkpoint is not None:
            self._take_up(checkpoint)
        return self.trainer, self.recorder

    def _check_same(self, checkpoint: Checkpoint, marks: dict[str, str]) -> None:
        changed = [name for name, value in marks.items() if checkpoint.notes.get(name) != value]
        if not changed:
            return
        words = {"rows_sha256": "the data", "settings_sha256": "the settings"}
        raise RunError(
            f"This run cannot be continued exactly: {' and '.join(words[name] for name in changed)} changed since step {checkpoint.step}.",
            why="The rest would be trained on something else than the beginning",
            fix="Start a new run; the adapter of this one stays",
            code="resume-changed",
        )

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """What the Trainer does not restore: the best check and healed micro-batches."""
        assert self.trainer is not None and self.store is not None
        self.best.restore(checkpoint.notes)
        if self.best.step is not None and self.store.find(self.best.step) is None:
            self.best.step = None
        size, accumulation = checkpoint.notes.get("batch_size"), checkpoint.notes.get("accumulation")
        if size and accumulation:
            self.trainer.set_geometry(int(size), int(accumulation))

    def _announce(self, config: RunConfig, ground: build.Ground, trainer: QloraTrainer) -> None:
        rows, plan = ground.rows, ground.plan
        report = build.enable_fast(trainer, rows, config, self.capture_lock, self._note_fast)
        trainable, total = num_parameters(trainer.model)
        self.prediction = predict(config, self.workspace, rows.lengths, len(rows.train) + rows.num_eval)
        labels = rows.train["labels"]
        self.journal.write(
            Planned(
                num_steps=plan.num_steps,
                num_train_rows=len(rows.train),
                num_eval_rows=rows.num_eval,
                num_train_tokens=sum(rows.lengths),
                num_trained_tokens=sum(sum(label != -100 for label in row) for row in labels),
                effective_batch=config.effective_batch,
                trainable_params=trainable,
                total_params=total,
                predicted_bytes=self.prediction.num_bytes,
                predicted_s=self.prediction.seconds,
                packed=rows.is_packed,
                fast_path=report.parts if report.active else (),
                fast_path_reasons=report.reasons,
                dropped_rows=self._num_dropped,
                truncated_rows=self._num_truncated,
                eval_every=plan.eval_every,
                save_every=plan.save_every,
                probe_every=plan.probe_every,
                num_processes=int(os.environ.get("WORLD_SIZE", "1")),
            )
        )

    def _try_longest(self, trainer: QloraTrainer, rows: build.Rows) -> None:
        assert self.watch is not None
        self._enter("check")
        self._raise_if_ending()
        while True:
            try:
                self.watch.reset_peak()
                build.dry_run(trainer, rows)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._can_heal(trainer):
                    raise
                forget(error)
            self._heal(trainer, rows)
        self.journal.write(self.watch.measure("dry-run"))
        self.watch.reset_peak()

    def _fit(self, trainer: QloraTrainer, rows: build.Rows, resume: Path | None) -> None:
        while True:
            try:
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
                return
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._can_heal(trainer):
                    raise
                forget(error)
            resume = self._heal(trainer, rows)

    def _can_heal(self, trainer: QloraTrainer) -> bool:
        # A packed batch of one row, or an odd micro-batch, has no half with the same rows in the same order.
        size = trainer.args.per_device_train_batch_size
        return size > 1 and size % 2 == 0 and trainer.args.world_size == 1

    def _heal(self, trainer: QloraTrainer, rows: build.Rows) -> Path | None:
        """Half the micro-batch, twice the accumulation, on from the last complete step; returns its checkpoint."""
        assert self.config is not None
        size, accumulation = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
        trainer.close()
        build.disable_fast(trainer)
        resume = trainer.save_boundary()
        trainer.set_geometry(size // 2, accumulation * 2)
        if rows.is_packed:
            trainer.data_collator = build.halved(trainer.data_collator)
        build.forget_dataloaders(trainer)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        build.enable_fast(trainer, rows, self.config, self.capture_lock, self._note_fast)
        self.journal.write(
            Healed(
                what=f"Memory ran out; it goes on with {size // 2} conversations at once, added up {accumulation * 2} times. "
                "The effective batch and the order of the rows stay.",
                changes={"train.batch_size": [size, size // 2], "train.accumulation": [accumulation, accumulation * 2]},
            )
        )
        return resume

    def _between_steps(self, step: int) -> None:
        assert self.watch is not None
        if step == self._first_step + 2:
            self.journal.write(self.watch.measure("step"))
        self._ask_probes(step)

    def _ask_probes(self, step: int) -> None:
        config, trainer = self.config, self.trainer
        if config is None or trainer is None or not config.eval.probes or step == self._probed_at or self.desk.wants_end:
            return
        plan = intervals(config, len(trainer.train_dataset), len(trainer.eval_dataset or ()))
        if step % plan.probe_every or not trainer.is_world_process_zero() or config.launch.sharding != "none":
            return
        self._probed_at = step
        self._enter("probe")
        for answer in answer_probes(
            trainer.accelerator.unwrap_model(trainer.model),
            self.tokenizer,
            config.eval.probes,
            config.eval.probe_tokens,
            step,
            is_cancelled=self._is_cancelled,
        ):
            self.journal.write(answer)

    # Endings

    def _ended_early(self) -> Ended:
        """Stop now, or a stop before the first step: what the newest checkpoint holds is the result."""
        if self.desk.has(Request.PAUSE):
            return self._fill(Paused(), None)
        newest = self.store.newest_whole()[0] if self.store else None
        return self._fill(Stopped(), self._publish(None, newest) if newest else None)

    def _keep_last_good(self, *, is_finite: bool) -> str | None:
        """After a failure: the adapter as it was before the bad step, else the newest checkpoint's, else none."""
        if self.trainer is None or self.trainer.state.global_step == self._first_step or self.store is None:
            return None
        try:
            newest = self.store.newest_whole()[0]
            parameters = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
            if not is_finite and all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
                return self._publish(self.trainer, None)
            return self._publish(None, newest) if newest else None
        except (OSError, RuntimeError, ValueError, QloraUiError) as error:
            # The disk may be full or the card lost: the checkpoints stay, and the first failure is the one to tell.
            log.warning("the adapter could not be kept: %s", error)
            forget(error)
            return None

    def _publish(self, trainer: QloraTrainer | None, checkpoint: Checkpoint | None) -> str | None:
        if not self.is_main or self.config is None:
            return None
        source: Any = checkpoint
        if source is None and trainer is not None:
            source = trainer.accelerator.unwrap_model(trainer.model)
            if self.config.launch.sharding == "fsdp" and self.store is not None:
                source = self.store.newest_whole()[0]
        if source is None:
            return None
        publish_adapter(self.run.adapter, source, self.config, self.base, self.tokenizer)
        return self.run.adapter.name

    def _fill(self, ending: Ended, adapter: str | None) -> Ended:
        recorder = self.recorder
        return replace(
            ending,
            step=self.trainer.state.global_step if self.trainer else self._first_step,
            duration_s=round(time.monotonic() - self.began, 2),
            adapter=adapter,
            final_loss=recorder.last_loss if recorder else None,
            best_eval_loss=self.best.loss,
            tokens_per_s=round(recorder.session_tokens / recorder.train_s, 2) if recorder and recorder.train_s else 0.0,
        )

    def _finish(self, ending: Ended) -> None:
        """Give the memory back, measured; then, and only then, the last event."""
        self._enter("finish")
        if self.watch is not None:
            end = self.watch.measure("end")
            self.watch.stop()
            self.journal.write(end)
            ending = replace(ending, peak_bytes=end.peak_allocated_bytes or end.process_bytes)
        trainer, self.trainer, self.recorder = self.trainer, None, None
        held = release(trainer)
        del trainer
        if self.watch is not None:
            self.journal.write(self.watch.measure("returned"))
        if isinstance(ending, Paused):
            ending = replace(ending, held_bytes=held)
        for request in Request:
            self.desk.done(request)
        self.journal.write(ending, durable=True)
        if self.is_main and not isinstance(ending, Paused):
            try:
                write_receipt(read_run(self.run), self.data_receipt, self.base, self.prediction.as_dict())
            except OSError as error:
                log.warning("no receipt: %s", error)

    # Small things

    def _enter(self, phase: str) -> None:
        if phase != self._phase_name:
            self._phase_name = self.desk.phase = phase
            self.journal.write(PhaseChanged(phase=phase))

    def _progress(self, what: str, share: float | None) -> None:
        now = time.monotonic()
        if now - self._phase_at >= PROGRESS_EVERY_S or share == 1.0:
            self._phase_at = now
            self.journal.write(PhaseChanged(phase=self._phase_name, progress=share, detail=what))

    def _note_fast(self, text: str) -> None:
        self.journal.write(Noticed(level="info", code="fast-path", what=text))

    def _is_cancelled(self) -> bool:
        self.desk.look()
        return self.desk.wants_end

    def _raise_if_ending(self) -> None:
        if self._is_cancelled():
            raise StopRun

    def _geometry(self) -> dict[str, int]:
        assert self.trainer is not None
        args = self.trainer.args
        return {"batch_size": args.per_device_train_batch_size, "accumulation": args.gradient_accumulation_steps}

    def _main_first(self, work: Callable[[], Any]) -> Any:
        """In a distributed run the first process makes files, the others then find them."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return work()
        from accelerate import PartialState

        with PartialState().main_process_first():
            return work()


def hush() -> None:
    """Progress bars and advice of the libraries: the journal tells what happens, and stdout belongs to the caller."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # gradient_checkpointing has a new name in transformers 5, but TRL 1.16 reads the old one; remove with the pin.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\..*")


def main() -> int:
    """`python -m qlora_ui.engine.job RUN_DIR`: the job in a process of its own; SIGTERM and Ctrl-C stop and save."""
    target = RunDir(Path(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING)
    presses = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal presses
        presses += 1
        target.request(Request.STOP if presses == 1 else Request.STOP_NOW)

    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), stop)
    run(target.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
