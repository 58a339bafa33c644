"""Chat speed on this machine: time to the first token, tokens a second, peak memory; prints JSON rows and writes them with --out.

usage: chat_speed.py MODEL_FOLDER [--name NAME] [--prompt 128] [--new 128] [--out FILE]
Stacks: `generate` (transformers, unmerged adapter), `ours-plain` (the same passes without graphs), `ours`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import peft
import torch
import transformers

from qlora_ui.engine.chat_answer import BUCKET_TOKENS, Answering, Delta
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.chat_norms import fuse_norms, restore_norms
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.load import load_quantized
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling


def adapter(model: Any, folder: Path) -> Path:
    """A rank 16 adapter on all linear layers, with weights that change what is said."""
    made = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    made.save_pretrained(str(folder))
    made.unload()
    return folder


def generate_row(chat: ChatModel, ids: list[int], num_new: int) -> dict[str, Any]:
    """transformers' generate through PEFT's own forward."""
    model, device = chat._peft, chat.device
    layers = [module for module in model.modules() if "forward" in vars(module) and hasattr(module, "lora_A")]
    for layer in layers:
        del layer.forward
    restore_norms(model)
    model.base_model.enable_adapter_layers()
    inputs = torch.tensor([ids], device=device)
    kw = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run(count: int) -> float:
        sync(device)
        began = time.perf_counter()
        model.generate(**kw, max_new_tokens=count, min_new_tokens=count)
        sync(device)
        return time.perf_counter() - began

    with torch.inference_mode():
        run(4)
        first = min(run(1) for _ in range(3))
        whole = run(num_new + 1)
    chat.switch.install(model)
    if device.type == "cuda":
        fuse_norms(model)
    return {"first_token_s": first, "tok_s": num_new / (whole - first)}


def ours_row(chat: ChatModel, ids: list[int], num_new: int, *, capture: bool, sides: tuple[str, ...]) -> dict[str, Any]:
    """Our passes; the second turn adds 16 tokens."""
    chat.stop_ids = frozenset()
    cache = ChatCache(chat.num_layers, chat.context_tokens, BUCKET_TOKENS[chat.device.type])
    forward = ForwardPass(chat.base, cache, chat.switch, chat.device, capture=capture, tokens=chat.tokens)
    answering = Answering(chat, cache, forward)
    known = ("base", "adapter")
    sampling = Sampling(temperature=0, max_tokens=num_new)

    def ask(prompt: list[int]) -> Delta:
        deltas: list[Delta] = []
        answering.answer(dict.fromkeys(sides, prompt), {side: side for side in sides}, sampling, deltas.append, known=known)
        return deltas[-1]

    with torch.inference_mode():
        cache.reserve(known, 600)
        began = time.perf_counter()
        forward.warm_up(sides, [known.index(side) for side in sides])
        warm = time.perf_counter() - began
        ask(ids)
        cache.forget()
        done = ask(ids)
        tokens = {side: cache.rows[known.index(side)].tokens[len(ids) :] for side in sides}
        second = ask([*ids, *cache.rows[known.index(sides[-1])].tokens[len(ids) :], *ids[:16]])
    row = {"first_token_s": done.first_token_s, "tok_s": done.tokens_per_s, "second_turn_first_token_s": second.first_token_s}
    return {**row, "warm_up_s": warm, "capture_s": forward.capture_s, "reason": forward.reason, "tokens": tokens}


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config = RunConfig().changed({"model.id": str(given.model)})
    model = load_quantized(given.model, config, device)
    with tempfile.TemporaryDirectory() as folder:
        path = adapter(model, Path(folder))
        chat = ChatModel(given.model, model, load_tokenizer(given.model), device)
        chat.add_adapter("adapter", path)
    # Byte-level tokenizers for tests know only some hundred tokens.
    ids = torch.randint(5, 300, (given.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    few = min(given.new, 40)
    stacks: dict[str, Any] = {
        "generate": lambda: generate_row(chat, ids, few),
        "ours-plain": lambda: ours_row(chat, ids, few, capture=False, sides=("adapter",)),
        "ours": lambda: ours_row(chat, ids, given.new, capture=device.type == "cuda", sides=("adapter",)),
        "ours-both-sides-plain": lambda: ours_row(chat, ids, few, capture=False, sides=("base", "adapter")),
        "ours-both-sides": lambda: ours_row(chat, ids, given.new, capture=device.type == "cuda", sides=("base", "adapter")),
    }
    rows, texts = [], {}
    for stack, measure in stacks.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row = measure()
        texts[stack] = row.pop("tokens", None)
        row["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        rows.append({"what": "chat", "stack": stack, "shape": f"{given.name or given.model.name} {given.prompt}+{given.new}", **row})
        rows[-1] |= {"device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "versions": versions}
        print("ROW " + json.dumps(rows[-1]), flush=True)
    same = all(
        # The last token of an answer is never computed with, so a cache holds one less.
        mine[: few - 1] == texts[f"{stack}-plain"][side]
        for stack in ("ours", "ours-both-sides")
        for side, mine in texts[stack].items()
    )
    print(f"captured tokens equal plain ones: {same}", flush=True)
    if given.out:
        given.out.write_text(json.dumps([{**row, "captured_equals_plain": same} for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
