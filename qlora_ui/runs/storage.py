"""What the workspace takes of the disk, by kind, and how much of that can be freed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

from qlora_ui.base.bounded import entries_of, keep_within
from qlora_ui.base.files import size_of_tree
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.models.hub_cache import DATASETS, MODELS
from qlora_ui.runs.deleted import trash_size
from qlora_ui.runs.kept_models import brought_bytes
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace


@dataclass(frozen=True, slots=True)
class RunSize:
    """What a run takes."""

    id: str
    num_bytes: int
    checkpoint_bytes: int
    export_bytes: int


@dataclass(frozen=True)
class Storage:
    """Bytes by kind, at one moment."""

    runs: tuple[RunSize, ...]
    """The largest first."""
    data_bytes: int
    """Data files that are kept."""
    model_bytes: int
    """Models in the workspace."""
    hub_bytes: int
    """Models that the app downloaded into the Hub's cache."""
    hub_data_bytes: int
    """Datasets likewise."""
    remade_bytes: int
    """Rows and tokens of data files that were read."""
    free_now_bytes: int
    """Of them what nobody uses now."""
    working_bytes: int
    """Files that are being fetched by a browser or were, and tools: they go by themselves, or come again."""
    trash_bytes: int
    num_deleted: int
    at: float
    """Unix seconds."""

    @cached_property
    def run_bytes(self) -> int:
        return sum(run.num_bytes for run in self.runs)

    @cached_property
    def checkpoint_bytes(self) -> int:
        return sum(run.checkpoint_bytes for run in self.runs)

    @cached_property
    def export_bytes(self) -> int:
        return sum(run.export_bytes for run in self.runs)

    @property
    def total_bytes(self) -> int:
        """Of the workspace; the Hub's cache lies elsewhere."""
        return self.run_bytes + self.data_bytes + self.model_bytes + self.remade_bytes + self.working_bytes + self.trash_bytes


def measure(workspace: Workspace, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Storage:
    """Look at every file of the workspace: a second for some thousand runs. Raises Cancelled."""
    # First: what is deleted meanwhile is seen by it afterwards.
    num_deleted, trash_bytes = trash_size(workspace)
    sizes, runs = [], list_runs(workspace)
    for number, run in enumerate(runs):
        stop_if(is_cancelled, "The measurement")
        on_progress(f"Run {number + 1:,} of {len(runs):,}", number / len(runs))
        sizes.append(_size_of(run))
    remade, now = entries_of(workspace.rows_and_tokens), time.time()
    remade_bytes = sum(one.num_bytes for one in remade)
    return Storage(
        runs=tuple(sorted(sizes, key=lambda run: run.num_bytes, reverse=True)),
        data_bytes=size_of_tree(workspace.datasets),
        model_bytes=size_of_tree(workspace.models),
        hub_bytes=brought_bytes(MODELS),
        hub_data_bytes=brought_bytes(DATASETS),
        remade_bytes=remade_bytes,
        working_bytes=max(size_of_tree(workspace.cache) - remade_bytes, 0) + size_of_tree(workspace.temp),
        free_now_bytes=sum(one.num_bytes for one in remade if not one.is_in_use(now)),
        trash_bytes=trash_bytes,
        num_deleted=num_deleted,
        at=now,
    )


def free_remade(workspace: Workspace) -> int:
    """Remove rows and tokens that nobody uses now, and return their bytes: they are read and made again when they are needed."""
    return keep_within(workspace.rows_and_tokens, 0)


def _size_of(run: RunDir) -> RunSize:
    checkpoints, exports = size_of_tree(run.checkpoints), size_of_tree(run.exports)
    return RunSize(run.id, size_of_tree(run.path), checkpoints, exports)
