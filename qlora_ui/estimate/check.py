"""The precise check: the model's real code, run in a child process on tensors without data, and the allocator replayed over its record.

Slower than the closed form (seconds instead of microseconds) and right where that is unsure. Needs no card and no weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_ui.base import children
from qlora_ui.base.errors import HardwareError
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.estimate.adapter import adapter_of
from qlora_ui.estimate.allocator import CachingAllocator
from qlora_ui.estimate.memory import beside_the_graph, load_reserved_bytes, padding_slack, process_overhead
from qlora_ui.estimate.trace import Depth, Trace, extended
from qlora_ui.estimate.workload import DataShape, Workload, workload_of
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import optimizer_on

TIMEOUT_S, USUAL_S, LOOK_S = 300, 7.0, 0.1
_MODULE = "qlora_ui.engine.simulate"


@dataclass(frozen=True, slots=True)
class CheckedMemory:
    """What the check found."""

    total_bytes: int
    """What the card will show for this process; of a processor, what all processes of the run take together."""
    allocated_bytes: int
    reserved_bytes: int
    seconds: float = 0.0
    """What the check took."""


def check_memory(  # noqa: PLR0917
    facts: ModelFacts,
    config: RunConfig,
    device: DeviceProfile,
    data: DataShape | None = None,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> CheckedMemory:
    """Run the check; a few seconds on two cores. Raises HardwareError where the child process fails, Cancelled where it is stopped."""
    began = time.monotonic()
    work = workload_of(facts, config, device, data)
    depth = Depth.of(facts.num_layers - work.kept_layers, work.kept_layers)
    trace = run_simulation(request_of(facts, config, work, depth), on_progress, is_cancelled)
    found = replay(trace, depth, facts, config, device, work)
    return replace(found, seconds=time.monotonic() - began)


def request_of(facts: ModelFacts, config: RunConfig, work: Workload, depth: Depth) -> dict[str, Any]:
    """What the child is asked, as plain data."""
    kept_run = depth.num_kept_run(work.kept_layers)
    return {
        "config": config.to_nested(),
        "model": model_config(facts),
        "num_layers": depth.num_run,
        "kept_layers": kept_run,
        "dtype": work.dtype,
        "adapter_bytes": work.adapter_bytes,
        "dropout": config.lora.dropout,
        "rows": work.num_rows,
        "row_tokens": work.row_tokens,
        "eval_rows": work.eval_rows,
        "eval_row_tokens": work.eval_row_tokens,
        "trained_share": work.trained_share,
        "is_cpu": work.is_cpu,
        "is_packed": work.is_packed,
        "is_fast": work.is_fast,
        "is_eager": work.on_plain_path().is_eager,
        "has_flash": work.has_flash,
        "attention": "cpu" if work.is_cpu else "math" if work.attention == "math" else "fused",
        "accumulates": config.train.accumulation > 1,
        "optimizer": optimizer_on(config, is_cpu=work.is_cpu),
    }


def model_config(facts: ModelFacts) -> dict[str, Any]:
    """The arguments of transformers' configuration class that decide shapes."""
    names = {linear.name: linear for linear in facts.linears}
    values: dict[str, Any] = {
        "model_type": facts.model_type,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_kv_heads,
        "head_dim": facts.head_dim,
        "vocab_size": facts.vocab_size,
        "tie_word_embeddings": facts.is_tied,
        "max_position_embeddings": facts.context_tokens,
        "sliding_window": facts.sliding_window,
        "use_sliding_window": facts.sliding_window is not None,
    }
    if facts.model_type in ("llama", "smollm3", "qwen3", "gemma", "gemma2", "gemma3_text"):
        values["attention_bias"] = names["o_proj"].has_bias
    if facts.model_type in ("llama", "smollm3"):
        values["mlp_bias"] = names["down_proj"].has_bias
    if facts.rotary_dim is not None:
        values["partial_rotary_factor"] = facts.rotary_dim / facts.head_dim
    if facts.model_type == "phi3":
        # Its own defaults lie beyond the vocabularies of small test models.
        values |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        del values["head_dim"]
    if facts.model_type.startswith("gemma"):
        values["hidden_activation"] = facts.activation
        values["query_pre_attn_scalar"] = facts.head_dim
    if facts.model_type in ("gemma2", "gemma3_text"):
        values["attn_logit_softcapping"] = facts.attention_softcap
        values["final_logit_softcapping"] = facts.logit_softcap
    return values


