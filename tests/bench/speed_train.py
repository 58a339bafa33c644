"""One QLoRA run on one stack, as one JSON row: trained tokens per second, step time, peak memory, losses and gradient norms.

usage: python tests/bench/speed_train.py STACK MODEL_FOLDER [options]      STACK: recipe | plain | fast | unsloth
`recipe` is the usual tutorial (prepare_model_for_kbit_training), `plain` is TRL without it, `fast` is ours, `unsloth` needs it on
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", UNSLOTH_DISABLE_STATISTICS="1", WANDB_DISABLED="true")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GIB = 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("stack", choices=["recipe", "plain", "fast", "unsloth"])
    parser.add_argument("model")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--bs", type=int, default=4)
    parser.add_argument("--ga", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=4)
    parser.add_argument("--mean-len", type=int, default=0, help="0: every sample is --seq long; else lognormal lengths, cut at --seq")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--no-ckpt", action="store_true", help="keep all activations")
    parser.add_argument("--kept", type=int, default=0, help="fast: layers that keep their activations")
    parser.add_argument("--text", default="", help="train on this file's text instead of random tokens")
    parser.add_argument(
        "--chat", action="store_true", help="with --text: every piece is the answer to a question, in the model's chat template"
    )
    parser.add_argument("--eval-rows", type=int, default=0)
    parser.add_argument("--eval-text", default="", help="take them from this file instead of from --text")
    parser.add_argument("--packed", action="store_true", help="plain: the batches that fast would see")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--host-embedding", action="store_true")
    parser.add_argument("--flash", action="store_true", help="fast: the flash kernel also where cuDNN's is used")
    parser.add_argument("--uncaptured", action="store_true")
    parser.add_argument("--torch-operations", action="store_true", help="fast: its nodes on torch's operations instead of Triton's kernels")
    parser.add_argument("--attention", default="sdpa", help="plain: transformers' attention")
    parser.add_argument("--gate", default="", help="wait for this file after two steps: compiling runs ahead")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="plain and fast: of the arithmetic and the adapter"
    )
    parser.add_argument("--keep", type=Path, help="write the adapter before every step into this folder")
    parser.add_argument("--follow", type=Path, help="take the adapter before every step from there: each step is compared by itself")
    parser.add_argument(
        "--optimizer", default="adamw", choices=["adamw", "adamw_fp32"], help="plain and fast: without or with master weights"
    )
    parser.add_argument("--warmup", type=float, default=0, help="share of the steps, or their number; the recipe's own is 0.03")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and of the texts")
    parser.add_argument(
        "--deterministic", action="store_true", help="torch's deterministic algorithms: flash attention's backward pass too"
    )
    parser.add_argument("--whole-mlp", action="store_true", help="fast: no tiles, as before there were any")
    parser.add_argument("--tag", default="")
    return parser.parse_args()


def samples(a: argparse.Namespace, count: int, tokenizer: Any) -> list[list[int]]:
    """Random token rows of the asked lengths, or pieces of a text."""
    import numpy as np

    rng = np.random.default_rng(a.seed)
    lengths = [a.seq if not a.mean_len else int(np.clip(rng.lognormal(np.log(a.mean_len), 0.6), 16, a.seq)) for _ in range(count)]
    if a.text:
        ids = tokenizer(Path(a.text).read_text(encoding="utf-8"))["input_ids"]
        starts = rng.integers(0, max(1, len(ids) - a.seq), count)
        before, after = around(tokenizer) if a.chat else ([], [])
        kept = [max(1, n - len(before) - len(after)) for n in lengths]
        return [before + ids[s : s + n] + after for s, n in zip(starts, kept, strict=True)]
    return [rng.integers(5, 300, n).tolist() for n in lengths]


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before and after an answer in the model's chat template."""
    question = {"role": "user", "content": "Go on with this text."}
    asked = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([question, {"role": "assistant", "content": "@"}], tokenize=False)
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (asked, whole[len(asked) + 1 :])]
    return ids[0], ids[1]


