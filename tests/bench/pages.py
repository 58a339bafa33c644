"""What open pages cost a run that trains in the app's own process, and whether they all see the whole of it.

usage: python tests/bench/pages.py [--seconds 20] [--model FOLDER [--card]] [--rounds 5] [--out FILE]      (results/pages.json)

The app serves and trains in one process, a two-layer model or --model's, on the processor or with --card on the card. The pages are
another process that asks what a browser asks: the page and its first drawing when it opens, then a heartbeat that stays open, each
second what is new and, where that does not bring all that is new of the curves, the points. All pages are in sight with the Train tab
open. The two-layer model's steps are short (tens a second), so what a page costs weighs far more than beside a run whose steps take a
second. Beside the pace stands the CPU time of the app's other threads, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ROUNDS = 5
"""A toy's steps a second drift by some percent from window to window, so each number of pages has several, between windows without."""
SERIES = ("loss", "rate", "gradient", "eval")


def serve_here(folder: Path, model: Path | None, on_card: bool) -> None:
    """The app's process: an address on standard output; a line on standard input starts the run, its end ends the app."""
    from qlora_ui.runs.workspace import Workspace
    from qlora_ui.ui.launch import Address, serve
    from tests.tiny.jobs import tiny_config, write_rows
    from tests.tiny_model import make_tiny_model

    config = tiny_config(
        model or make_tiny_model(folder / "tiny"),
        write_rows(folder / "rows.jsonl", 200),
        train__max_steps=100_000,
        eval__every=500 if model is None else 100_000,
        output__save_every=2_000,
        train__schedule="constant",
        train__learning_rate=1e-4,
    )
    if model is not None:
        # Rows of one length and one row a step: then steps differ by what is beside them, and a window holds enough of them.
        rows = folder / "alike.jsonl"
        turns = [{"role": "user", "content": "What shall I cook tonight?"}, {"role": "assistant", "content": "Soup, with some bread."}]
        rows.write_text(200 * (json.dumps({"messages": turns}) + "\n"), encoding="utf-8")
        alike = {"data.sources": [{"id": str(rows)}], "train.batch_size": 1, "train.accumulation": 1, "train.packing": "off"}
        config = config.changed(alike)
    if on_card:
        config = config.changed(full_rows_on_the_card(folder / "full.jsonl"))
    served = serve(Workspace.at(folder / "workspace"), Address())
    print(served.url, flush=True)
    for line in sys.stdin:
        if line.strip() == "start":
            print(served.service.launcher.start(config).path, flush=True)
    served.close()


def full_rows_on_the_card(rows: Path) -> dict[str, Any]:
    """Steps as the product makes them by default: four rows of 512 tokens at a time, four times, on the fast path."""
    words = " ".join(f"word{number}" for number in range(800))
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": words}]
    rows.write_text(200 * (json.dumps({"messages": turns}) + "\n"), encoding="utf-8")
    return {
        "data.sources": [{"id": str(rows)}],
        "data.max_length": 512,
        "train.batch_size": 4,
        "train.accumulation": 4,
        "lora.rank": 16,
        "lora.dropout": 0.05,
        "launch.device": "auto",
    }


@dataclass
class Site:
    """What a browser learns from the page's configuration."""

    url: str
    config: dict[str, Any]

    @classmethod
    def at(cls, url: str) -> Site:
        return cls(url, httpx.get(f"{url}/config", timeout=30).json())

    def component(self, elem_id: str) -> int:
        return next(int(item["id"]) for item in self.config["components"] if item["props"].get("elem_id") == elem_id)


