"""The mixin inside a real SFTTrainer: same losses and norms as the plain trainer on the same packed batches, resume, fallback, close."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from fast_models import build
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from qlora_ui.engine.fast.apply import apply_fast_path, fuse, remove_fast_path
from qlora_ui.engine.fast.attention import register
from qlora_ui.engine.fast.captured_step import FastStepMixin
from qlora_ui.engine.fast.micro_step import MicroStep
from qlora_ui.engine.fast.packing import COUNTED, PADDING, PackedCollator, pack_examples


class FastTrainer(FastStepMixin, SFTTrainer):  # type: ignore[misc]
    """The product's trainer has more in it; the step is this."""


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(160)}, unk_token="0")), pad_token="0", eos_token="2"
    )


def make(model: Any, out: Path, cls: type = FastTrainer, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 160, int(n)).tolist() for n in rng.integers(5, 40, 60)]
    columns, packed = pack_examples(rows, rows, 64)
    arguments: dict[str, Any] = dict(
        output_dir=str(out),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
        max_length=64,
        seed=3,
        optim="adamw_torch",
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    arguments.update(options)
    collator = PackedCollator(0, 64, 2, packed.max_documents)
    trainer = cls(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer(),
        data_collator=collator,
    )
    for p in model.parameters():  # TRL makes adapters bfloat16; float32 shows differences that rounding would hide
        if p.requires_grad:
            p.data = p.data.to(dtype)
    return trainer


def force_fast(trainer: Any, dropout: float = 0.0) -> None:
    """On the CPU the product stays plain; the tests run the same step there without capture."""
    state = fuse(trainer.model, dropout=dropout, num_kept_layers=1)
    trainer._start_fast_step(
        trainer.model, MicroStep(trainer.model, state, run_seed=7, capture=False, capture_lock=threading.Lock(), on_note=lambda t: None)
    )


def test_a_base_left_in_evaluation_mode_is_trained_fused(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "m")
    model.get_base_model().eval()  # as from_pretrained leaves it
    trainer = make(model, tmp_path / "a", max_steps=1)
    force_fast(trainer)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "smollm3", "qwen3", "gemma3_text"])
def test_a_run_in_bfloat16_is_the_plain_one_to_the_last_bit(family: str, tmp_path: Path) -> None:
    """Every sum is rounded where, and taken in the order in which, autograd does: nothing is left for two runs to drift apart by."""
    runs = []
    for cls in (SFTTrainer, FastTrainer):
        model = build(family, tmp_path / "m", dtype=torch.bfloat16)
        model.get_base_model().config._attn_implementation = register()
        trainer = make(model, tmp_path / cls.__name__, cls, torch.bfloat16)
        if cls is FastTrainer:
            force_fast(trainer)
        trainer.train()
        runs.append((history(trainer, "grad_norm"), {n: p for n, p in model.named_parameters() if p.requires_grad}))
    (norms, plain), (fast_norms, fast) = runs
    assert fast_norms == norms
    assert [name for name in plain if not torch.equal(plain[name], fast[name])] == []


