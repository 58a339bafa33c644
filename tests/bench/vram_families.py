"""The closed form against the precise check over drawn settings and published shapes of every family; no card, no weights.

    python tests/bench/vram_families.py --seed 1 --count 40 [--family gemma2] [--out FILE]

Each simulation is forked from one process that has imported the libraries, which saves most of a check's time. Both figures leave the CUDA
context out: it is the same in both and would only make errors look smaller.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]


def shape(model_type: str, hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> Row:  # noqa: PLR0917
    """A config.json's keys."""
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "max_position_embeddings": 131072, **more,
    }  # fmt: skip


SHAPES: dict[str, Row] = {
    "llama-3.2-1b": shape("llama", 2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    "llama-3.1-8b": shape("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-2-7b": shape("llama", 4096, 11008, 32, 32, 32, 32000),
    "smollm2-135m": shape("llama", 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "smollm2-1.7b": shape("llama", 2048, 8192, 24, 32, 32, 49152, tie_word_embeddings=True),
    "smollm3-3b": shape("smollm3", 2048, 11008, 36, 16, 4, 128256, tie_word_embeddings=True),
    "qwen2-7b": shape("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-0.5b": shape("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "qwen2.5-14b": shape("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "qwen3-0.6b": shape("qwen3", 1024, 3072, 28, 16, 8, 151936, tie_word_embeddings=True, head_dim=128),
    "qwen3-8b": shape("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
    "mistral-7b-v0.1": shape("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096),
    "mistral-7b-v0.3": shape("mistral", 4096, 14336, 32, 32, 8, 32768, sliding_window=None),
    "gemma-2b": shape("gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256),
    "gemma2-2b": shape("gemma2", 2304, 9216, 26, 8, 4, 256000, head_dim=256),
    "gemma2-9b": shape("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256),
    "gemma3-270m": shape("gemma3_text", 640, 2048, 18, 4, 1, 262144, head_dim=256, sliding_window=512),
    "gemma3-1b": shape("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, sliding_window=512),
    "phi-3-mini": shape("phi3", 3072, 8192, 32, 32, 32, 32064, sliding_window=2047),
    "phi-4": shape("phi3", 5120, 17920, 40, 40, 10, 100352),
    "phi-4-mini": shape("phi3", 3072, 8192, 32, 24, 8, 200064, tie_word_embeddings=True, partial_rotary_factor=0.75),
}  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    "train.batch_size": (1, 2, 4, 8, 16),
    "data.max_length": (256, 512, 768, 1024, 2048, 3072, 4096, 8192),
    "train.checkpointing": ("none", "partly", "all", "all"),
    "train.packing": ("auto", "off"),
    "train.fast_path": ("auto", "off"),
    "train.optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    "train.accumulation": (1, 4),
    "lora.rank": (8, 16, 32, 64, 128),
    "lora.dropout": (0.0, 0.05),
    "lora.rslora": (False, True),
    "lora.dora": (False,) * 7 + (True,),
    "lora.modules_to_save": ("",) * 8 + ("lm_head", "embed_tokens"),
    "lora.targets": ("all-linear",) * 4 + ("q_proj,v_proj", "q_proj,k_proj,v_proj,o_proj"),
    "quant.double_quant": (True, True, False),
    "quant.compute_dtype": ("auto",) * 9 + ("float16",),
    "eval.share": (0.0, 0.1),
    "eval.batch_size": (1, 4, 8),
}
MOST_TOKENS = 16384
"""Of a micro-batch: more than that fits no card with most of these models."""


def drawn(draw: random.Random, family: str | None) -> Row:
    """One configuration: model, card and what differs from the defaults."""
    names = [name for name, config in SHAPES.items() if family in (None, config["model_type"])]
    model = draw.choice(names)
    while True:
        changes = {path: draw.choice(values) for path, values in CHOICES.items()}
        if max(changes["train.batch_size"], changes["eval.batch_size"]) * changes["data.max_length"] <= MOST_TOKENS:
            break
    layers = SHAPES[model]["num_hidden_layers"]
    changes["train.kept_layers"] = draw.randint(1, layers - 1) if changes["train.checkpointing"] == "partly" else 0
    if SHAPES[model]["model_type"] == "phi3":
        changes["lora.targets"] = {"q_proj,v_proj": "qkv_proj", "q_proj,k_proj,v_proj,o_proj": "qkv_proj,o_proj"}.get(
            changes["lora.targets"], changes["lora.targets"]
        )
    return {"model": model, "card": draw.choice(("RTX 4090", "H100", "H100", "T4")), "changes": changes}


def compare(item: Row) -> Row:
    """Both figures of a configuration."""
    from qlora_ui.engine.simulate import simulate
    from qlora_ui.estimate.check import replay, request_of
    from qlora_ui.estimate.memory import estimate_memory, process_overhead
    from qlora_ui.estimate.trace import Depth, Trace
    from qlora_ui.estimate.workload import workload_of
    from qlora_ui.hardware.devices import named_device
    from qlora_ui.models.architecture import facts_from_config
    from qlora_ui.settings.run_config import RunConfig

    facts, device = facts_from_config(SHAPES[item["model"]]), named_device(item["card"])
    config = RunConfig().changed(item["changes"])
    work = workload_of(facts, config, device)
    closed = estimate_memory(facts, config, device)
    depth = Depth.of(facts.num_layers - work.kept_layers, work.kept_layers)
    began = time.monotonic()
    trace = Trace.from_dict(simulate(request_of(facts, config, work, depth)).as_dict())
    simulated = time.monotonic()
    checked = replay(trace, depth, facts, config, device, work)
    overhead = process_overhead(device, work)
    ours = closed.total_bytes - overhead.context_bytes
    theirs = checked.total_bytes - overhead.context_bytes
    return {
        **item,
        "is_fast": work.is_fast,
        "is_packed": work.is_packed,
        "moment": closed.moment,
        "closed_bytes": ours,
        "checked_bytes": theirs,
        "error": round(ours / theirs - 1, 4),
        "allocated_error": round((closed.allocated_bytes + overhead.workspace_bytes) / checked.allocated_bytes - 1, 4),
        "parts_mib": {name: size >> 20 for name, size in closed.parts.items()},
        "simulate_s": round(simulated - began, 2),
        "replay_s": round(time.monotonic() - simulated, 2),
    }


def forked(item: Row) -> Row | None:
    """`compare` in a process of its own; None where that process died."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(compare(item)))
    child.start()
    theirs.close()
    try:
        row: Row | None = ours.recv()
    except EOFError:
        row = None
    child.join()
    return row


def show(row: Row) -> None:
    """A line for the eye."""
    path = ("fast" if row["is_fast"] else "plain") + (" packed" if row["is_packed"] else " padded")
    c = row["changes"]
    rows = f"{c['train.batch_size']}x{c['data.max_length']}"
    rest = {
        k.split(".")[1]: v
        for k, v in c.items()
        if k not in ("train.batch_size", "data.max_length", "train.packing", "train.fast_path", "lora.rslora")
    }
    print(f"{row['error']:+.1%} alloc {row['allocated_error']:+.1%} {row['model']} {rows} {row['card']} {path} {row['moment']} "
          f"{row['closed_bytes'] >> 20}/{row['checked_bytes'] >> 20} {rest}", flush=True)  # fmt: skip


def main() -> int:
    """Compare as many configurations as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--family")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    rows: list[Row] = []
    items = [drawn(draw, arguments.family) for _ in range(arguments.count)]
    import qlora_ui.engine.simulate  # noqa: F401

    for item in items:
        row = forked(item)
        if row is None:
            print("the process died:", item, flush=True)
            continue
        rows.append(row)
        show(row)
    errors = sorted(abs(row["error"]) for row in rows)
    summary = {
        "rows": len(rows),
        "median": statistics.median(errors),
        "worst": errors[-1],
        "over_7_pct": sum(error > 0.07 for error in errors),
    }
    print(summary)
    if arguments.out:
        arguments.out.write_text(json.dumps({"seed": arguments.seed, **summary, "configurations": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
