"""Known failures as a run's last event tells them: in plain words, with changes that would help."""

from __future__ import annotations

import gc
import logging
import secrets
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from qlora_ui.base.errors import QloraUiError, sentences
from qlora_ui.base.files import DISK_FULL, disk_in_words
from qlora_ui.base.units import format_bytes
from qlora_ui.runs.events import Failed
from qlora_ui.settings.run_config import RunConfig, option_by_path

T = TypeVar("T")
log = logging.getLogger(__name__)

_DISK_WORDS = ("inline_container", "PytorchStreamWriter failed", "No space left", "os error 28", "File too large", "Disk quota exceeded")
PROCESS_LOST = "process-lost"
_PEER_WORDS = ("Connection closed by peer", "Connection reset by peer", "NCCL", "gloo", "Socket Timeout", "Broken pipe")
_CARD_WORDS = ("device-side assert", "illegal memory access", "unspecified launch failure", "CUDA error: unknown", "GPU is lost", "Xid")


class StopRun(Exception):
    """The user asked for an end at once; raised where the trainer has no way to stop, and known to the job only."""


class NonFinite(Exception):
    """Loss or gradient is not a number; raised before the optimizer would have written it into the adapter."""

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        self.step, self.loss, self.grad_norm = step, loss, grad_norm
        super().__init__(f"step {step}: loss {loss}, gradient norm {grad_norm}")


@dataclass(frozen=True, slots=True)
class AtOnce:
    """What was worked on at once when it failed: less than the settings say where memory had run out before."""

    batch_size: int
    longest_tokens: int
    """Of the conversations as they are trained on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the card ran out of memory, or the CPU's allocator, which has no class of its own for it and other words on Windows."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space; torch and safetensors say it in words of their own."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    if isinstance(error, QloraUiError):
        return error.code == "disk-full"
    return any(words in str(error) for words in _DISK_WORDS)


def is_lost_process(error: BaseException) -> bool:
    """Whether the processes of a run could not talk to each other, as when one of them has ended."""
    if isinstance(error, QloraUiError):
        return error.problems[0].code == PROCESS_LOST
    if torch.distributed.is_available() and isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _PEER_WORDS)


def describe(error: BaseException, config: RunConfig | None, at_once: AtOnce | None = None) -> Failed:
    """What happened, why, what to do; anything unknown is a bug of ours and gets an id to find it by.

    `at_once` is None before there was anything to train.
    """
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, QloraUiError):
        problem = error.problems[0]
        rest = [item.sentence() for item in error.problems[1:]]
        # A place in a file is part of what happened; an option is named by the words themselves.
        place = f"{problem.where}: " if problem.where and problem.where not in option_by_path() else ""
        return Failed(
            code=problem.code or error.code,
            what=f"{place}{problem.what}",
            why=problem.why,
            fix=sentences(problem.fix, *rest) if rest else problem.fix,
            suggestions=getattr(error, "suggestions", []),
        )
    if isinstance(error, NonFinite):
        return _non_finite(error, config)
    if is_out_of_memory(error):
        return _out_of_memory(error, config, at_once, trace)
    if is_disk_full(error):
        return Failed(
            code="disk-full",
            what="The disk is full.",
            why="A file of the run could not be written; checkpoints that were whole before still are",
            fix="Free some space and continue the run",
            traceback=trace,
        )
    if told := disk_in_words(error):
        problem = told.problems[0]
        return Failed(
            code=problem.code,
            what=problem.what,
            why=problem.why,
            fix=f"{problem.fix}. Continue takes the run up from its last checkpoint",
            traceback=trace,
        )
    if any(words in str(error) for words in _CARD_WORDS):
        return Failed(
            code="card-lost",
            what="The graphics card stopped answering this app.",
            why=str(error).splitlines()[0][:200],
            fix="Restart the app, then continue the run from its last checkpoint",
            traceback=trace,
        )
    if is_lost_process(error):
        said = str(error).splitlines()[0].split(". ")[0][:200]
        return Failed(
            code=PROCESS_LOST,
            what="Another process of this run has ended.",
            why="It left no reason: it was killed, as the system does when main memory runs out, or its computer cannot be reached "
            f"({said})",
            fix="Continue takes the run up from its last checkpoint; where it happens again, run.log in its folder may say more",
            traceback=trace,
        )
    mark = secrets.token_hex(4)
    return Failed(
        code="bug",
        what=f"Something went wrong that should not have ({type(error).__name__}, id {mark}).",
        why=str(error).splitlines()[0][:300] if str(error) else "",
        fix="Continue tries again from the last checkpoint; the details below help to report it",
        traceback=trace,
    )


def forget(error: BaseException | None) -> None:
    """Let go of everything that an exception holds: its frames keep a whole model in memory for as long as it is kept."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        following = error.__cause__ or error.__context__
        error.__cause__ = error.__context__ = None
        error = following
    gc.collect()