@dataclass
class OpenPage:
    """One browser tab."""

    site: Site
    line: http.client.HTTPConnection = field(init=False)
    """Plain and cheap: the client must not be what the run is slowed by."""
    heartbeat: http.client.HTTPConnection | None = None
    session: str = field(default_factory=lambda: secrets.token_hex(6))
    receipt: str = ""
    tick_s: list[float] = field(default_factory=list)
    curves_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cursor: dict[str, Any] | None = None
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=lambda: {name: ([], []) for name in SERIES})

    def __post_init__(self) -> None:
        self.line = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.site.url.removeprefix("http://"), timeout=30)

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        """The answer's body; raises ValueError for any status but 200."""
        headers = {"origin": self.site.url, "content-type": "application/json"} if body is not None else {}
        text = None if body is None else json.dumps(body)
        try:
            self.line.request(method, path, text, headers)
            answer = self.line.getresponse()
        except ConnectionError:  # the server ends a line that was idle for 5 s; a browser opens another
            self.line.close()
            self.line.request(method, path, text, headers)
            answer = self.line.getresponse()
        read = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {read[:100]!r}")
        return read

    def load(self) -> None:
        """What opening costs: the page, its configuration, all views, and the heartbeat."""
        for path in ("/", "/config"):
            self._ask("GET", path)
        self.heartbeat = self._connect()
        self.heartbeat.request("GET", f"/gradio_api/heartbeat/{self.session}")
        self.heartbeat.getresponse().read(5)
        self.poll()

    def close(self) -> None:
        """As a browser's tab closes, in the middle of its heartbeat."""
        for line in (self.line, self.heartbeat):
            if line is not None:
                line.close()

    def poll(self) -> None:
        """One beat of the pulse, and the new points where there are some that it did not bring."""
        try:
            began = time.perf_counter()
            answered = json.loads(self._serve("q-pulse", "news", {"receipt": self.receipt, "inputs": None, "fresh": False}))
            self.tick_s.append(time.perf_counter() - began)
            if answered is None:
                return
            self.receipt = answered["receipt"]
            value = answered["views"].get("train-charts", {}).get("value")
            if value and value["runs"] and not self._follow(value["tails"]):
                self._draw(value["runs"])
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            self.errors.append(f"{type(error).__name__}: {error}"[:200])

    def _follow(self, tails: list[dict[str, Any]]) -> bool:
        """As static/chart.js does: whether the points that came with the value were all that was new."""
        if not tails or self.cursor is None:
            return False
        for piece in tails[0]["pieces"]:
            if piece["since"] == self.cursor:
                self._append(piece)
        return bool(self.cursor == tails[0]["cursor"])

    def _append(self, piece: dict[str, Any]) -> None:
        for name in SERIES:
            for mine, more in zip(self.curves[name], (piece["series"][name]["x"], piece["series"][name]["y"]), strict=True):
                mine.extend(more)
        self.cursor = piece["cursor"]

    def _serve(self, elem_id: str, name: str, asked: Any) -> bytes:
        """What a component's script asks the app."""
        body = {"session_hash": self.session, "component_id": self.site.component(elem_id), "fn_name": name, "data": asked}
        return self._ask("POST", "/gradio_api/component_server/", body)

    def _draw(self, runs: list[str]) -> None:
        began = time.perf_counter()
        answer = self._serve("train-charts", "curves", {"runs": runs, "cursors": [self.cursor]})
        self.curves_s.append(time.perf_counter() - began)
        new = json.loads(answer)[0]
        if new["reset"]:
            self.curves = {name: ([], []) for name in SERIES}
        self._append(new)

    def keep_polling(self, until: float) -> None:
        """At 1 Hz; a poll that takes longer than a second is followed by the next at once, as in a browser."""
        time.sleep(secrets.randbelow(1000) / 1000)
        while (now := time.time()) < until:
            self.poll()
            time.sleep(max(0.0, min(now + 1.0, until) - time.time()))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Every point on the journal."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    # The last line may be half written.
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if "learning_rate" in event and "loss" in event]


def steps_per_s(run: Path, begin: float, end: float) -> float:
    """Optimizer steps a second between the first and the last step in a window of the run."""
    times = [event["time"] for event in steps_of(run) if begin <= event["time"] < end]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def beside_the_training_s(app: psutil.Process) -> float:
    """CPU seconds of all threads of the app but the busiest, which trains."""
    times = sorted(thread.user_time + thread.system_time for thread in app.threads())
    return float(sum(times[:-1]))


def with_pages(app: psutil.Process, site: Site, run: Path, count: int, seconds: float) -> dict[str, Any]:
    """Steps a second and the pages' waiting while `count` pages are open."""
    pages = [OpenPage(site) for _ in range(count)]
    for page in pages:
        page.load()
        page.tick_s.clear()
        page.curves_s.clear()
    begin, used = time.time(), beside_the_training_s(app)
    threads = [threading.Thread(target=page.keep_polling, args=(begin + seconds,)) for page in pages]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    used = beside_the_training_s(app) - used
    for thread in threads:
        thread.join()
    for page in pages:
        page.close()
    ticks = [value for page in pages for value in page.tick_s]
    curves = [value for page in pages for value in page.curves_s]
    return {
        "pages": count,
        "steps_per_s": round(steps_per_s(run, begin, begin + seconds), 3),
        "other_threads_ms_per_s": round(1000 * used / seconds, 1),
        "polls": len(ticks),
        "tick_ms": in_ms(ticks),
        "new_points_ms": in_ms(curves),
        "asked_for_points": len(curves),
        "errors": sum(len(page.errors) for page in pages),
        "first_errors": [page.errors[0] for page in pages if page.errors][:3],
        "load": round(os.getloadavg()[0], 2),
    }


