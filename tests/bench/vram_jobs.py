"""Jobs of the product for the memory benches: one configuration a process, several side by side, each watched through NVML.

The processes are forked from one that has imported the libraries and not touched the card, which saves most of a short job's time.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import string
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from vram_models import SHAPES, make_model

Row = dict[str, Any]


def case(model: str, rows: int, tokens: int, **options: Any) -> Row:
    """A configuration: shape, micro-batch, length and what differs from the defaults (`lora__dropout=0`)."""
    changed = {key.replace("__", "."): value for key, value in options.items()}
    return {"model": model, "batch": rows, "tokens": tokens, "changed": changed}


def config_of(item: Row, model_folder: str = "x", data_file: str = "x.jsonl") -> Any:
    """The RunConfig of a case."""
    from qlora_ui.settings.run_config import RunConfig

    base = {
        "model.id": model_folder,
        "data.sources": json.dumps([{"id": data_file}]),
        "data.max_length": item["tokens"],
        "data.train_on": "everything",
        "train.batch_size": item["batch"],
        "train.accumulation": 2,
        "train.max_steps": 3,
        "eval.share": 0.2,
        "eval.every": 3,
        "eval.batch_size": item["batch"],
        "eval.keep_best": False,
    }
    return RunConfig().changed({**base, **item["changed"]})


def facts_of(item: Row) -> Any:
    """The facts of a case's shape."""
    from qlora_ui.models.architecture import facts_from_config

    return facts_from_config(SHAPES[item["model"]])


def data_shape(item: Row) -> Any:
    """What the data of a case is known to be."""
    from qlora_ui.estimate.workload import DataShape

    return DataShape(longest_tokens=item["tokens"], trained_share=1.0)


def device_of(context_bytes: int, cap_bytes: int | None = None) -> Any:
    """The card with its measured context, as an app that has run once knows it; with a cap, a card of that size."""
    from qlora_ui.hardware.devices import named_device

    card = replace(named_device("H100"), context_bytes=context_bytes, context_source="measured", others_bytes=0, grows_segments=True)
    return card if cap_bytes is None else replace(card, total_bytes=cap_bytes, free_bytes=cap_bytes)