def run_simulation(request: dict[str, Any], on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Trace:
    """The child's record; raises HardwareError with its last words where it fails, Cancelled where it is stopped."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        command, root = [sys.executable, "-m", _MODULE], Path(__file__).parents[2]
        try:
            with children.child(command, stdin=asked, stdout=answer, stderr=words, env=environment, cwd=root) as child:
                _wait(child, on_progress, is_cancelled)
        except OSError as error:
            raise _failed(str(error)) from None
        answer.seek(0)
        words.seek(0)
        if child.returncode != 0:
            lines = words.read().decode("utf-8", "replace").strip().splitlines()
            raise _failed(lines[-1] if lines else f"exit code {child.returncode}")
        return Trace.from_dict(json.loads(answer.read()))


def _wait(child: subprocess.Popen[bytes], on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
    """Until the child ends; how far it is, is known by the clock alone."""
    began = time.monotonic()
    while child.poll() is None:
        stop_if(is_cancelled, "The check of the memory")
        took = time.monotonic() - began
        if took > TIMEOUT_S:
            raise _failed(f"it took longer than {TIMEOUT_S} seconds")
        on_progress("Running the model's own code without data", min(took / USUAL_S, 0.95))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_S)


def _failed(why: str) -> HardwareError:
    return HardwareError(
        "The check of the memory could not be made.", why=why[:300], fix="The estimate without the check still holds.", code="check-failed"
    )


def _beyond_the_record(facts: ModelFacts, config: RunConfig, work: Workload, evaluation_bytes: int) -> int:
    """What fast runs reserve beyond their record, as 31 of them on an H200 did (`tests/bench/results/vram-H200.json`).

    An adapter's size, for a reason that was not found (plain runs do not); and what the closed form, which was fitted to a card, has for an
    evaluation beside the graph and the record has not.
    """
    adapter = adapter_of(facts, config.lora)
    return adapter.num_params * work.adapter_bytes + max(beside_the_graph(facts, config, adapter, work) - evaluation_bytes, 0)


def replay(  # noqa: PLR0917
    trace: Trace, depth: Depth, facts: ModelFacts, config: RunConfig, device: DeviceProfile, work: Workload
) -> CheckedMemory:
    """The record at full depth through the allocator, as a run goes: load, step eagerly, capture in a pool of its own, evaluate."""
    overhead = process_overhead(device, work)
    main, pool = CachingAllocator(device.grows_segments), CachingAllocator(device.grows_segments)
    static = peak_reserved = peak_allocated = 0
    main.allocate("workspaces", overhead.workspace_bytes)
    for key, size in extended(trace, depth):
        # A captured step's tensors live in the graph's own pool, which stays reserved when the step is over.
        captured = work.is_fast and key.segment.step in ("first", "second")
        allocator = pool if captured else main
        if size is None:
            allocator.free(key)
        else:
            allocator.allocate(key, size)
            if key.segment.step == "setup":
                static += -(-size // 512) * 512
        peak_reserved = max(peak_reserved, main.reserved_bytes + pool.reserved_bytes)
        peak_allocated = max(peak_allocated, main.allocated_bytes + pool.allocated_bytes)
    if work.has_mask and not device.grows_segments:
        peak_reserved += padding_slack(facts, work)
    if work.is_fast:
        peak_reserved += _beyond_the_record(facts, config, work, main.peak_allocated_bytes - static - overhead.workspace_bytes)
    reserved = max(peak_reserved, load_reserved_bytes(facts, config, work))
    found = (reserved + overhead.context_bytes, peak_allocated, reserved)
    return CheckedMemory(*(work.num_sharing * num_bytes for num_bytes in found))
