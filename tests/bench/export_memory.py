"""Time and memory of every export for models of published shapes with random weights, beside what the plan said before.

    python tests/bench/export_memory.py measure --model qwen2.5-1.5b --models /dev/shm/models --tokenizer DIR --out small.json
    python tests/bench/export_memory.py measure --model llama-3.1-8b --cap-gib 6 --models /dev/shm/models --tokenizer DIR --out large.json
    python tests/bench/export_memory.py combine small.json large.json --out tests/bench/results/exports-H100.json

`--tokenizer` is a folder with a tokenizer that llama.cpp's converter knows (the built-in model's). `--cap-gib` lets the process have
that much of the card, or of main memory (RLIMIT_DATA) where there is no card. Main memory is what the process and its children hold
for themselves (RssAnon), sampled 50 times a second: pages of mapped files are the system's to take back. What no time is left for is
named in the result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from vram_models import SHAPES, make_model  # noqa: E402

FORMS = ("adapter", "merged-dequantized", "merged-original", "gguf-q8_0", "gguf-lora", "gguf-f16", "ollama")
CHECKED = ("adapter", "merged-dequantized")
RANK = 16
# To try the bench where there is no card: a vocabulary large enough for the real tokenizer.
SHAPES["tiny"] = {**SHAPES["tiny"], "vocab_size": 49160}
Row = dict[str, Any]


@dataclass
class Sampler:
    """The most memory that this process and its children hold at a time, by phase."""

    phase: str = "making"
    peaks: dict[str, int] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Sample until `stop`."""
        while not self._ended.wait(0.02):
            held = sum(map(_anonymous_bytes, [psutil.Process(), *psutil.Process().children(recursive=True)]))
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), held)

    def stop(self) -> None:
        self._ended.set()