def write_data(item: Row, path: Path) -> None:
    """Enough conversations for the steps: every fourth as long as allowed, the rest shorter, so that padding happens."""
    draw = random.Random(7)
    count = max(24, 8 * item["batch"])
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            share = 1.3 if number % 4 == 0 or item["changed"].get("train.packing") != "off" else draw.uniform(0.3, 0.9)
            text = "".join(draw.choices(string.ascii_lowercase, k=int(item["tokens"] * share)))
            messages = [{"role": "user", "content": f"{number} {text[:8]}"}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": messages}) + "\n")


def run_one(item: Row, models: Path) -> Row:
    """One job in this process; returns what torch and the journal say of it."""
    import torch

    from qlora_ui.engine import job
    from qlora_ui.runs.events import Failed, Healed, MemoryMeasured, Planned
    from qlora_ui.runs.journal import read_events
    from qlora_ui.runs.registry import create_run
    from qlora_ui.runs.workspace import Workspace

    if item.get("limit_bytes"):
        torch.cuda.set_per_process_memory_fraction(item["limit_bytes"] / torch.cuda.get_device_properties(0).total_memory)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_data(item, data)
        config = config_of(item, str(models / item["model"]), str(data))
        run = create_run(Workspace.at(Path(folder) / "workspace"), config)
        job.run(run.path)
        events = read_events(run.journal_path)
    memory = [event for event in events if isinstance(event, MemoryMeasured)]
    failure = next((event for event in events if isinstance(event, Failed)), None)
    planned = next((event for event in events if isinstance(event, Planned)), None)
    has_card = torch.cuda.is_available()
    return {
        "failed": f"{failure.what} {failure.why} {failure.traceback[-1500:]}" if failure else None,
        "healed": [event.changes for event in events if isinstance(event, Healed)],
        "is_fast": bool(planned and planned.fast_path),
        "fast_reasons": list(planned.fast_path_reasons) if planned else [],
        "predicted_by_job_bytes": planned.predicted_bytes if planned else None,
        "allocated_bytes": max([e.peak_allocated_bytes or 0 for e in memory], default=0),
        "reserved_bytes": torch.cuda.max_memory_reserved() if has_card else 0,
        "context_bytes": [e.process_bytes - e.reserved_bytes for e in memory if e.process_bytes and e.reserved_bytes],
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name() if has_card else "CPU",
        "journal": [[e.at, e.step, e.allocated_bytes, e.reserved_bytes, e.peak_allocated_bytes, e.process_bytes] for e in memory],
    }


class Watch:
    """NVML's largest figure for each process, polled."""

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            print("no NVML:", error, flush=True)
            return
        while not self._done.wait(0.02):
            for process in itertools.chain.from_iterable(map(pynvml.nvmlDeviceGetComputeRunningProcesses, handles)):
                self.peaks[process.pid] = max(self.peaks.get(process.pid, 0), process.usedGpuMemory or 0)


class Bench:
    """Base models and a server of warm processes on the cards of a machine; `run` may be called several times."""

    def __init__(self, models: Path, log: Path, num_cards: int = 1) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "2")
        # Python before 3.12.4 does not tell the server its path, and a preload that is not found is left out without a word.
        here = Path(__file__).parent
        os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
        self.models, self.log, self.num_cards = models, log, num_cards
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["vram_preload"])

    def make_models(self, names: list[str]) -> None:
        """Write the base models, side by side."""
        if not all(self._make_once(name) for name in list(dict.fromkeys(names))[:1]):
            print("CUDA does not survive the fork here: every job imports for itself", flush=True)
            self.context = multiprocessing.get_context("spawn")
        makers = [self.context.Process(target=_make, args=(name, self.models, self.log)) for name in dict.fromkeys(names)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()

    def _make_once(self, name: str) -> bool:
        maker = self.context.Process(target=_make, args=(name, self.models, self.log))
        maker.start()
        maker.join()
        return bool(maker.exitcode == 0)

    def run(
        self, items: list[Row], need_of: Callable[[Row], int], *, workers: int, budget_bytes: int, until: float, out: Path | None = None
    ) -> list[Row]:
        """Run the cases, the largest first, as many side by side as fit each card's budget; those not begun by `until` are left out.

        What is there is written to `out` after every case.
        """
        rows: list[Row] = []
        waiting = sorted(items, key=lambda item: (item.get("turn", 0), -need_of(item)))
        running: list[Running] = []
        with Watch() as watch:
            while waiting or running:
                if time.time() > until and not running:
                    break
                for item in list(waiting):
                    used = [sum(need_of(other.item) for other in running if other.card == card) for card in range(self.num_cards)]
                    card = used.index(min(used))
                    fits = not used[card] or used[card] + need_of(item) <= budget_bytes
                    if fits and len(running) < workers and time.time() <= until:
                        waiting.remove(item)
                        running.append(self._start(item, card))
                for entry in [entry for entry in running if not entry.child.is_alive() or entry.answers.poll()]:
                    running.remove(entry)
                    rows.append(entry.row(watch.peaks))
                    if out is not None:
                        out.write_text(json.dumps(rows))
                time.sleep(0.05)
        print("not run:", len(waiting), flush=True)
        return rows

    def _start(self, item: Row, card: int) -> Running:
        ours, theirs = self.context.Pipe(duplex=False)
        child = self.context.Process(target=_work, args=(item, card, self.models, self.log, theirs))
        child.start()
        theirs.close()
        return Running(child, ours, item, card, time.time())


@dataclass
class Running:
    """A job that was started."""

    child: ForkServerProcess
    answers: Connection
    item: Row
    card: int
    began: float

    def row(self, peaks: dict[int, int]) -> Row:
        """What came of it, said in a line."""
        item, child = self.item, self.child
        answer = self.answers.recv() if self.answers.poll() else {"failed": f"exit code {child.exitcode}"}
        child.join()
        row = {"config": item, "nvml_bytes": peaks.get(child.pid or 0), **answer, "wall_s": round(time.time() - self.began, 1)}
        name = f"{item['model']} {item['batch']}x{item['tokens']} {item['changed']}"
        print(f"{name}: {(row['nvml_bytes'] or 0) / 2**30:.2f} GiB {row['wall_s']} s", (row.get("failed") or "")[:200], flush=True)
        return row


def _work(item: Row, card: int, models: Path, log: Path, answers: Connection) -> None:
    # The process has not touched a card yet.
    os.environ["CUDA_VISIBLE_DEVICES"] = str(card)
    _to_log(log)
    try:
        answers.send(run_one(item, models))
    # The bench goes on with the other cases; the row says what happened.
    except Exception as error:
        traceback.print_exc()
        answers.send({"failed": f"{type(error).__name__}: {error}"})


def _make(name: str, models: Path, log: Path) -> None:
    _to_log(log)
    make_model(name, models / name)


def _to_log(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
