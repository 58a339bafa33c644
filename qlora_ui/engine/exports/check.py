"""Does the artefact answer as the chat did? Asked in a process of its own (`check_child`), from the files alone."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qlora_ui.base import children
from qlora_ui.base.errors import RunError
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if

NUM_PROMPTS = 20
PROMPT_TOKENS = 512
POLL_S = 0.3
SHORT_OF_MEMORY = 77
"""Exit status of a child that ran out of memory and could say so."""
NO_CHAT = 78
"""Exit status of a child in which the chat's own model could not be asked."""
NOT_READ = 79
"""Exit status of a child whose reader of GGUF, which knows less than llama.cpp, could not make a model of a whole file."""
READABLE_GGUF = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
"""Model types whose GGUF files transformers reads."""


class ShortOfMemory(RunError):
    """The artefact could not be compared because memory ended; it says nothing about the artefact."""

    code = "export-check-memory"


class NotCompared(RunError):
    """The comparison could not be made for a reason that says nothing about the artefact."""

    code = "export-check-impossible"


class DoesNotLoad(RunError):
    """The artefact could not be loaded, or not asked: it is no export."""

    code = "export-check"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How the artefact compares with the chat."""

    num_prompts: int
    num_equal: int
    """Prompts with the same greedy answer, to the last token."""
    mean_shared_share: float
    """Share of an answer's tokens up to the first difference, on average."""
    mean_logit_difference: float
    """Of the first answered token over the whole vocabulary, absolute."""
    max_logit_difference: float
    reader: str
    """The library that loaded the artefact."""
    duration_s: float

    @property
    def is_equal(self) -> bool:
        """Whether it counts as the chat's model: 19 of 20 answers, since rounding to 16 bits turns a close call now and then."""
        return self.num_equal >= 0.95 * self.num_prompts

    def sentence(self) -> str:
        """`Loaded anew, it gave the chat's answer on 19 of 20 prompts.`"""
        by = " by llama.cpp" if self.reader == "llama.cpp" else ""
        return f"Loaded anew{by}, it gave the chat's answer on {self.num_equal} of {self.num_prompts} prompts."


def check_artefact(
    kind: str,
    artefact: Path,
    *,
    base: Path,
    adapter: Path,
    config_path: Path,
    prompts: Sequence[Sequence[int]],
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> CheckResult:
    """Load the artefact (`adapter`, `merged` or `gguf`) in a child process and compare it with 4-bit base and adapter on token prompts.

    Raises DoesNotLoad where the artefact fails, ShortOfMemory where memory ended, and NotCompared where the chat's own model or the
    reader of GGUF fails, or the child is ended from outside.
    """
    request = {
        "kind": kind,
        "artefact": str(artefact),
        "base": str(base),
        "adapter": str(adapter),
        "config": str(config_path),
        "prompts": [list(ids)[-PROMPT_TOKENS:] for ids in prompts],
    }
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as trouble:
        code = _run_child(request, said, trouble, on_progress, is_cancelled)
        lines, last = _lines(said), _lines(trouble)[-1:]
    # Without the class of the exception in front: `safetensors.SafetensorError: incomplete metadata`.
    said_last = re.sub(r"^[\w.]+: ", "", last[0])[:300] if last else ""
    if code in (SHORT_OF_MEMORY, -9):  # killed; Windows has no name for it
        raise ShortOfMemory("there was too little free memory to load it beside the app")
    if code == NO_CHAT:
        raise NotCompared(f"the chat's own model could not be asked: {said_last}")
    if code == NOT_READ:
        raise NotCompared(f"the file is whole, but transformers, which is not made for it as llama.cpp is, could not read it: {said_last}")
    if code < 0:
        raise NotCompared(f"the checking process was ended from outside or broke down (signal {-code})")
    if code or not lines:
        raise DoesNotLoad(
            "What was made could not be loaded again, so it was not kept.",
            why=f"The check said: {said_last}" if said_last else "The checking process ended without a word.",
            fix="Try again. If it stays so, the run's adapter is damaged: continue the run.",
        )
    return CheckResult(**json.loads(lines[-1]))


def _run_child(request: dict[str, Any], said: IO[bytes], trouble: IO[bytes], on_progress: OnProgress, is_cancelled: IsCancelled) -> int:
    """The exit status of the checking process, which is killed when the user cancels."""
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-P", "-m", "qlora_ui.engine.exports.check_child"]
    with tempfile.TemporaryFile() as asked:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        with children.child(command, env=environment, stdin=asked, stdout=said, stderr=trouble) as child:
            while child.poll() is None:
                stop_if(is_cancelled, "The check of the export")
                on_progress("Checking that it answers as the chat does", None)
                time.sleep(POLL_S)
    return child.returncode


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode("utf-8", "replace").strip().splitlines()