def main() -> None:
    a = arguments()
    if a.stack == "unsloth":
        import unsloth  # noqa: F401  (before transformers)
    from transformers import set_seed

    set_seed(0)
    be_deterministic(a)
    model, tokenizer, peft_config = load_unsloth(a) if a.stack == "unsloth" else load(a)
    data, collator, tokens_per_step = batches(a, tokenizer)
    clock = make_clock(a)
    notes: list[str] = []
    named = {"model": model, "train_dataset": data, "processing_class": tokenizer, "callbacks": [clock]}
    named |= {"peft_config": peft_config} if peft_config is not None else {}
    named |= {"data_collator": collator} if collator is not None else {}
    trainer = fast_trainer(a, named, notes) if a.stack == "fast" else stock_trainer(a, named)
    row = {**about(a, notes), "tokens_per_step": round(tokens_per_step), **train(a, trainer, clock, tokens_per_step)}
    if a.eval_rows:
        other = argparse.Namespace(**{**vars(a), "mean_len": 0, "text": a.eval_text or a.text})
        row["eval_loss"] = evaluation_loss(trainer, model, samples(other, a.eval_rows, tokenizer))
    print("ROW " + json.dumps(row), flush=True)
    if a.profile:
        profile(trainer, data, collator, a)


def be_deterministic(a: argparse.Namespace) -> None:
    """Before anything is multiplied: torch's deterministic algorithms where they are asked for."""
    if a.deterministic:
        import torch

        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)  # with warn_only flash attention stays as it is


def load_unsloth(a: argparse.Namespace) -> tuple[Any, Any, None]:
    """Model with adapter and tokenizer."""
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        a.model, max_seq_length=a.seq, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=a.dropout,
        target_modules=TARGETS,
        bias="none",
        use_gradient_checkpointing=False if a.no_ckpt else "unsloth",
        random_state=0,
    )
    return model, tokenizer, None


def load(a: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model and tokenizer, and what the recipe has SFTTrainer put on the model; the others' adapter is on it already."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

    dtype, device = getattr(torch, a.dtype), "cuda:0" if torch.cuda.is_available() else "cpu"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(
        a.model, quantization_config=quantization, device_map={"": device}, dtype=dtype, attn_implementation=a.attention
    )
    peft_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=a.dropout, target_modules=TARGETS, task_type="CAUSAL_LM")
    if a.stack == "recipe":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=not a.no_ckpt, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        return model, tokenizer, peft_config
    set_seed(1 + a.seed)
    model = get_peft_model(model, peft_config, autocast_adapter_dtype=False)
    in_dtype(model, dtype)
    return model, tokenizer, None


def batches(a: argparse.Namespace, tokenizer: Any) -> tuple[Any, Any, float]:
    """The rows of all steps, packed for `fast` and with --packed; a collator for packed ones; tokens in a step."""
    from datasets import Dataset

    needed = a.bs * a.ga * a.steps
    if a.stack != "fast" and not a.packed:
        rows = samples(a, needed, tokenizer)
        data = Dataset.from_dict({"input_ids": rows, "labels": rows, "attention_mask": [[1] * len(r) for r in rows]})
        return data, None, sum(map(len, rows)) / a.steps
    from qlora_ui.engine.fast.packing import PackedCollator, best_fit, pack_examples

    count = needed if not a.mean_len else int(needed * a.seq / a.mean_len)
    rows = samples(a, count, tokenizer)
    while a.mean_len and len(best_fit([len(r) for r in rows], a.seq).rows) < needed:
        rows = rows + rows[: count // 4]
    columns, packed = pack_examples(rows, rows, a.seq)
    data = Dataset.from_dict({k: v[:needed] for k, v in columns.items()})
    collator = PackedCollator(tokenizer.pad_token_id, a.seq, a.bs, packed.max_documents)
    return data, collator, sum(map(len, columns["input_ids"][:needed])) / a.steps


def sft_config(a: argparse.Namespace) -> Any:
    """The same for every stack but for what it recomputes with."""
    import torch
    from trl import SFTConfig

    recompute = not a.no_ckpt and a.stack != "fast"
    more: dict[str, Any] = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if recompute and a.stack != "unsloth" else {}
    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=a.bs,
        gradient_accumulation_steps=a.ga,
        learning_rate=2e-4,
        max_steps=a.steps,
        lr_scheduler_type="cosine",
        warmup_steps=a.warmup,
        bf16=a.dtype == "bfloat16",
        logging_steps=1,
        save_strategy="no",
        max_length=a.seq,
        report_to=[],
        optim="adamw_torch_fused",
        gradient_checkpointing=recompute,
        logging_nan_inf_filter=a.stack != "fast",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        **more,
    )


