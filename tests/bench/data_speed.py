"""How fast a dataset is read and checked, in how much memory: `python tests/bench/data_speed.py [GIB] [MODEL_FOLDER]`.

Also: how often progress is told, how soon a cancel is obeyed, how long the same file takes again. With a model folder the speed of
tokenizing is measured, against the tokenizer's own for the same texts. Writes tests/bench/results/data_speed.json, or
data_speed_small.json for less than 1 GiB. On a busy machine the rates of the processor (`_per_cpu_s`) say more than those of the clock.
"""

# ruff: noqa: E402 (the repository must be found first)
from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from qlora_ui.base.progress import Cancelled
from qlora_ui.data.load import inspect, load_conversations
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from tests.corpus import big

TOKENIZED_ROWS = 20_000
CANCEL_AFTER_S = 3.0


class Peak:
    """The most memory that this process and its children held: the kernel's high-water mark of children where it keeps one."""

    def __init__(self) -> None:
        self.own_bytes = self.child_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.02):
            self.own_bytes = max(self.own_bytes, me.memory_info().rss)
            for child in me.children():
                try:
                    self.child_bytes = max(self.child_bytes, child.memory_info().rss, _high_water_bytes(child.pid))
                except psutil.Error:
                    pass


def _high_water_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Told:
    """Remembers when progress was told, and checks that it never goes back."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.shares: list[float] = []

    def __call__(self, what: str, share: float | None) -> None:
        """Take one report."""
        self.times.append(time.monotonic())
        self.shares.append(share or 0.0)

    def summary(self) -> dict[str, Any]:
        """Count, longest silence, and whether the share only grows."""
        gaps = [later - earlier for earlier, later in pairwise(self.times)]
        only_grows = all(earlier <= later for earlier, later in pairwise(self.shares))
        return {
            "progress_reports": len(self.times),
            "longest_silence_s": round(max(gaps, default=0.0), 2),
            "progress_only_grows": only_grows,
        }


def _cancel(data: DataSection, folder: Path) -> dict[str, Any]:
    """Read the file anew and cancel: how long until the reader is gone, and what is left of it."""
    workspace = Workspace.at(folder / "cancelled")
    deadline = time.monotonic() + CANCEL_AFTER_S
    try:
        inspect(data, workspace, is_cancelled=lambda: time.monotonic() > deadline)
    except Cancelled:
        obeyed_s = time.monotonic() - deadline
        left = sum(path.stat().st_size for path in (workspace.cache / "data").rglob("*") if path.is_file())
        return {"cancel_obeyed_s": round(obeyed_s, 2), "bytes_left_after_cancel": left}
    return {"cancel_obeyed_s": None}


def main() -> None:
    """Measure and write."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * (1 << 30))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.jsonl"
        big(path, size)
        workspace = Workspace.at(Path(folder) / "workspace")
        data = DataSection(sources=(str(path),))
        load = os.getloadavg()[0]
        told = Told()
        with Peak() as peak:
            begun = time.monotonic()
            before = sum(os.times()[:4])
            report = inspect(data, workspace, on_progress=told)
            took = time.monotonic() - begun
            cpu_s = sum(os.times()[:4]) - before
        begun = time.monotonic()
        again = inspect(data, workspace)
        again_s = time.monotonic() - begun
        assert again.num_rows == report.num_rows
        result: dict[str, Any] = {
            "bytes": path.stat().st_size,
            "rows": report.num_rows,
            "duration_s": round(took, 2),
            "rows_per_s": round(report.num_rows / took),
            "cpu_s": round(cpu_s, 2),
            "rows_per_cpu_s": round(report.num_rows / cpu_s),
            "reader_peak_bytes": peak.child_bytes,
            "app_peak_bytes": peak.own_bytes,
            **told.summary(),
            **_cancel(data, Path(folder)),
            "same_file_again_s": round(again_s, 2),
            "verdict": report.verdict,
            "cores": os.cpu_count(),
            "load_before": load,
            "priority": os.nice(0) if hasattr(os, "nice") else 0,
            "command": f"python tests/bench/data_speed.py {sys.argv[1] if len(sys.argv) > 1 else 1}"
            + (" MODEL_FOLDER" if sys.argv[2:] else ""),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "versions": {name: version(name) for name in ("orjson", "numpy", "tokenizers", "transformers")},
        }
        if len(sys.argv) > 2:
            result |= _tokenize(Path(sys.argv[2]), path, workspace)
    print(json.dumps(result))
    (HERE / "results").mkdir(exist_ok=True)
    name = "data_speed.json" if size >= 1 << 30 else "data_speed_small.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _tokenize(model: Path, path: Path, workspace: Workspace) -> dict[str, Any]:
    """Tokens and labels of some rows, and the tokenizer alone on the very same texts."""
    from qlora_ui.engine.tokenizer import load_tokenizer
    from qlora_ui.engine.tokens import RowTokenizer, tokenize_all

    data = DataSection(sources=(DataSource(id=str(path), rows=f"first {TOKENIZED_ROWS}"),))
    conversations = load_conversations(data, workspace).conversations
    tokenizer = load_tokenizer(model)
    begun, begun_cpu = time.monotonic(), time.process_time()
    table = tokenize_all(conversations, tokenizer, data)
    took, took_cpu = time.monotonic() - begun, time.process_time() - begun_cpu
    renderer = RowTokenizer(tokenizer, data).renderer
    begun = time.monotonic()
    texts = [renderer.rendered(conversation).text for conversation in conversations]
    rendering_s = time.monotonic() - begun
    begun, begun_cpu = time.monotonic(), time.process_time()
    tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    alone, alone_cpu = time.monotonic() - begun, time.process_time() - begun_cpu
    return {
        "model": model.name,
        "tokenized_rows_per_s": round(len(table) / took),
        "tokens_per_s": round(len(table.ids) / took),
        "tokenizer_alone_tokens_per_s": round(len(table.ids) / alone),
        "tokens_per_cpu_s": round(len(table.ids) / took_cpu),
        "tokenizer_alone_tokens_per_cpu_s": round(len(table.ids) / alone_cpu),
        "templates_alone_rows_per_s": round(len(texts) / rendering_s),
    }


if __name__ == "__main__":
    main()
