"""What is known before the first step: predictions to compare with, and marks by which a later attempt knows its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from qlora_ui.base.errors import QloraUiError, SettingsError
from qlora_ui.engine.processes import launcher_name, num_processes
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.learned import learn, learn_speed
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.workload import DataShape, model_problems
from qlora_ui.hardware.devices import current_device
from qlora_ui.hardware.system import versions
from qlora_ui.models.catalogue import model_facts
from qlora_ui.models.folder import read_folder
from qlora_ui.runs.events import MemoryMeasured, Noticed, Planned, Started
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import Intervals, warmup_words
from qlora_ui.settings.migrate import VERSION, as_then
from qlora_ui.settings.run_config import RunConfig, label_of, option_by_path
from qlora_ui.settings.upstream import optimizer_words

_ROWS_AT_ONCE = 1000
_SECTIONS = ("model", "quant", "lora", "data", "train")
_INDIFFERENT = ("lora.start_from", "train.batch_size", "train.accumulation")
"""Of them, what a checkpoint does not care for: it has its own weights, and the effective batch is compared as a whole."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the estimate says of this run; None where it cannot say."""

    num_bytes: int | None
    seconds: float | None
    energy_j: float | None = None
    unlearned_step_s: float | None = None
    """Of one step, as a machine without earlier runs would have it."""
    is_fast: bool = False
    """Whether it was made for the fast path."""

    def as_dict(self) -> dict[str, Any]:
        """For the receipt."""
        return asdict(self)


def predict(config: RunConfig, workspace: Workspace, lengths: Sequence[int], num_rows: int) -> Prediction:
    """Memory and time as the estimate sees them, with the real lengths of the rows."""
    try:
        facts = model_facts(config.model.id, config.model.revision, workspace)
        device = current_device(workspace, config.launch.device)
    except QloraUiError:
        return Prediction(None, None)
    if facts is None:
        return Prediction(None, None)
    mean = sum(lengths) / len(lengths) if lengths else None
    shape = DataShape(num_rows=num_rows, mean_tokens=mean, longest_tokens=max(lengths, default=None))
    memory = estimate_memory(facts, config, device, shape)
    duration = estimate_duration(facts, config, device, num_rows, mean)
    unlearned = estimate_duration(facts, config, replace(device, speeds={}), num_rows, mean)
    # Of one process: what it measures of itself is compared with it.
    return Prediction(memory.process_bytes, duration.total_s, duration.energy_j, unlearned.step_s, memory.is_fast)


def refuse_unsuited(config: RunConfig, folder: Path) -> None:
    """Raise SettingsError for what the base model in `folder` cannot do, as layers that it does not have or cannot train."""
    if problems := model_problems(read_folder(folder), config):
        raise SettingsError(problems=problems)