def in_ms(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and worst."""
    if len(values) < 2:
        return {}
    ordered = sorted(value * 1000 for value in values)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[-1]
    return {"median": round(statistics.median(ordered), 1), "p95": round(p95, 1), "worst": round(ordered[-1], 1)}


def opened_and_closed(site: Site, run: Path, count: int) -> dict[str, Any]:
    """Pages that come and go, three that stay; at the end every curve against the journal."""
    readers = [OpenPage(site)]
    readers[0].load()
    before = len(steps_of(run))
    errors = 0
    for number in range(count):
        page = OpenPage(site)
        page.load()
        page.close()
        errors += len(page.errors)
        if number in (count // 3, 2 * count // 3):
            readers.append(OpenPage(site))
            readers[-1].load()
        for reader in readers:
            reader.poll()
    during = len(steps_of(run)) - before
    return {"opened_and_closed": count, "steps_meanwhile": during, "errors": errors, "readers": readers}


def compared(readers: list[OpenPage], run: Path) -> dict[str, Any]:
    """What three pages drew against the journal of the ended run."""
    for reader in readers:
        reader.poll()
    numbers = [event["step"] for event in steps_of(run)]
    return {
        "points_on_the_journal": len(numbers),
        "points_on_each_page": [len(reader.curves["loss"][0]) for reader in readers],
        "no_point_lost": all(reader.curves["loss"][0] == numbers for reader in readers) and numbers == list(range(1, len(numbers) + 1)),
        "curves_identical": all(reader.curves == readers[0].curves for reader in readers),
    }


def wait_for(run: Path, text: str, timeout_s: float = 120) -> None:
    """Wait until the journal says something."""
    end = time.time() + timeout_s
    while text not in (run / "events.jsonl").read_text(encoding="utf-8"):
        if time.time() > end:
            raise RuntimeError(f"the run never came to {text}")
        time.sleep(0.1)


def measure(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    """All windows, one after another, on one run."""
    model: Path | None = words.model
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(folder), *(["--model", str(model)] if model else [])]
    command += ["--card"] if words.card else []
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdin is not None and app.stdout is not None
        site = Site.at(app.stdout.readline().strip())
        app.stdin.write("start\n")
        app.stdin.flush()
        run = Path(app.stdout.readline().strip())
        while len(steps_of(run)) < (100 if model is None else 5):
            time.sleep(0.2)
        windows = [with_pages(psutil.Process(app.pid), site, run, count, words.seconds) for count in (*(0, 5, 0, 20) * words.rounds, 0)]
        closing = opened_and_closed(site, run, 50)
        (run / "control").mkdir(exist_ok=True)
        (run / "control" / "stop").touch()
        wait_for(run, "Stopped")
        time.sleep(1.5)
        readers = closing.pop("readers")
        closing |= compared(readers, run)
        app.stdin.close()
        app.wait(60)
    speeds = [window["steps_per_s"] for window in windows]
    for place in range(1, len(windows), 2):
        alone = (speeds[place - 1] + speeds[place + 1]) / 2
        windows[place]["slower_pct"] = round(100 * (1 - speeds[place] / alone), 1) if alone else None
    slower = {
        f"{count} pages": round(statistics.median(window["slower_pct"] for window in windows if window["pages"] == count), 1)
        for count in (5, 20)
    }
    alone = [window["steps_per_s"] for window in windows if window["pages"] == 0]
    spread = round(100 * statistics.pstdev(alone) / statistics.mean(alone), 1)
    others = {
        f"{count} pages": round(statistics.median(window["other_threads_ms_per_s"] for window in windows if window["pages"] == count), 1)
        for count in (0, 5, 20)
    }
    return {
        "median_slower_pct": slower,
        "median_other_threads_ms_per_s": others,
        "spread_without_pages_pct": spread,
        "windows": windows,
        "closing": closing,
        "fast_path": planned(run).get("fast_path"),
    }


def planned(run: Path) -> dict[str, Any]:
    """What the journal says of the run's plan."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = next((event for event in map(json.loads, lines) if "fast_path" in event), {})
    return found


def arguments_said(words: argparse.Namespace) -> list[str]:
    """The command's words without this machine's paths."""
    model = ["--model", words.model.name] if words.model else []
    return [f"--seconds {words.seconds:g}", f"--rounds {words.rounds}", *model, *(["--card"] if words.card else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--card", action="store_true", help="train --model on the NVIDIA card, rows of 512 tokens, 4 x 4")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--model", type=Path, help="the folder of a model to train instead of the two-layer one")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "bench" / "results" / "pages.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        serve_here(words.serve, words.model, words.card)
        return
    from qlora_ui.hardware.gpu import read_gpus
    from qlora_ui.hardware.system import versions

    load = os.getloadavg()[0]
    trained = words.model.name if words.model else "a two-layer model"
    with tempfile.TemporaryDirectory() as folder:
        row = {
            "what": f"pages at 1 Hz beside {trained} that trains in a thread of the app, NF4 on {'the card' if words.card else 'the CPU'}",
            "load_before": round(load, 2),
            "is_quiet": load < 1.5,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "command": "python tests/bench/pages.py " + " ".join(arguments_said(words)),
            "versions": versions(),
            "card": [gpu.name for gpu in read_gpus()],
            **measure(Path(folder), words),
        }
    words.out.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
