"""Checkpoints that are whole or not there.

One is written into `.saving-N`, listed with sizes and SHA-256 in `manifest.json`, forced to the disk and renamed to
`checkpoint-N`: a kill at any moment leaves the older ones and a leftover that the next start removes. The stock Trainer
writes in place, takes the highest number for the newest without looking, and rotates by file time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import free_bytes, put_in_place, read_json, replace, sha256_of, sync_directory
from qlora_ui.base.units import format_bytes
from qlora_ui.estimate.memory import CHECKPOINT_MARGIN_BYTES
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, MANIFEST

ADAPTER_FILES = (ADAPTER_WEIGHTS, "adapter_config.json")
"""What was learned; the other files of a checkpoint are there to go on from it."""
_PREFIX, _SAVING, _TRASH = "checkpoint-", ".saving-", ".trash-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint; `notes` is what the job wrote into its manifest."""

    path: Path
    step: int
    num_bytes: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """A checkpoint that cannot be used, and why in words."""

    path: Path
    step: int
    why: str


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def clean(self) -> None:
        """Remove what a killed job left half written."""
        for name in self._names(_SAVING, _TRASH):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def check_space(self, expected_bytes: int) -> None:
        """Raise RunError (code `disk-full`) where the disk has not room for half as much again as the last checkpoint took."""
        needed = int(1.5 * max(expected_bytes, self._last_bytes())) + CHECKPOINT_MARGIN_BYTES
        free = free_bytes(self.folder)
        if free < needed:
            raise RunError(
                f"The disk has {format_bytes(free)} left; a checkpoint needs {format_bytes(needed)}.",
                fix="Free some space, or keep fewer checkpoints (output.keep_last)",
                code="disk-full",
            )

    def stage(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; raises RunError (code `disk-away`) where the run's own is not there."""
        if not self.folder.parent.is_dir():
            what = f"The folder {self.folder.parent} is not there."
            raise RunError(what, fix="Connect the disk that it is on, or put it back", code="disk-away")
        staged = self.folder / f"{_SAVING}{step}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        return staged

    def abandon(self, step: int) -> None:
        """Give up a staged checkpoint; frees what it took of the disk."""
        shutil.rmtree(self.folder / f"{_SAVING}{step}", ignore_errors=True)

    def commit(self, step: int, notes: Mapping[str, Any]) -> Checkpoint:
        """Make the staged checkpoint of `step` the real one; after this returns, no crash can lose it."""
        staged, final = self.folder / f"{_SAVING}{step}", self.folder / f"{_PREFIX}{step}"
        files = {file.relative_to(staged).as_posix(): file for file in sorted(staged.rglob("*")) if file.is_file()}
        listing = {name: (file.stat().st_size, sha256_of(file)) for name, file in files.items()}
        manifest = {"step": step, "files": listing, "notes": dict(notes)}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync_tree(staged)
        if final.exists():
            # Only a broken one can stand there: whole ones are not written again.
            self._discard(step)
        replace(staged, final)
        sync_directory(self.folder)
        return Checkpoint(final, step, sum(size for size, _ in listing.values()), dict(notes))

    def rotate(self, best_step: int | None, *, saved: int | None = None) -> list[int]:
        """Remove all but the last `keep_last` checkpoints, by step number, and the best one; returns the steps removed.

        Those of steps after the one that was `saved` are a broken attempt's (see `newest_adapter`) and take no place of this one's.
        """
        steps = sorted(step for step in self.steps() if saved is None or step <= saved)
        removed = [step for step in steps[: -self.keep_last] if step != best_step]
        for step in removed:
            self._discard(step)
        return removed

    def find(self, step: int) -> Checkpoint | None:
        """The checkpoint of `step`, where there is a whole one."""
        found = verify(self.path_of(step)) if self.path_of(step).is_dir() else None
        return found if isinstance(found, Checkpoint) else None

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not."""
        return [int(name.removeprefix(_PREFIX)) for name in self._names(_PREFIX) if name.removeprefix(_PREFIX).isdigit()]

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.folder / f"{_PREFIX}{step}"

    def newest_whole(self) -> tuple[Checkpoint | None, list[Broken]]:
        """The newest checkpoint whose every file is what its manifest says, and the newer ones that are not."""
        broken: list[Broken] = []
        for step in sorted(self.steps(), reverse=True):
            found = verify(self.path_of(step))
            if isinstance(found, Checkpoint):
                return found, broken
            broken.append(found)
        return None, broken

    def newest_adapter(self) -> Checkpoint | None:
        """The newest checkpoint whose adapter is what was saved, though what it takes to go on from there may be damaged."""
        for step in sorted(self.steps(), reverse=True):
            if isinstance(found := verify(self.path_of(step), ADAPTER_FILES), Checkpoint):
                return found
        return None

    def _last_bytes(self) -> int:
        for step in sorted(self.steps(), reverse=True):
            manifest = read_json(self.path_of(step) / MANIFEST)
            if isinstance(manifest, dict):
                return sum(size for size, _ in manifest.get("files", {}).values())
        return 0

    def _discard(self, step: int) -> None:
        """Out of sight with one rename first: a kill while files are removed must not leave half a checkpoint under its name."""
        trash = self.folder / f"{_TRASH}{step}"
        shutil.rmtree(trash, ignore_errors=True)
        replace(self.folder / f"{_PREFIX}{step}", trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _names(self, *prefixes: str) -> list[str]:
        try:
            return [entry.name for entry in self.folder.iterdir() if entry.name.startswith(prefixes)]
        except FileNotFoundError:
            return []


def verify(path: Path, names: Collection[str] = ()) -> Checkpoint | Broken:
    """Check every file of a checkpoint, or those of these `names`, against its manifest; nothing is loaded before this says that it is
    ours and whole.
    """
    step = int(path.name.removeprefix(_PREFIX))
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return Broken(path, step, "its list of files is missing")
    missing = next((name for name in names if name not in manifest["files"]), None)
    if missing is not None:
        return Broken(path, step, f"its list of files lacks {missing}")
    for name, (size, digest) in manifest["files"].items():
        if names and name not in names:
            continue
        file = path / name
        if not file.is_file():
            return Broken(path, step, f"{name} is missing")
        if file.stat().st_size != size or sha256_of(file) != digest:
            return Broken(path, step, f"{name} is not what was saved")
    return Checkpoint(path, step, sum(size for size, _ in manifest["files"].values()), manifest.get("notes", {}))


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            # Windows syncs only files opened for writing.
            fd = os.open(os.path.join(parent, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(Path(parent))


def replace_folder(staged: Path, final: Path) -> None:
    """`put_in_place`, and no crash can lose the new one after this returns."""
    sync_tree(staged)
    put_in_place(staged, final)
    sync_directory(final.parent)
