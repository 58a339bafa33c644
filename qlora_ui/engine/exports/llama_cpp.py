"""llama.cpp's own converter, run as a child process: found on this machine, or fetched once from the PyPI package that ships it.

Nothing of it is in this project (it is MIT-licensed and large), and nothing of it is imported into the app.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from qlora_ui.base import children
from qlora_ui.base.errors import MissingExtra, RunError
from qlora_ui.base.files import sha256_of
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.runs.workspace import Workspace

PACKAGE = "llama-cpp-python==0.3.36"
PACKAGE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SENTENCEPIECE = "sentencepiece==0.2.2"
"""The converter reads SentencePiece vocabularies with it, and asks for it before it looks for one."""
VARIABLE = "LLAMA_CPP"
"""Environment variable with the folder of a llama.cpp checkout."""
MODEL_SCRIPT, LORA_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_KEPT = (MODEL_SCRIPT, LORA_SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")
POLL_S = 0.3


def find_converter(workspace: Workspace) -> Path | None:
    """The folder of llama.cpp's converter: LLAMA_CPP, else what was fetched; None where there is none."""
    given = os.environ.get(VARIABLE)
    for folder in (Path(given).expanduser() if given else None, _fetched(workspace)):
        if folder is not None and (folder / MODEL_SCRIPT).is_file():
            return folder
    return None


def converter(workspace: Workspace, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The folder of the converter, fetched (77 MB) where it is not there; raises MissingExtra where it cannot be had."""
    found = find_converter(workspace)
    if found is not None:
        if found == _fetched(workspace):
            _add_sentencepiece(found, workspace, is_cancelled)
        return found
    on_progress("Fetching llama.cpp's converter (77 MB, once)", None)
    target = _fetched(workspace)
    with tempfile.TemporaryDirectory(dir=workspace.temp) as folder:
        staged = Path(folder)
        # The source package: the wheels do not hold the converter. pip looks into it for its metadata and builds nothing.
        _pip(["download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(staged / "sdist"), PACKAGE], is_cancelled)
        archive = next((staged / "sdist").glob("*.tar.gz"))
        if sha256_of(archive) != PACKAGE_SHA256:
            raise MissingExtra(f"The package {PACKAGE} is not the one that was published.", fix="Try again later.", code="export-converter")
        _unpack(archive, staged / "llama.cpp")
        _add_sentencepiece(staged / "llama.cpp", workspace, is_cancelled)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged / "llama.cpp", target)
    return target


def convert_model(
    converter_folder: Path, model: Path, target: Path, *, outtype: str, name: str, on_progress: OnProgress, is_cancelled: IsCancelled
) -> None:
    """Write a model folder as one GGUF file (`f16`, `bf16` or `q8_0`)."""
    words = [str(converter_folder / MODEL_SCRIPT), str(model), "--outfile", str(target), "--outtype", outtype, "--model-name", name]
    _run_script(converter_folder, words, on_progress, is_cancelled)


def convert_lora(
    converter_folder: Path, adapter: Path, target: Path, *, base: Path, on_progress: OnProgress, is_cancelled: IsCancelled
) -> None:
    """Write an adapter folder as a GGUF LoRA file in f16."""
    words = [str(converter_folder / LORA_SCRIPT), str(adapter), "--base", str(base), "--outfile", str(target), "--outtype", "f16"]
    _run_script(converter_folder, words, on_progress, is_cancelled)


def _fetched(workspace: Workspace) -> Path:
    return workspace.cache / "llama.cpp-0.3.36"


def _add_sentencepiece(folder: Path, workspace: Workspace, is_cancelled: IsCancelled) -> None:
    """Install it beside the converter where this Python has none; one made for another Python stops the converter."""
    target = _extra(folder)
    if find_spec("sentencepiece") is not None or target.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=workspace.temp) as staged:
        _pip(["install", "--no-deps", "--target", str(Path(staged) / "extra"), SENTENCEPIECE], is_cancelled)
        os.replace(Path(staged) / "extra", target)


def _extra(folder: Path) -> Path:
    return folder / f"extra-{sys.implementation.cache_tag}"


def _unpack(archive: Path, target: Path) -> None:
    """The converter's files out of the source package; names are checked, links left out."""
    with tarfile.open(archive, "r:gz") as package:
        for member in package:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and inner.startswith(_KEPT) and ".." not in Path(inner).parts:
                package.extract(member.replace(name=inner), target, set_attrs=False, filter="data")


def _pip(words: Sequence[str], is_cancelled: IsCancelled) -> None:
    command = [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "--no-input", "--quiet"]
    code, last = _run(command, dict(os.environ), lambda: None, is_cancelled)
    if code:
        raise MissingExtra(
            "llama.cpp's converter could not be fetched.",
            why=last or "The package index could not be reached.",
            fix=f"Connect to the network once, or set {VARIABLE} to the folder of a llama.cpp checkout.",
            code="export-converter",
        )


def _run_script(folder: Path, words: Sequence[str], on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    paths = [str(folder / "gguf-py"), str(_extra(folder))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    began = time.monotonic()
    code, last = _run(
        [sys.executable, *words], environment, lambda: on_progress(f"Writing GGUF ({time.monotonic() - began:.0f} s)", None), is_cancelled
    )
    if code:
        raise RunError(
            "llama.cpp's converter refused the model.",
            why=last,
            fix="Export it as a whole model instead; a newer llama.cpp (set LLAMA_CPP to its folder) may know it.",
            code="export-gguf",
        )


def _run(command: list[str], environment: dict[str, str], tick: Callable[[], object], is_cancelled: IsCancelled) -> tuple[int, str]:
    """Exit code and last line of a child process, stopped when the user says so."""
    with tempfile.TemporaryFile() as said:
        with children.child(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT) as child:
            while child.poll() is None:
                stop_if(is_cancelled, "The export")
                tick()
                time.sleep(POLL_S)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return child.returncode, lines[-1][:300] if lines else ""