def started(device: torch.device, resumed_from: int | None) -> Started:
    """What works on the run from now on: this process, its versions, its device."""
    me = psutil.Process()
    return Started(
        pid=me.pid,
        process_started=me.create_time(),
        host=socket.gethostname(),
        launcher=launcher_name(),
        versions=versions(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        resumed_from=resumed_from,
    )


def planned(config: RunConfig, train: Any, plan: Intervals, parameters: tuple[int, int], prediction: Prediction) -> Planned:
    """What will be done with the rows of `train`; `parameters` are the trainable and all of them."""
    return Planned(
        num_steps=plan.num_steps,
        num_train_rows=len(train),
        num_eval_rows=0,
        num_train_tokens=0,
        num_trained_tokens=sum(sum(label != -100 for label in row) for row in train["labels"]),
        effective_batch=config.effective_batch,
        trainable_params=parameters[0],
        total_params=parameters[1],
        predicted_bytes=prediction.num_bytes,
        predicted_s=prediction.seconds,
        eval_every=plan.eval_every,
        save_every=plan.save_every,
        probe_every=plan.probe_every,
        num_processes=num_processes(),
    )


def notices(config: RunConfig, num_steps: int, *, on_gpu: bool) -> list[Noticed]:
    """What the settings do otherwise than they say."""
    told = []
    if words := warmup_words(config, num_steps):
        told.append(Noticed(level="warning", code="warmup", what=words, fix="Choose a warm-up of fewer steps"))
    if words := optimizer_words(config, on_gpu=on_gpu):
        told.append(Noticed(level="info", code="optimizer", what=words))
    return told


def learn_from(
    workspace: Workspace, config: RunConfig, prediction: Prediction, end: MemoryMeasured, step_times_s: Sequence[float], *, is_fast: bool
) -> None:
    """Let the finished run teach the estimates about this machine."""
    # A full disk or a lost driver must not change how the run ends.
    with contextlib.suppress(OSError, QloraUiError):
        device = current_device(workspace, config.launch.device)
        learn(
            workspace,
            device,
            prediction.num_bytes,
            process_bytes=end.process_bytes,
            reserved_bytes=end.reserved_bytes,
            is_fast=is_fast,
        )
        # Where the run took another way than was foreseen, the two times have nothing to do with each other.
        if is_fast == prediction.is_fast:
            learn_speed(workspace, device, prediction.unlearned_step_s, step_times_s, is_fast=is_fast)


def fingerprint(config: RunConfig, train: Any) -> dict[str, Any]:
    """Marks of everything that an exact continuation needs unchanged: the tokens, their order, and the settings.

    How the effective batch is split does not belong to it: a job that ran out of memory may have halved it.
    """
    digest = hashlib.sha256()
    for start in range(0, len(train), _ROWS_AT_ONCE):
        part = train[start : start + _ROWS_AT_ONCE]
        for name in ("input_ids", "labels"):
            for row in part[name]:
                digest.update(np.asarray(row, dtype=np.int64).tobytes() + b"|")
    settings = {"version": VERSION, **config.to_nested()}
    # The settings' hash is for earlier versions of the app, to which somebody may go back.
    return {"rows_sha256": digest.hexdigest(), "settings_sha256": _settings_mark(config, only_changed=True), "settings": settings}


def changed_settings(config: RunConfig, notes: Mapping[str, Any]) -> list[str]:
    """What `config` has otherwise than a checkpoint's notes, in words, of all that an exact continuation needs unchanged.

    All values are compared, whether they were chosen or had the default of their time. Earlier versions of the app left a hash only.
    """
    saved = notes.get("settings")
    if isinstance(saved, Mapping):
        then, now = _decisive(type(config).parse(as_then(saved))), _decisive(config)
        return [f"{_label(path)} was {_short(then[path])} and is {_short(value)}" for path, value in now.items() if value != then[path]]
    marks = [_settings_mark(config, only_changed=only_changed) for only_changed in (True, False)]
    return [] if notes.get("settings_sha256") in marks else ["which ones is not known: an earlier version of the app saved it"]


def _decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what the weights become, by their paths."""
    nested = config.model_dump(mode="json")
    values = {f"{section}.{name}": value for section in _SECTIONS for name, value in nested[section].items()}
    kept = {path: value for path, value in values.items() if path not in _INDIFFERENT}
    return {**kept, "effective batch": config.effective_batch, "eval.share": config.eval.share}


def _label(path: str) -> str:
    return f"“{label_of(path)}”" if path in option_by_path() else f"the {path}"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:80]}…" if len(text) > 80 else text


def _settings_mark(config: RunConfig, *, only_changed: bool) -> str:
    """The settings as checkpoints of earlier versions know them; `only_changed` is what all but the first version left out."""
    nested = config.model_dump(mode="json", exclude_defaults=only_changed)
    kept = {name: dict(nested.get(name, {})) for name in _SECTIONS}
    for path in _INDIFFERENT:
        section, name = path.split(".")
        kept[section].pop(name, None)
    settings = {**kept, "effective_batch": config.effective_batch, "share": config.eval.share}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
