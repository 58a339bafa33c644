"""A disk that is really full, at every point where a run writes: a small tmpfs is filled to its last byte and freed again.

What was whole stays whole, the message names the disk, the app goes on, and the run ends with the numbers of one that had room.
"""

from __future__ import annotations

import contextlib
import os
import pydoc
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import again, at_step, curve, tiny_config, train, whole_steps, write_rows

from qlora_ui.runs.events import Failed, Noticed
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

DISK_MIB = 120
TRAINER = "qlora_ui.engine.trainer.QloraTrainer"

IN_SAVE = {
    "before the save": ("qlora_ui.engine.checkpoints.CheckpointStore.check_space", 0),
    "folder": ("qlora_ui.engine.checkpoints.CheckpointStore.stage", 0),
    "adapter": ("qlora_ui.engine.trainer.write_adapter", 0),
    "half of the adapter": ("qlora_ui.engine.trainer.write_adapter", 12_288),
    "optimizer": (f"{TRAINER}._save_optimizer_and_scheduler", 0),
    "half of the optimizer": (f"{TRAINER}._save_optimizer_and_scheduler", 12_288),
    "random state": (f"{TRAINER}._save_rng_state", 0),
    "trainer's state": ("transformers.trainer_callback.TrainerState.save_to_json", 0),
    "list of files": ("qlora_ui.engine.checkpoints.CheckpointStore.commit", 0),
}
"""Function before which the disk is full, and the bytes that are left."""
OFTEN = ("before the save", "half of the adapter", "list of files")
"""Points of the ordinary suite; the others belong to the long one."""


class Disk:
    """A file system of its own that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, left_bytes: int = 0) -> None:
        """Take every free byte but `left_bytes`."""
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if left_bytes:
            os.truncate(self._filler, self._filler.stat().st_size - left_bytes)

    def free(self) -> None:
        """Give all of it back."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or mount is None or os.geteuid() != 0:
        pytest.skip("a file system of its own needs root on Linux")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=6, eval__share=0)


@pytest.fixture(scope="module")
def calm(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    folder = tmp_path_factory.mktemp("calm")
    config = tiny_config(tiny_model_dir, write_rows(folder / "rows.jsonl"), train__max_steps=6, eval__share=0)
    return train(Workspace.at(folder / "workspace"), config)


@contextlib.contextmanager
def before(target: str, action: Callable[[], object]) -> Iterator[None]:
    """Do something ahead of every call of `target`."""
    owner, name = target.rsplit(".", 1)
    original = getattr(pydoc.locate(owner), name)

    def acting(*arguments: Any, **named: Any) -> Any:
        action()
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, acting)
        yield


@pytest.mark.parametrize("point", [pytest.param(point, marks=() if point in OFTEN else pytest.mark.slow) for point in IN_SAVE])
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(point: str, disk: Disk, config: RunConfig, calm: RunView) -> None:
    target, left = IN_SAVE[point]
    saves: list[int] = []

    def second_time() -> None:
        saves.append(1)
        if len(saves) == 2:
            disk.fill(left)

    def freed(recorder: Any) -> None:
        if recorder._mark_step >= 4:
            disk.free()

    with before(target, second_time), pytest.MonkeyPatch.context() as patch:
        from qlora_ui.engine.callbacks import Recorder

        original = Recorder.resume_clock
        patch.setattr(Recorder, "resume_clock", lambda self: (freed(self), original(self))[1])
        view = train(Workspace.at(disk.folder), config)
    assert view.status is Status.DONE, view.ended
    assert whole_steps(view) == [2, 6]
    assert not [path.name for path in view.run.checkpoints.iterdir() if path.name.startswith(".")]
    notice = next(event for event in view.notices if isinstance(event, Noticed) and event.code == "disk-full")
    assert "step 4" in notice.what and "disk" in notice.what and notice.fix
    assert curve(view) == curve(calm)


ELSEWHERE = {"rows": "qlora_ui.engine.dataset._write", "result": "qlora_ui.engine.job.publish_adapter"}


@pytest.mark.parametrize("point", ELSEWHERE)
def test_a_full_disk_elsewhere_is_told_and_the_run_continues(point: str, disk: Disk, config: RunConfig, calm: RunView) -> None:
    with before(ELSEWHERE[point], disk.fill):
        view = train(Workspace.at(disk.folder), config)
    # There was room for the ending, kept since the beginning.
    assert isinstance(view.ended, Failed) and view.ended.code == "disk-full" and view.ended.fix
    disk.free()
    assert whole_steps(view) == ([] if point == "rows" else [2, 4, 6])
    view = again(view.run)
    assert view.status is Status.DONE, view.ended
    assert curve(view) == curve(calm)


def test_a_disk_that_is_full_from_the_first_save_to_the_end_has_room_for_the_result(disk: Disk, config: RunConfig, calm: RunView) -> None:
    """Hours of training were lost where nobody had freed any space by its end."""
    with before("qlora_ui.engine.checkpoints.CheckpointStore.check_space", disk.fill):
        view = train(Workspace.at(disk.folder), config)
    assert view.status is Status.DONE and view.has_adapter and whole_steps(view) == [], view.ended
    assert (view.run.adapter / "adapter_model.safetensors").read_bytes() == (calm.run.adapter / "adapter_model.safetensors").read_bytes()
    assert not [path.name for path in view.run.path.iterdir() if path.name.startswith(".")]


def test_points_of_the_curve_wait_for_room(disk: Disk, config: RunConfig, calm: RunView) -> None:
    steps: list[int] = []

    def at(recorder: Any) -> None:
        steps.append(recorder._mark_step)
        if recorder._mark_step == 2:
            disk.fill()
        if recorder._mark_step == 5:
            disk.free()

    from qlora_ui.engine.callbacks import Recorder

    original = Recorder.resume_clock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "resume_clock", lambda self: (original(self), at(self))[0])
        view = train(Workspace.at(disk.folder), config)
    assert view.status is Status.DONE and {2, 5} <= set(steps)
    assert curve(view) == curve(calm)
    assert at_step(6)(view.steps[-1])
