"""What an open page costs the machine that shows it: CPU seconds of every Chromium process, and of the app, while nobody touches it.

usage: python tests/bench/renderer.py [--seconds 20] [--pages 1] [--label after] [--out FILE]

Opens pages in Chromium without a window, as the browser tests do: all are in sight, and drawn by the processor as on a machine
without a graphics card. Waits until a page is quiet, then reads the CPU time of its processes before and after so many seconds: on
each tab while nothing runs, and on the Train tab beside a run of the two-layer model, which logs tens of steps a second. CPU seconds
are counted by the system for each process, so that another program takes little from them; a busy machine still makes caches cold.
With --out the row is added to the file's rows under its label, in place of one that has the label already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from qlora_ui.base.files import write_json  # noqa: E402
from qlora_ui.runs.workspace import Workspace  # noqa: E402
from qlora_ui.ui.app import TABS  # noqa: E402
from tests.tiny.jobs import tiny_config, write_rows  # noqa: E402
from tests.tiny_model import make_tiny_model  # noqa: E402
from tests.ui.conftest import Running, started_app  # noqa: E402
from tests.ui.pages import Looked, chromium, open_tab  # noqa: E402

SETTLE_S = 6.0
KINDS = {"renderer": "renderer", "gpu-process": "gpu", "utility": "network and storage"}


def kind_of(process: psutil.Process) -> str:
    """What a Chromium process does; empty for the short-lived ones that hold no page."""
    words = process.cmdline()
    if not words or "chrom" not in words[0]:
        return ""
    # One of them writes its words as a single argument.
    text = " ".join(words)
    if "--type=" not in text:
        return "browser"
    return KINDS.get(text.split("--type=", 1)[1].split(" ", 1)[0], "")


def cpu_s(app: Running) -> dict[str, float]:
    """CPU seconds so far of the app and of each kind of Chromium process below this one."""
    used: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            kind = "app" if process.pid == app.process.pid else kind_of(process)
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        if kind:
            used[kind] = used.get(kind, 0.0) + times.user + times.system
    return used


def window(app: Running, what: str, pages: list[Looked], seconds: float) -> dict[str, Any]:
    """Cores that each kind of process keeps busy while nobody touches the pages."""
    asked: list[int] = []
    listeners: list[tuple[Looked, Callable[[Any], None]]] = [(looked, lambda request: asked.append(1)) for looked in pages]
    for looked, listener in listeners:
        looked.page.on("request", listener)
    began, before = time.monotonic(), cpu_s(app)
    pages[0].page.wait_for_timeout(1000 * seconds)
    after, took = cpu_s(app), time.monotonic() - began
    for looked, listener in listeners:
        looked.page.remove_listener("request", listener)
    cores = {kind: round((after[kind] - before.get(kind, 0.0)) / took, 4) for kind in after}
    page = sum(cores.get(kind, 0.0) for kind in ("renderer", "gpu", "browser"))
    row = {"what": what, "cores": cores, "page_cores": round(page, 4), "requests_per_s": round(len(asked) / took, 2)}
    row |= {"seconds": round(took, 1), "load": round(os.getloadavg()[0], 2)}
    print(f"{what:24} page {page:.3f}  " + "  ".join(f"{kind} {value:.3f}" for kind, value in sorted(cores.items())), flush=True)
    return row


def measure(folder: Path, seconds: float, num_pages: int) -> list[dict[str, Any]]:
    """Each tab while nothing runs, then the Train tab and the first one beside a run."""
    workspace = Workspace.at(folder / "workspace")
    rows = write_rows(folder / "rows.jsonl", 200)
    config = tiny_config(
        make_tiny_model(folder / "tiny"),
        rows,
        train__max_steps=100_000,
        eval__every=500,
        output__save_every=2_000,
        train__schedule="constant",
    )
    write_json(workspace.root / "draft.json", {"preset": "", "settings": config.to_nested(only_changed=True)})
    windows = []
    with started_app(workspace.root) as app, chromium() as browser:
        pages = [Looked(browser, app.url, "model") for _ in range(num_pages)]
        for looked in pages:
            looked.page.locator("#q-ready-state").wait_for(timeout=60_000)
        for name, _, _ in TABS:
            for looked in pages:
                open_tab(looked.page, name)
            pages[0].page.wait_for_timeout(1000 * SETTLE_S)
            windows.append(window(app, f"idle, {name}", pages, seconds))
        pages[0].page.locator("#q-start").click()
        for looked in pages:
            open_tab(looked.page, "train")
            looked.page.get_by_role("button", name="Stop and save").wait_for(timeout=120_000)
        pages[0].page.wait_for_timeout(1000 * SETTLE_S)
        windows.append(window(app, "a run, train", pages, seconds))
        for looked in pages:
            open_tab(looked.page, "model")
        pages[0].page.wait_for_timeout(1000 * SETTLE_S)
        windows.append(window(app, "a run, model", pages, seconds))
        problems = [problem for looked in pages for problem in looked.problems]
    return [*windows, {"what": "problems of the pages", "problems": problems[:3]}] if problems else windows


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument("--label", default="after")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    browser = subprocess.run(["/usr/bin/chromium", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        row = {
            "label": words.label,
            "pages": words.pages,
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version(), "gradio": version("gradio"), "chromium": browser},
            "command": f"python tests/bench/renderer.py --seconds {words.seconds:g} --pages {words.pages} --label {words.label}",
            "windows": measure(Path(folder), words.seconds, words.pages),
        }
    if words.out is not None:
        kept = json.loads(words.out.read_text(encoding="utf-8"))["rows"] if words.out.exists() else []
        kept = [old for old in kept if old["label"] != words.label]
        words.out.write_text(json.dumps({"rows": [*kept, row]}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