def _anonymous_bytes(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


@contextmanager
def sampled() -> Iterator[Sampler]:
    """A sampler that runs in a thread of its own."""
    sampler = Sampler()
    thread = threading.Thread(target=sampler.watch, daemon=True)
    thread.start()
    try:
        yield sampler
    finally:
        sampler.stop()
        thread.join()


def make_run(name: str, models: Path, tokenizer: Path, workspace: Any, device: str) -> None:
    """A finished run of the model with an adapter on every linear layer, as a job leaves it."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from qlora_ui.models.folder import read_folder
    from qlora_ui.runs.registry import create_run
    from qlora_ui.settings.run_config import RunConfig

    folder = make_model(name, models / name)
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in files:
        shutil.copyfile(tokenizer / file, folder / file)
    config = RunConfig().changed({"model.id": str(folder), "launch.device": device, "lora.rank": RANK})
    run = create_run(workspace, config)
    facts = read_folder(folder)
    tensors = {}
    for layer in range(facts.num_layers):
        for linear in facts.linears:
            block = "self_attn" if linear.block == "attention" else "mlp"
            place = f"base_model.model.model.layers.{layer}.{block}.{linear.name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, linear.num_in) * 0.01
            tensors[f"{place}.lora_B.weight"] = torch.randn(linear.num_out, RANK) * 0.01
    run.adapter.mkdir()
    save_file(tensors, run.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({linear.name.rpartition(".")[2] for linear in facts.linears})
    settings = LoraConfig(
        r=RANK, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM", base_model_name_or_path=str(folder)
    )
    settings.save_pretrained(run.adapter)
    for file in files:
        shutil.copyfile(folder / file, run.adapter / file)
    run.data.mkdir()
    turns = [[("user", f"Question {number}?"), ("assistant", f"Answer {number}.")] for number in range(24)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    (run.data / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def export_one(run: Any, form: str, workspace: Any, deadline: float, checked: Sequence[str]) -> Row:
    """One export: what was said before, what it took, and how it compared."""
    import torch

    from qlora_ui.base.errors import QloraUiError
    from qlora_ui.base.progress import Cancelled
    from qlora_ui.engine.exports.export import export_run, plan

    needs = plan(run, form, workspace)
    row: Row = {"format": form, "plan": {name: getattr(needs, name) for name in needs.__slots__}}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with sampled() as sampler:

        def tell(what: str, share: float | None) -> None:
            sampler.phase = "checking" if what.startswith("Checking") else sampler.phase
            row.setdefault("made_s", round(time.monotonic() - began, 1)) if sampler.phase == "checking" else None

        try:
            result = export_run(
                run,
                form,
                workspace,
                num_prompts=20 if form in checked else 0,
                on_progress=tell,
                is_cancelled=lambda: time.monotonic() > deadline,
            )
            row |= {"size_bytes": result.size_bytes, "note": result.note, "check": result.as_dict()["check"]}
            shutil.rmtree(result.path)
        except Cancelled:
            row["not_finished"] = "no time was left"
        except QloraUiError as error:
            row["not_finished"] = str(error)
    row.setdefault("made_s", round(time.monotonic() - began, 1))
    row |= {"total_s": round(time.monotonic() - began, 1), "peak_bytes": sampler.peaks}
    row["card_peak_bytes"] = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return row


def stream_one(run: Any, workspace: Any) -> Row:
    """Scores of the merged model read layer by layer, on rows of random tokens."""
    import torch

    from qlora_ui.engine.evaluate_models import MERGED_DEQUANTIZED, UnquantizedModels
    from qlora_ui.engine.evaluate_scores import EvalRow, score_rows
    from qlora_ui.engine.evaluate_streamed import streamed_bytes
    from qlora_ui.engine.load import training_device

    config = run.config()
    folder, device = Path(config.model.id), training_device(config)
    draws = torch.randint(3, 500, (16, 256), generator=torch.Generator().manual_seed(3)).tolist()
    rows = [EvalRow(ids, ids) for ids in draws]
    models = UnquantizedModels(folder, config, device, 8 * 10**9)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with models.by_layer(MERGED_DEQUANTIZED, run.adapter, rows, lambda done, total: None) as model:
        scores = score_rows(model, rows, device)
    return {
        "rows": len(rows),
        "tokens_a_row": len(draws[0]),
        "loss": scores.loss,
        "needed_bytes": streamed_bytes(folder, models.dtype, len(rows[0].places)),
        "total_s": round(time.monotonic() - began, 1),
        "card_peak_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
    }


def measure(arguments: argparse.Namespace) -> Row:
    """All exports of one model."""
    import torch

    from qlora_ui.hardware.system import versions
    from qlora_ui.runs.registry import list_runs
    from qlora_ui.runs.workspace import Workspace

    deadline = time.monotonic() + arguments.seconds
    has_card = torch.cuda.is_available()
    if arguments.cap_gib and not has_card:
        resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.cap_gib * 2**30), resource.RLIM_INFINITY))
    if arguments.cap_gib and has_card:
        torch.cuda.set_per_process_memory_fraction(arguments.cap_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    workspace = Workspace.at(Path(arguments.workspace or arguments.models) / f"workspace-{arguments.model}")
    began = time.monotonic()
    # In a process of its own: what drawing the weights leaves behind is none of the exports'.
    making = multiprocessing.get_context("spawn").Process(
        target=make_run, args=(arguments.model, Path(arguments.models), Path(arguments.tokenizer), workspace, "auto" if has_card else "cpu")
    )
    making.start()
    making.join()
    run = list_runs(workspace)[0]
    result: Row = {
        "model": arguments.model,
        "card": torch.cuda.get_device_name(0) if has_card else "CPU",
        "cap_gib": arguments.cap_gib,
        "written_s": round(time.monotonic() - began, 1),
        "versions": versions(),
        "exports": [],
    }
    forms = list(arguments.forms.split(",") if arguments.forms else FORMS)
    for form in forms:
        if time.monotonic() > deadline - 3:
            result["exports"].append({"format": form, "not_finished": "no time was left"})
            continue
        result["exports"].append(export_one(run, form, workspace, deadline, () if arguments.no_check else CHECKED))
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if form == forms[min(2, len(forms) - 1)] and arguments.stream:
            result["streamed"] = stream_one(run, workspace)
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def table(result: Row) -> str:
    """The figures of a model, a line an export; GiB."""
    cap = f"{result['cap_gib']:g} GiB" if result["cap_gib"] else "none"
    lines = [f"{result['model']} on {result['card']}, cap {cap}"]
    for row in result["exports"]:
        if "plan" not in row:
            lines.append(f"  {row['format']:20} {row['not_finished']}")
            continue
        planned, peaks = row["plan"], row["peak_bytes"]
        check = row.get("check") or {}
        lines.append(
            f"  {row['format']:20} {row['made_s']:6.1f} s ({row['total_s']:.1f} with the check)"
            f"   main {peaks.get('making', 0) / 2**30:5.2f} of {planned['memory_bytes'] / 2**30:5.2f} planned"
            f"   card {row['card_peak_bytes'] / 2**30:5.2f}"
            f"   size {row.get('size_bytes', 0) / 2**30:5.2f} of {planned['size_bytes'] / 2**30:5.2f}"
            f"   {check.get('num_equal', '-')}/{check.get('num_prompts', '-')} {row.get('not_finished', '')}"
        )
    if "streamed" in result:
        streamed = result["streamed"]
        lines.append(f"  evaluated layer by layer: {streamed['total_s']} s, card {streamed['card_peak_bytes'] / 2**30:.2f} GiB")
    return "\n".join(lines)


def main() -> None:
    """Measure one model, or put results together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    one = words.add_parser("measure")
    one.add_argument("--model", choices=list(SHAPES), required=True)
    one.add_argument("--models", default="/dev/shm/models")
    one.add_argument("--workspace", default="")
    one.add_argument("--tokenizer", required=True)
    one.add_argument("--forms", default="")
    one.add_argument("--cap-gib", type=float, default=0.0)
    one.add_argument("--seconds", type=float, default=600.0)
    one.add_argument("--no-check", action="store_true", help="do not load the artefacts again")
    one.add_argument("--stream", action="store_true", help="also score the merged model layer by layer, after the third export")
    one.add_argument("--out", required=True)
    both = words.add_parser("combine")
    both.add_argument("files", nargs="+")
    both.add_argument("--out", required=True)
    arguments = parser.parse_args()
    if arguments.word == "measure":
        print(table(measure(arguments)))
        return
    results = [json.loads(Path(file).read_text(encoding="utf-8")) for file in arguments.files]
    Path(arguments.out).write_text(json.dumps({"models": results}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(map(table, results)))


if __name__ == "__main__":
    main()