def history(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_same_losses_norms_and_metrics_as_the_plain_trainer(tmp_path: Path) -> None:
    plain = make(build("llama", tmp_path / "m"), tmp_path / "a", SFTTrainer)
    plain.train()
    fast = make(build("llama", tmp_path / "m"), tmp_path / "b")
    force_fast(fast)
    fast.train()
    for key, tolerance in (
        ("loss", 1e-4),
        ("grad_norm", 1e-3),
        ("entropy", 1e-4),
        ("mean_token_accuracy", 2e-2),
        ("learning_rate", 1e-9),
    ):
        assert history(fast, key) == pytest.approx(history(plain, key), rel=tolerance, abs=1e-6), key
    for (name, a), (_, b) in zip(plain.model.named_parameters(), fast.model.named_parameters(), strict=True):
        if a.requires_grad:
            assert torch.allclose(a, b, atol=2e-4), name


@pytest.mark.parametrize("is_fast", [True, False])
def test_what_fills_up_a_packed_batch_is_no_token(tmp_path: Path, is_fast: bool) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a", max_steps=-1, num_train_epochs=1)
    if is_fast:
        force_fast(trainer)
    trainer.train()
    assert history(trainer, "num_tokens")[-1] == sum(map(len, trainer.train_dataset["input_ids"]))


def test_resume_repeats_the_run_with_dropout(tmp_path: Path) -> None:
    whole = make(build("llama", tmp_path / "m"), tmp_path / "a", save_strategy="steps", save_steps=2)
    force_fast(whole, 0.2)
    whole.train()
    rest = make(build("llama", tmp_path / "m"), tmp_path / "b")
    force_fast(rest, 0.2)
    rest.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert history(rest, "loss") == history(whole, "loss")  # the checkpoint brings the first two entries along
    assert history(rest, "grad_norm") == history(whole, "grad_norm")


class StopAfterOne(TrainerCallback):  # type: ignore[misc]
    """A user's stop."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_stop_then_close_leaves_a_plain_model(tmp_path: Path) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a")
    force_fast(trainer)
    trainer.add_callback(StopAfterOne())
    trainer.train()
    assert trainer.state.global_step == 1
    trainer.close()
    trainer.close()
    remove_fast_path(trainer.model)
    assert not trainer.fast_step_active
    assert all(p.grad is None for p in trainer.model.parameters())
    assert "zero_grad" not in trainer.model.__dict__
    trainer.remove_callback(StopAfterOne)
    trainer.train()
    assert trainer.state.global_step == 4


def test_evaluation_during_fast_training_is_the_plain_one(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "m")
    trainer = make(model, tmp_path / "a")
    trainer.eval_dataset = trainer.train_dataset.select(range(4))
    before = trainer.evaluate()["eval_loss"]
    force_fast(trainer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-6)


def test_on_the_cpu_the_ordinary_step_runs_and_says_why(tmp_path: Path) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a")
    report = apply_fast_path(trainer.model, dropout=0.0, num_kept_layers=0, packed=True)
    notes: list[str] = []
    assert not trainer.enable_fast_step(report, run_seed=0, capture_lock=threading.Lock(), on_note=notes.append)
    assert not trainer.fast_step_active and report.reasons
    trainer.train()
    assert len(history(trainer, "loss")) == 4


def test_a_first_step_that_cannot_run_falls_back_to_the_plain_one(tmp_path: Path) -> None:
    plain = make(build("llama", tmp_path / "m"), tmp_path / "a", SFTTrainer)
    plain.train()
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "b")
    state = fuse(trainer.model, dropout=0.0, num_kept_layers=1)
    notes: list[str] = []
    micro = MicroStep(trainer.model, state, run_seed=7, capture=False, capture_lock=threading.Lock(), on_note=notes.append)

    def impossible(batch: Any) -> None:
        raise RuntimeError("no kernel image is available for this card")

    micro._compute = impossible  # type: ignore[method-assign]
    trainer._start_fast_step(trainer.model, micro)
    trainer.train()
    assert not trainer.fast_step_active and len(notes) == 1 and "no kernel image" in notes[0]
    assert history(trainer, "loss") == pytest.approx(history(plain, "loss"), rel=1e-6)


def test_a_trial_step_leaves_no_trace(tmp_path: Path) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a")
    force_fast(trainer, 0.2)
    trainer.current_gradient_accumulation_steps = 2
    batch = next(iter(trainer.get_train_dataloader()))
    before = trainer.training_step(trainer.model, dict(batch), 100)
    trainer.model.zero_grad()
    trainer.forget_micro_steps()
    assert float(trainer.training_step(trainer.model, dict(batch), 100)) == float(before)
    assert int(trainer._token_count) == 128 - batch[PADDING] and float(trainer._micro.metrics[2]) == 1


def test_padded_rows_are_counted_before_they_are_on_the_card(tmp_path: Path) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a")
    trainer.data_collator = padding = DataCollatorForLanguageModeling(pad_token_id=0)
    assert COUNTED not in next(iter(trainer.get_train_dataloader()))
    force_fast(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch[COUNTED].shape == (int((batch["labels"][:, 1:] != -100).sum()),)
    assert trainer.data_collator is padding
    assert COUNTED not in trainer._prepare_inputs(batch)


def test_arguments_that_rule_it_out_are_named(tmp_path: Path) -> None:
    trainer = make(build("llama", tmp_path / "m"), tmp_path / "a", neftune_noise_alpha=5.0)
    assert "NEFTune" in trainer._fast_obstacle()
