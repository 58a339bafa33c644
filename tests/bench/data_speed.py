"""How fast a dataset is read and checked, in how much memory: `python tests/bench/data_speed.py [GIB] [MODEL_FOLDER]`.

Writes tests/bench/results/data_speed.json. With a model folder, tokenizing is measured too.
"""

# ruff: noqa: E402 (the repository must be found first)
from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from corpus import big

from qlora_ui.data.load import inspect, load_conversations
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource

TOKENIZED_ROWS = 5000


class Peak:
    """The most memory that this process and its children held, seen every 20 ms."""

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
                    self.child_bytes = max(self.child_bytes, child.memory_info().rss)
                except psutil.Error:
                    pass


def main() -> None:
    """Measure and write."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * (1 << 30))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.jsonl"
        big(path, size)
        workspace = Workspace.at(Path(folder) / "workspace")
        data = DataSection(sources=(str(path),))
        with Peak() as peak:
            begun = time.monotonic()
            before = sum(os.times()[:4])
            report = inspect(data, workspace)
            took = time.monotonic() - begun
            used = os.times()
            cpu_s = used.user + used.system + used.children_user + used.children_system - before
        result = {
            "bytes": path.stat().st_size,
            "rows": report.num_rows,
            "duration_s": round(took, 2),
            "rows_per_s": round(report.num_rows / took),
            "cpu_s": round(cpu_s, 2),
            "rows_per_cpu_s": round(report.num_rows / cpu_s),
            "reader_peak_bytes": peak.child_bytes,
            "app_peak_bytes": peak.own_bytes,
            "verdict": report.verdict,
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
        }
        if len(sys.argv) > 2:
            result |= _tokenize(Path(sys.argv[2]), path, workspace)
    print(json.dumps(result))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "data_speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _tokenize(model: Path, path: Path, workspace: Workspace) -> dict[str, float]:
    from qlora_ui.engine.tokenizer import load_tokenizer
    from qlora_ui.engine.tokens import tokenize_all

    data = DataSection(sources=(DataSource(id=str(path), rows=f"first {TOKENIZED_ROWS}"),))
    conversations = load_conversations(data, workspace).conversations
    tokenizer = load_tokenizer(model)
    begun = time.monotonic()
    table = tokenize_all(conversations, tokenizer, data)
    took = time.monotonic() - begun
    return {"tokenized_rows_per_s": round(len(table) / took), "tokens_per_s": round(len(table.ids) / took)}


if __name__ == "__main__":
    main()
