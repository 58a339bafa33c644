"""An export as a ZIP that a browser can save, packed in the background into the workspace's temporary folder."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from pathlib import Path

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import free_bytes, size_of_tree, written_aside
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import GIB, MIB, format_bytes

MOST_BYTES = 4 * GIB
"""Of what is sent to a browser."""
KEPT_S = 3600.0
"""Long enough for a browser to fetch it; the next packing removes what is older, and the next start of the app everything."""
_BLOCK = 4 * MIB
_TEXTS = (".json", ".jsonl", ".jinja", ".md", ".py", ".txt", ".yaml")


def pack(folder: Path, target: Path, *, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The folder as the ZIP `target`; raises RunError where it is too large for a browser or the disk, and Cancelled."""
    _remove_old(target.parent.parent)
    size, free = size_of_tree(folder), free_bytes(target)
    if size > MOST_BYTES:
        raise RunError(f"It has {format_bytes(size)}, too much for a browser.", fix=f"Take the folder itself: {folder}", code="too-large")
    # Weights do not get smaller, and half an archive would stay on the full disk.
    if size > free:
        raise RunError(
            f"There is no room to pack it: it has {format_bytes(size)}, and {format_bytes(free)} are free.",
            fix=f"Free some space, or take the folder itself: {folder}",
            code="disk-full",
        )
    try:
        _write(folder, target, size, on_progress, is_cancelled)
    except FileNotFoundError:
        raise RunError("It was deleted while it was packed.", fix="Make it again", code="export-missing") from None
    return target


def _write(folder: Path, target: Path, size: int, on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    done = 0
    # Aside, since a browser may be fetching an earlier one.
    with written_aside(target) as aside, zipfile.ZipFile(aside, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo.from_file(path, path.relative_to(folder).as_posix(), strict_timestamps=False)
            # Weights get hardly smaller by minutes of work.
            entry.compress_type = zipfile.ZIP_DEFLATED if path.suffix in _TEXTS else zipfile.ZIP_STORED
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as inside:
                while block := file.read(_BLOCK):
                    stop_if(is_cancelled, "Packing")
                    inside.write(block)
                    done += len(block)
                    on_progress(f"Packing {format_bytes(done)} of {format_bytes(size)}", min(done / max(size, 1), 1.0))


def _remove_old(packed: Path) -> None:
    for path in packed.glob("*/*.zip"):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > KEPT_S:
                os.unlink(path)
