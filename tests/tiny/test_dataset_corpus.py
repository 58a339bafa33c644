"""Every bad input of the corpus: a typed message with its place, in time and memory, and the app lives."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qlora_ui.base.errors import ModelError, QloraUiError, SettingsError
from qlora_ui.data.load import inspect
from qlora_ui.data.template_check import check_template
from qlora_ui.engine.lens import Lens
from qlora_ui.models.folder import MAX_TEMPLATE_BYTES
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import find_preset, read_yaml, save_preset
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection
from tests.corpus import DATASETS, PRESET_NAMES, PRESETS, TEMPLATES, Bad

T = TypeVar("T")

CASES = [pytest.param(bad, id=f"{bad.number}-{bad.name}") for bad in DATASETS]
LIMIT_S = 5.0
LIMIT_BYTES = 1 << 30


class Watch:
    """The most memory that children of this process held while it is open: the kernel's own high-water mark, read every 5 ms.

    It notes which were started: who asks psutil for them looks at every process of the machine, beside the reader that is measured.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._pids: list[int] = []
        self._popen = subprocess.Popen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        pids = self._pids

        class Noted(self._popen):  # type: ignore[misc,name-defined]
            def __init__(self, *words: Any, **named: Any) -> None:
                super().__init__(*words, **named)
                pids.append(self.pid)

        subprocess.Popen = Noted  # type: ignore[misc]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.Popen = self._popen  # type: ignore[misc]
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            for pid in list(self._pids):
                try:
                    # First what it runs: until then it is a copy of this process, with its memory.
                    is_reader = b"-I" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
                    mark = re.search(r"VmHWM:\s+(\d+) kB", status)
                except OSError:
                    continue
                if mark and is_reader:
                    self.peak_bytes = max(self.peak_bytes, int(mark[1]) * 1024)


def limited(work: Callable[[], T]) -> T:
    """What `work` returns, in the time and memory that a bad input may take; a busy machine gets a second chance.

    Where more programs want the processor than there are cores, the clock says little: then processor time is what counts.
    """
    for _ in range(2):
        started, used = time.monotonic(), sum(os.times()[:4])
        with Watch() as watch:
            result = work()
        took, cpu_s = time.monotonic() - started, sum(os.times()[:4]) - used
        if took <= LIMIT_S:
            break
    is_busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)
    assert (cpu_s if is_busy else took) <= LIMIT_S
    assert watch.peak_bytes <= LIMIT_BYTES
    print(f"{took:.2f} s, {cpu_s:.2f} s of the processor, {watch.peak_bytes >> 20} MiB")
    return result


Told = tuple[str, bool, list[tuple[str, str]], str]
"""Code of the error (or empty), whether every problem has place and fix, what was said, the verdict (or empty)."""


@pytest.mark.parametrize("bad", CASES)
def test_bad_dataset(bad: Bad, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / bad.name
    bad.make(path)
    data = DataSection(sources=(str(path),), **bad.data)
    model = request.getfixturevalue("tiny_model_dir") if bad.data else None

    def read() -> Told:
        workspace = Workspace.at(tmp_path / secrets.token_hex(4))  # A fresh one: nothing is answered from a cache.
        try:
            if model is not None:
                report = Lens(workspace).report(RunConfig.parse({"model": {"id": str(model)}, "data": data.model_dump()}))
            else:
                report = inspect(data, workspace)
        except QloraUiError as error:
            is_complete = all(problem.fix and problem.where for problem in error.problems)
            return error.code, is_complete, [(problem.code, problem.sentence()) for problem in error.problems], ""
        return "", True, [(finding.code, finding.what) for finding in report.findings], report.verdict

    code, is_complete, told, verdict = limited(read)
    assert code == (bad.code if bad.is_error else "") and is_complete, told
    assert verdict == bad.verdict
    assert any(code == bad.code and bad.place.lower() in text.lower() for code, text in told), told
    assert not any("Traceback" in text or "Error:" in text for _, text in told)


@pytest.mark.parametrize(("number", "name", "text"), [pytest.param(*preset, id=preset[1]) for preset in PRESETS])
def test_bad_preset(number: int, name: str, text: str) -> None:
    def read() -> SettingsError:
        with pytest.raises(SettingsError) as refused:
            RunConfig.parse(read_yaml(text, "bad.yaml"))
        return refused.value

    assert all(problem.where and problem.what for problem in limited(read).problems)


@pytest.mark.parametrize("name", [name for _, name in PRESET_NAMES])
def test_a_preset_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    folder.mkdir()
    (tmp_path / "evil.yaml").write_text("lora:\n  rank: 4\n", encoding="utf-8")
    with pytest.raises(SettingsError):
        find_preset(name, folder)
    with pytest.raises(SettingsError):
        save_preset(name, "Evil", RunConfig(), folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("number", "name", "source", "code"), [pytest.param(*template, id=template[1]) for template in TEMPLATES])
def test_bad_template(number: int, name: str, source: str, code: str) -> None:
    def check() -> ModelError:
        with pytest.raises(ModelError) as refused:
            check_template(source)
        return refused.value

    error = limited(check)
    assert error.code == code and error.problems[0].fix


def test_a_template_is_as_long_at_most_as_a_model_folder_may_have_it() -> None:
    with pytest.raises(ModelError, match="longer than 64 KiB"):
        check_template("x" * (MAX_TEMPLATE_BYTES + 1))


def test_template_of_a_strict_model_passes() -> None:
    check_template("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] }}")
