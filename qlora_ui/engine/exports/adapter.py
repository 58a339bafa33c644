"""The adapter as itself: weights and settings without a trace of this machine, with tokenizer, template and card."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

from qlora_ui.base.errors import ModelError, RunError
from qlora_ui.base.files import write_json
from qlora_ui.models.catalogue import public_name
from qlora_ui.models.folder import PICKLES, read_header
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS
from qlora_ui.runs.workspace import Workspace

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
_MACHINE_KEYS = ("is_local", "local_files_only", "name_or_path")
_TEXTS = (".json", ".md", ".jinja", ".txt", ".yaml", "")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
_FOLDERS = ("runs", "models", "datasets", "presets", "temp", "trash", "cache")
"""Folders of a workspace."""
_HOME = (".cache", ".local")
"""Folders of a home in which models and workspaces lie."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_BEFORE, _BEHIND = rb"(?<![\w./\\-])", rb"(?=[\"'`\s/\\]|$)"
"""What stands around a path that is not part of a longer one or of a word."""
_CHUNK_BYTES = 1 << 24


def copy_adapter(adapter: Path, model_id: str, out: Path) -> None:
    """Write the adapter in a folder to `out`, its base named as others know it."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
    stored = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in stored.items() if name not in _MACHINE_KEYS}
    settings["base_model_name_or_path"] = public_name(model_id)
    write_json(out / "adapter_config.json", settings)
    for name in _TOKENIZER:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)
    clean_tokenizer(out)


def clean_tokenizer(folder: Path) -> None:
    """Take out of tokenizer_config.json what only says where it was loaded from."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {name: value for name, value in settings.items() if name not in _MACHINE_KEYS})


def refuse_leaks(out: Path, workspace: Workspace, *more: str) -> None:
    """Raise RunError where a file of an export holds a path of this machine, a token, or is a pickle: a last look at all of it."""
    home, root = str(Path.home()), str(workspace.root)
    # `/config` or `/data`, as containers have them, is a word of many vocabularies: there only what lies inside tells.
    short = {trace for trace in (root, home, *more) if _num_folders(trace) == 1}
    inside = [os.path.join(folder, name) for folder, names in ((root, _FOLDERS), (home, _HOME)) if folder in short for name in names]
    needles = _as_written([trace for trace in (root, home, *more, *inside) if _num_folders(trace) > 1])
    alone = [re.compile(_BEFORE + re.escape(trace) + _BEHIND) for trace in _as_written(short)]
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        if file.suffix in PICKLES:
            raise _leak(file, "It is a pickle, a format that can run code")
        if needles and _holds(file, needles):
            raise _leak(file, "It names a folder of this computer")
        if file.suffix not in _TEXTS:
            continue
        text = file.read_bytes()
        if file.name not in _VOCABULARIES and any(pattern.search(text) for pattern in alone):
            raise _leak(file, "It names a folder of this computer")
        if _TOKEN.search(text):
            raise _leak(file, "It holds something that looks like a Hub token")


def _num_folders(path: str) -> int:
    """How deep a folder lies: 1 for `/data`, 2 for `/home/jane`."""
    return len(Path(path).parts) - 1


def _as_written(paths: Iterable[str]) -> list[bytes]:
    """The paths as they stand in a text and in JSON."""
    return sorted({form.encode() for path in paths for form in (path, json.dumps(path)[1:-1])})


def _holds(file: Path, needles: list[bytes]) -> bool:
    keep = max(map(len, needles)) - 1
    tail = b""
    left = _text_bytes(file)
    with file.open("rb") as stream:
        while chunk := stream.read(min(_CHUNK_BYTES, left)):
            left -= len(chunk)
            window = tail + chunk
            if any(needle in window for needle in needles):
                return True
            tail = window[-keep:]
    return False


def _text_bytes(file: Path) -> int:
    """How much of a file may hold text: of whole safetensors files the header, behind which there are only numbers, else everything.

    Searching 16 GB of weights took three quarters of the time of a merge.
    """
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size
    try:
        numbers = max((entry["data_offsets"][1] for entry in read_header(file).values()), default=0)
    except ModelError:
        return size
    with file.open("rb") as stream:
        header = 8 + struct.unpack("<Q", stream.read(8))[0]
    return header if header + numbers == size else size


def _leak(file: Path, why: str) -> RunError:
    return RunError(
        f"The export was withdrawn: {file.name} is not fit to be given away.", why=why, fix="Report this; it is a bug.", code="export-leak"
    )