def attempt(what: str, step: Callable[[], T]) -> T | None:
    """Do one thing of an ending, logged as `what` and None where it fails: the rest of the ending must come all the same.

    On a lost card every call fails, the freeing of its memory too, and on a full disk every write.
    """
    try:
        return step()
    # Part of the job's boundary: the failure to tell is the one that came first.
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, str(error)[:300])
        forget(error)
        return None


def make_room(config: RunConfig, at_once: AtOnce) -> list[dict[str, Any]]:
    """Three changes that need less memory than what was worked on at once, the one that costs least first."""
    ideas: list[dict[str, Any]] = []
    if at_once.batch_size > 1:
        is_even = at_once.batch_size % 2 == 0
        size = at_once.batch_size // 2 if is_even else 1
        label = "Half as many conversations at once, added up twice as often" if is_even else "One conversation at once, added up instead"
        values = {"train.batch_size": size, "train.accumulation": config.train.batch_size * config.train.accumulation // size}
        ideas.append({"label": label, "values": values})
    if config.train.checkpointing != "all":
        ideas.append({"label": "Recompute every layer", "values": {"train.checkpointing": "all", "train.kept_layers": 0}})
    if at_once.longest_tokens > 64:
        shorter = max(at_once.longest_tokens // 2, 64)
        ideas.append({"label": f"Cut conversations at {shorter} tokens", "values": {"data.max_length": shorter}})
    if config.lora.rank > 8:
        ideas.append({"label": f"Adapter size {config.lora.rank // 2}", "values": {"lora.rank": config.lora.rank // 2}})
    if not config.quant.double_quant:
        ideas.append({"label": "Compress the scales too", "values": {"quant.double_quant": True}})
    if config.train.optimizer in ("adamw", "adamw_fp32"):
        ideas.append({"label": "8-bit optimizer", "values": {"train.optimizer": "paged_adamw_8bit"}})
    return ideas[:3]


def _out_of_memory(error: BaseException, config: RunConfig | None, at_once: AtOnce | None, trace: str) -> Failed:
    where = "card" if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available() else "machine"
    # On a card that others have filled even the question can fail.
    info = attempt("free memory of the card", torch.cuda.mem_get_info) if torch.cuda.is_available() else None
    free = f"; {format_bytes(info[0])} were free" if info else ""
    if at_once is None or config is None:
        return Failed(
            code="out-of-memory",
            what=f"The {where} ran out of memory before the training began.",
            why=f"The model and the data alone need more than there is{free}",
            fix="Choose a smaller model, or close other programs that use the memory",
            traceback=trace,
        )
    ideas = make_room(config, at_once)
    size = at_once.batch_size
    return Failed(
        code="out-of-memory",
        what=f"The {where} ran out of memory, even for {'one conversation' if size == 1 else f'{size} conversations'} at a time.",
        why=f"The longest conversations need more than there is{free}",
        fix="One of the changes below makes it smaller",
        suggestions=ideas,
        traceback=trace,
    )


def _non_finite(error: NonFinite, config: RunConfig | None) -> Failed:
    lower = (config.train.learning_rate if config else 2e-4) / 2
    suggestions = [{"label": f"Half the learning rate ({lower:g})", "values": {"train.learning_rate": lower}}]
    if config and config.train.max_grad_norm > 0.3:
        suggestions.append({"label": "Clip gradients at 0.3", "values": {"train.max_grad_norm": 0.3}})
    return Failed(
        code="not-a-number",
        what=f"Training stopped at step {error.step + 1}: the {'loss' if error.loss != error.loss else 'gradient'} is no number any more.",
        why="A step was too large, or a row is extreme; the adapter was not touched by it and the last good state is kept",
        fix="Start again with half the learning rate",
        suggestions=suggestions,
    )