def optimizer(a: argparse.Namespace, args: Any) -> dict[str, Any]:
    """What a trainer is told besides its arguments."""
    if a.optimizer == "adamw":
        return {}
    from trl import SFTTrainer

    from qlora_ui.engine.master_weights import MasterAdamW

    return {"optimizer_cls_and_kwargs": (MasterAdamW, SFTTrainer.get_optimizer_cls_and_kwargs(args)[1])}


def make_clock(a: argparse.Namespace) -> Any:
    """A callback with the times of all steps, their losses and gradient norms."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.start = 0.0
            self.times: list[float] = []
            self.losses: list[float] = []
            self.norms: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            trained = [p for p in model.parameters() if p.requires_grad]
            if a.keep:
                a.keep.mkdir(parents=True, exist_ok=True)
                torch.save([p.detach().float().cpu() for p in trained], a.keep / f"{state.global_step}.pt")
            if a.follow:
                for parameter, value in zip(trained, torch.load(a.follow / f"{state.global_step}.pt"), strict=True):
                    parameter.data.copy_(value)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if a.gate and state.global_step == 2:
                Path(a.gate + ".ready").touch()
                while not os.path.exists(a.gate):
                    time.sleep(0.05)
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter() - self.start)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))
                self.norms.append(float(logs["grad_norm"]))

    return Clock()


def fast_trainer(a: argparse.Namespace, named: dict[str, Any], notes: list[str]) -> Any:
    """SFTTrainer with the fast step; `notes` are told what is on."""
    import torch
    from trl import SFTTrainer

    from qlora_ui.engine.fast import apply, attention, layers, ops
    from qlora_ui.engine.fast.apply import apply_fast_path
    from qlora_ui.engine.fast.captured_step import FastStepMixin

    dtype = getattr(torch, a.dtype)
    # the product keeps to bfloat16 on a card; in float32 its kernels show what is left without rounding
    if dtype != torch.bfloat16 or not torch.cuda.is_available():
        apply._obstacles = lambda model: ()
    if a.torch_operations:
        vars(ops)["triton_failure"] = lambda device: "switched off"
    if a.flash:
        attention.CUDNN_FROM = 10**9
    if a.whole_mlp:
        vars(layers)["tile_rows"] = lambda rows, hidden: rows

    class Trainer(FastStepMixin, SFTTrainer):  # type: ignore[misc]
        pass

    args = sft_config(a)
    trainer: Any = Trainer(args=args, **named, **optimizer(a, args))
    in_dtype(trainer.model, dtype)
    kept = 10**6 if a.no_ckpt else a.kept
    report = apply_fast_path(
        trainer.model, dropout=a.dropout, num_kept_layers=kept, packed=bool(a.mean_len), embedding_on_host=a.host_embedding
    )
    notes += [*report.parts, *report.reasons]
    trainer.enable_fast_step(report, run_seed=0, capture_lock=threading.Lock(), on_note=notes.append)
    if (a.uncaptured or not torch.cuda.is_available()) and trainer._micro is not None:
        trainer._micro._capture = False
    return trainer


def stock_trainer(a: argparse.Namespace, named: dict[str, Any]) -> Any:
    """SFTTrainer as it is."""
    import torch
    from trl import SFTTrainer

    from qlora_ui.engine.fast.packing import COUNTED, PADDING

    if a.packed:
        packed = named["data_collator"]
        ours = (COUNTED, PADDING)
        named = {**named, "data_collator": lambda rows: {key: value for key, value in packed(rows).items() if key not in ours}}
    trainer = SFTTrainer(args=(args := sft_config(a)), **named, **optimizer(a, args))
    if a.stack == "plain":
        in_dtype(trainer.model, getattr(torch, a.dtype))
    if a.packed and a.attention == "sdpa":  # transformers itself keeps documents apart with a mask, in its eager attention
        from qlora_ui.engine.fast.attention import register

        trainer.model.get_base_model().config._attn_implementation = register()
    return trainer


def train(a: argparse.Namespace, trainer: Any, clock: Any, tokens_per_step: float) -> dict[str, Any]:
    """Train, and what it took."""
    import torch

    on_card = torch.cuda.is_available()
    loaded = torch.cuda.memory_allocated() if on_card else 0
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    trainer.train()
    wall = time.perf_counter() - started
    ordered = sorted(clock.times[a.skip :])
    step = ordered[len(ordered) // 2]
    return {
        "tok_s": round(tokens_per_step / step),
        "step_s": round(step, 4),
        "min_step_s": round(ordered[0], 4),
        "first_steps_s": [round(t, 2) for t in clock.times[:3]],
        "wall_s": round(wall, 1),
        "loaded_bytes": loaded,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_card else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_card else 0,
        "nvml_bytes": card_bytes() if on_card else 0,
        "losses": clock.losses,
        "grad_norms": clock.norms,
        "adapter_sha256": fingerprint(trainer.model),
    }


def fingerprint(model: Any) -> str:
    """Of every bit of the adapter."""
    import torch

    trained = [p.detach().flatten().view(torch.uint8).cpu() for p in model.parameters() if p.requires_grad]
    return hashlib.sha256(torch.cat(trained).numpy().tobytes()).hexdigest()


def about(a: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    """What was run, where, with which versions; `notes` grow while it runs."""
    import torch

    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes", *(["unsloth"] if a.stack == "unsloth" else []))
    return {
        "what": a.tag or a.stack,
        "stack": a.stack,
        "shape": f"{os.path.basename(a.model)} {a.bs}x{a.seq} ga{a.ga}" + (f" lognormal {a.mean_len}" if a.mean_len else ""),
        "recomputed": not a.no_ckpt,
        "kept_layers": a.kept,
        "dropout": a.dropout,
        "optimizer": a.optimizer,
        "seed": a.seed,
        "notes": notes,
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def card_bytes() -> int:
    """What is taken of the card, by all processes."""
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def in_dtype(model: Any, dtype: Any) -> None:
    """Give the adapter its type: SFTTrainer makes it bfloat16 wherever the base is in 4 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def evaluation_loss(trainer: Any, model: Any, rows: list[list[int]]) -> float:
    """Mean next-token loss of the trained adapter on the plain modules."""
    import torch

    if hasattr(trainer, "close"):
        trainer.close()
    from qlora_ui.engine.fast.apply import remove_fast_path

    remove_fast_path(trainer.model)
    trainer.model.eval()
    total = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row], device=trainer.model.device)
            logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    return total / len(rows)


def profile(trainer: Any, data: Any, collator: Any, a: argparse.Namespace) -> None:
    """Print where one warm micro-step's GPU time goes, by kind of kernel."""
    import torch
    from speed_profile import profiled

    batch = {
        k: v.cuda() if torch.is_tensor(v) else v for k, v in (collator or trainer.data_collator)([data[i] for i in range(a.bs)]).items()
    }
    count = torch.tensor(1000.0, device="cuda")
    found = profiled(lambda: trainer.training_step(trainer.model_wrapped, dict(batch), count))
    print("PROFILE " + json.dumps({"stack": a.stack, "what": a.tag, **found}))


if __name__ == "__main__":
    main()
