"""What can go wrong in a run, made to go wrong: numbers that are none, memory that runs out, a disk that is full."""

from __future__ import annotations

import errno
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from jobs import again, curve, models_alive, tiny_config, train, whole_steps, write_rows
from safetensors import SafetensorError

from qlora_ui.base.errors import Problem, QloraUiError, RunError
from qlora_ui.engine import job
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.engine.failures import AtOnce, describe, make_room
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import Failed, Healed, Noticed
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=6, lora__dropout=0.0)


def patched_step(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Call `before(trainer)` ahead of every micro-step of training."""
    original = QloraTrainer.training_step

    def training_step(self: Any, *arguments: Any, **named: Any) -> Any:
        before(self)
        return original(self, *arguments, **named)

    monkeypatch.setattr(QloraTrainer, "training_step", training_step)


def trained_parameters(trainer: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]


def poison_gradient(trainer: Any) -> None:
    """At the fourth step a gradient is no number."""
    parameter = trained_parameters(trainer)[0]
    if trainer.state.global_step == 3 and parameter.grad is not None:
        parameter.grad.fill_(float("nan"))


def test_a_gradient_that_is_no_number_stops_before_it_does_harm(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    patched_step(monkeypatch, poison_gradient)
    view = train(workspace, config)
    failed = view.ended
    assert isinstance(failed, Failed) and failed.code == "not-a-number" and "step 4" in failed.what
    assert failed.suggestions[0]["values"] == {"train.learning_rate": config.train.learning_rate / 2}
    assert view.step == 3 and whole_steps(view) == [2]
    assert failed.adapter == "adapter"
    assert all(bool(tensor.isfinite().all()) for tensor in adapter_tensors(view))


def test_a_layer_that_the_model_does_not_have_is_named_and_is_no_fault_of_the_app(config: RunConfig, workspace: Workspace) -> None:
    for changes in ({"lora.targets": ["query_key_value"]}, {"lora.modules_to_save": ["q_proj"]}):
        failed = train(workspace, config.changed(changes)).ended
        assert isinstance(failed, Failed) and failed.code == "layers" and not failed.traceback


def test_a_weight_that_is_no_number_leaves_the_last_checkpoint(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    def poison(trainer: Any) -> None:
        if trainer.state.global_step == 3:
            with torch.no_grad():
                trained_parameters(trainer)[0].fill_(float("nan"))

    patched_step(monkeypatch, poison)
    view = train(workspace, config)
    assert isinstance(view.ended, Failed) and view.ended.code == "not-a-number"
    assert all(bool(tensor.isfinite().all()) for tensor in adapter_tensors(view))


def adapter_tensors(view: RunView) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(view.run.adapter / "adapter_model.safetensors").values())


@pytest.mark.parametrize("step", [0, 3])
def test_out_of_memory_heals_and_the_curve_goes_on(step: int, config: RunConfig, tmp_path: Path, monkeypatch: Any) -> None:
    whole = train(Workspace.at(tmp_path / "whole"), config)
    failures: list[int] = []

    def starve(trainer: Any) -> None:
        if trainer.is_in_train and trainer.state.global_step == step and trainer.args.per_device_train_batch_size == 2:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    patched_step(monkeypatch, starve)
    view = train(Workspace.at(tmp_path / "healed"), config)
    assert failures == [1]
    assert view.status is Status.DONE, view.ended
    healed = [event for event in view.notices if isinstance(event, Healed)]
    assert [event.changes for event in healed] == [{"train.batch_size": [2, 1], "train.accumulation": [2, 4]}]
    assert [point[0] for point in curve(view)] == [1, 2, 3, 4, 5, 6]
    for (_, loss, _), (_, expected, _) in zip(curve(view), curve(whole), strict=True):
        assert loss == pytest.approx(expected, rel=2e-4)


def test_the_longest_batch_is_tried_before_the_first_step(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    def starve(trainer: Any) -> None:
        if trainer.args.per_device_train_batch_size == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    patched_step(monkeypatch, starve)
    view = train(workspace, config)
    assert view.status is Status.DONE
    assert [type(event) for event in view.notices if not view.steps or event.time < view.steps[0].time] == [Healed]


def test_what_cannot_be_healed_comes_with_three_ways_out(config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    def starve(trainer: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    patched_step(monkeypatch, starve)
    view = train(workspace, config.changed({"lora.rank": 64, "train.checkpointing": "none", "data.max_length": 512}))
    failed = view.ended
    assert isinstance(failed, Failed) and failed.code == "out-of-memory"
    assert len(failed.suggestions) == 3 and failed.what.endswith("even for one conversation at a time.")
    for suggestion in failed.suggestions:
        config.changed(suggestion["values"])
    # The batch was halved to one already, and no row is near 512 tokens: neither is offered again.
    longest = max(json.loads((view.run.data / "receipt.json").read_text(encoding="utf-8"))["longest_tokens"] // 2, 64)
    offered = {path: value for suggestion in failed.suggestions for path, value in suggestion["values"].items()}
    assert "train.batch_size" not in offered and offered.get("data.max_length", longest) == longest


def test_ways_out_of_a_full_memory_need_less_than_what_filled_it() -> None:
    config = RunConfig().changed({"train.batch_size": 6, "train.accumulation": 4})
    of = {size: make_room(config, AtOnce(size, 300)) for size in (6, 3, 1)}
    assert of[6][0]["values"] == {"train.batch_size": 3, "train.accumulation": 8}
    # Three rows have no half: one at once, and the effective batch of 24 stays.
    assert of[3][0]["values"] == {"train.batch_size": 1, "train.accumulation": 24} and of[3][0]["label"].startswith("One conversation")
    assert of[1][0]["values"] == {"data.max_length": 150}
    error = torch.OutOfMemoryError("CUDA out of memory.")
    assert "3 conversations at a time" in describe(error, config, AtOnce(3, 300)).what
    early = describe(error, config)
    assert "before the training began" in early.what and not early.suggestions and "smaller model" in early.fix


def test_every_problem_of_a_failure_is_a_sentence_of_its_own() -> None:
    error = QloraUiError(problems=[Problem("", "One is wrong", fix="Mend it"), Problem("", "So is another")])
    assert describe(error, None).fix == "Mend it. So is another."


def test_a_run_that_fails_over_its_data_names_the_file(workspace: Workspace, config: RunConfig, tmp_path: Path) -> None:
    failed = train(workspace, config.changed({"data.sources": [{"id": str(tmp_path / "gone.jsonl")}]})).ended
    assert isinstance(failed, Failed) and failed.what.startswith("gone.jsonl: ")


@pytest.mark.parametrize("packing", [pytest.param("off", marks=pytest.mark.slow), "on"])
@pytest.mark.parametrize("is_training", [True, False], ids=["in a step", "in the try before"])
def test_a_check_that_runs_out_of_memory_halves_the_check_alone(  # noqa: PLR0917
    is_training: bool, packing: str, config: RunConfig, workspace: Workspace, tmp_path: Path, monkeypatch: Any
) -> None:
    config = config.changed({"train.packing": packing, "eval.batch_size": 2})
    whole = train(Workspace.at(tmp_path / "whole"), config)
    original = QloraTrainer.prediction_step
    rows: list[int] = []

    def prediction_step(self: Any, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        rows.append(inputs["input_ids"].numel() // config.data.max_length if packing == "on" else inputs["input_ids"].shape[0])
        if self.is_in_train is is_training and rows[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, model, inputs, *arguments, **named)

    monkeypatch.setattr(QloraTrainer, "prediction_step", prediction_step)
    view = train(workspace, config)
    assert view.status is Status.DONE, view.ended
    assert 2 in rows and rows[-1] == 1
    assert [event.changes for event in view.notices if isinstance(event, Healed)] == [{"eval.batch_size": [2, 1]}]
    assert [event.step for event in view.evals] == [event.step for event in whole.evals]
    # transformers averages over batches, so that their size shows in the third digit.
    assert [event.loss for event in view.evals] == pytest.approx([event.loss for event in whole.evals], rel=2**-8)
    assert [point[1] for point in curve(view)] == [point[1] for point in curve(whole)]


WRITE_POINTS = {
    "adapter": ("qlora_ui.engine.trainer.write_adapter", OSError(errno.ENOSPC, "No space left on device")),
    "optimizer": (
        "qlora_ui.engine.trainer.QloraTrainer._save_optimizer_and_scheduler",
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ),
    "random state": ("qlora_ui.engine.trainer.QloraTrainer._save_rng_state", OSError(errno.EDQUOT, "Disk quota exceeded")),
    "state": ("transformers.trainer_callback.TrainerState.save_to_json", OSError(errno.ENOSPC, "No space left on device")),
    "manifest": ("qlora_ui.engine.checkpoints.CheckpointStore.commit", OSError(errno.ENOSPC, "No space left on device")),
    "sync": ("qlora_ui.engine.checkpoints.sync_tree", OSError(errno.ENOSPC, "No space left on device")),
}


OFTEN = ("optimizer", "manifest", "sync")
"""Points of the ordinary suite; the others belong to the long one."""


@pytest.mark.parametrize("point", [pytest.param(point, marks=() if point in OFTEN else pytest.mark.slow) for point in WRITE_POINTS])
def test_a_full_disk_costs_one_checkpoint(point: str, config: RunConfig, workspace: Workspace, monkeypatch: Any) -> None:
    target, error = WRITE_POINTS[point]
    owner, name = target.rsplit(".", 1)
    import pydoc

    original = getattr(pydoc.locate(owner), name)
    failed: list[int] = []

    def full(*arguments: Any, **named: Any) -> Any:
        if len(CheckpointStore(workspace_checkpoints(workspace), 9).steps()) == 1 and not failed:
            failed.append(1)
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(target, full)
    view = train(workspace, config.changed({"eval.share": 0}))
    assert failed and view.status is Status.DONE, view.ended
    assert whole_steps(view) == [2, 6]
    assert not [path.name for path in view.run.checkpoints.iterdir() if path.name.startswith(".")]
    notice = next(event for event in view.notices if isinstance(event, Noticed) and event.code == "disk-full")
    assert "step 4" in notice.what


def workspace_checkpoints(workspace: Workspace) -> Path:
    return next(workspace.runs.iterdir()) / "checkpoints"


def test_a_disk_that_is_full_at_the_end_fails_in_words_and_continues_later(
    config: RunConfig, workspace: Workspace, monkeypatch: Any
) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qlora_ui.engine.job.publish_adapter", full)
        view = train(workspace, config)
    assert isinstance(view.ended, Failed) and view.ended.code == "disk-full"
    assert whole_steps(view)
    view = again(view.run)
    assert view.status is Status.DONE and view.ended is not None and view.ended.adapter == "adapter"


NO_ROOM = RunError("The disk has 3 MiB left; a checkpoint needs 64 MiB.", fix="Free some space", code="disk-full")
DISKS = {
    "full": NO_ROOM,
    "read-only": OSError(errno.EROFS, "Read-only file system", "checkpoints"),
    "away": OSError(errno.EIO, "Input/output error"),
}


@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_takes_no_checkpoint_costs_neither_run_nor_result(
    disk: str, config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointStore, "check_space", lambda self, size: raising(DISKS[disk])())
    view = train(workspace, config.changed({"eval.share": 0}))
    assert view.status is Status.DONE and view.has_adapter and view.step == 6, view.ended
    told = [event.what for event in view.notices if isinstance(event, Noticed) and event.code.startswith("disk")]
    assert ["step 2" in told[0], "step 4" in told[1], "step 6" in told[2]] == [True] * 3


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.STOP])
def test_what_was_learned_is_kept_where_the_step_of_the_end_cannot_be_saved(
    request_: Request, config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(trainer: Any) -> None:
        if trainer.state.global_step == 4:
            RunDir(next(workspace.runs.iterdir())).request(request_)
            monkeypatch.setattr(CheckpointStore, "check_space", lambda self, size: raising(NO_ROOM)())

    patched_step(monkeypatch, ask)
    view = train(workspace, config.changed({"eval.share": 0}))
    assert whole_steps(view) == [2, 4] and view.has_adapter and view.ended is not None and view.ended.adapter
    if request_ is Request.PAUSE:
        assert isinstance(view.ended, Failed) and view.ended.code == "disk-full" and "3 MiB left" in view.ended.why
    else:
        assert view.status is Status.STOPPED
    # It is that of step 5, not of the newest checkpoint.
    assert view.run.other_steps() == [4, 2]


def test_a_file_that_may_not_be_read_is_no_bug() -> None:
    failed = describe(PermissionError(errno.EACCES, "Permission denied", "/models/model.safetensors"), None)
    assert failed.code == "disk-refused" and "/models/model.safetensors" in failed.what and "Continue" in failed.fix


def raising(error: Exception) -> Any:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise error if isinstance(error, RunError) else type(error)(*error.args)

    return fail


def failed_and_let_go(workspace: Workspace, config: RunConfig) -> Failed:
    """The failure of a run that left nothing in this process for the next one to stumble over."""
    before = models_alive()
    view = train(workspace, config.changed({"eval.share": 0}))
    assert isinstance(view.ended, Failed), view.ended
    assert not AcceleratorState._shared_state and models_alive() == before
    return view.ended


def test_a_lost_card_is_told_though_every_call_to_it_fails_from_then_on(
    config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported")

    def lose(trainer: Any) -> None:
        if trainer.state.global_step == 3:
            monkeypatch.setattr("qlora_ui.engine.memory_watch.MemoryWatch._measure_cpu", raising(lost))
            monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", raising(lost))
            monkeypatch.setattr("qlora_ui.engine.release.give_back_memory", lambda: (gc.collect(), raising(lost)()))
            raise lost

    patched_step(monkeypatch, lose)
    failed = failed_and_let_go(workspace, config)
    assert failed.code == "card-lost" and "device-side assert" in failed.why and failed.step == 3


def test_stop_now_on_a_full_disk_names_the_disk(config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(trainer: Any) -> None:
        if trainer.state.global_step == 5:
            RunDir(next(workspace.runs.iterdir())).request(Request.STOP_NOW)

    patched_step(monkeypatch, ask)
    monkeypatch.setattr(job, "publish_adapter", raising(OSError(errno.ENOSPC, "No space left on device")))
    failed = failed_and_let_go(workspace, config)
    assert failed.code == "disk-full" and failed.fix


def test_a_result_that_cannot_be_kept_does_not_hide_the_failure(
    config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    patched_step(monkeypatch, poison_gradient)
    monkeypatch.setattr(job, "publish_adapter", raising(full))
    failed = failed_and_let_go(workspace, config)
    assert failed.code == "not-a-number" and failed.adapter is None
