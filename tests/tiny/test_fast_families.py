"""Fused layers against stock PEFT, every family: loss and every adapter gradient, in float32 on the CPU's reference operations."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_models import FAMILIES, build, packed_batch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from qlora_ui.engine.fast import layers, recompute
from qlora_ui.engine.fast.apply import apply_fast_path, fast_state, fuse, remove_fast_path
from qlora_ui.engine.fast.attention import register
from qlora_ui.engine.fast.layers import NotFusable
from qlora_ui.engine.fast.micro_step import MicroStep, read_batch
from qlora_ui.engine.load import keep_plain_layout

BATCH = packed_batch([17, 5, 30], 64)


def plain_step(model: Any, batch: dict[str, Any], count: float, *, documents: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The stock forward and backward on the packed row: positions that restart tell transformers where documents begin.

    `documents`: our attention function is registered, and told so itself.
    """
    told = {k: v for k, v in batch.items() if k != "labels"} if documents else {k: batch[k] for k in ("input_ids", "position_ids")}
    logits = model(**told, use_cache=False).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100, reduction="sum") / count
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return loss.detach(), grads


def fast_step(model: Any, batch: dict[str, Any], count: int, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], MicroStep]:
    state = fuse(model, dropout=options.pop("dropout", 0.0), num_kept_layers=options.pop("kept", 1))
    micro = MicroStep(model, state, run_seed=3, capture=False, capture_lock=threading.Lock(), on_note=lambda text: None)
    loss = micro.run(read_batch(batch, torch.device("cpu")), count, 1, 0, 0)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}, micro


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [0, 1])
def test_gradients_equal_stock_peft(family: str, kept: int, tmp_path: Path) -> None:
    model = build(family, tmp_path)
    loss, expected = plain_step(model, BATCH, 30)
    fast_loss, grads, _ = fast_step(model, BATCH, 30, kept=kept)
    assert float(loss.detach()) == pytest.approx(float(fast_loss), rel=1e-5)
    assert grads.keys() == expected.keys()
    worst = max((relative(grads[name], grad), name) for name, grad in expected.items())
    assert worst[0] < 2e-4, worst


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_rounded_where_the_stock_layers_round(family: str, tmp_path: Path) -> None:
    """The forward pass to the last bit (its loss is summed in another order), so that a step's gradient norm follows the plain stack's."""
    model = build(family, tmp_path, dtype=torch.bfloat16)
    model.get_base_model().config._attn_implementation = register()
    loss, expected = plain_step(model, BATCH, 30, documents=True)
    fast_loss, grads, _ = fast_step(model, BATCH, 30)
    # Gemma 2 caps its logits, in bfloat16; the loss in tiles does that in float32
    assert float(loss) == pytest.approx(float(fast_loss), rel=1e-5 if family == "gemma2" else 4e-7)
    worst = max((relative(grads[name].float(), grad.float()), name) for name, grad in expected.items())
    assert worst[0] < 0.02, worst


def with_rope(monkeypatch: pytest.MonkeyPatch, kind: str, limit: int) -> str:
    """A family whose frequencies follow the batch: `longrope` has a second set beyond `limit` positions, `dynamic` stretches them."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0}
    if kind == "longrope":
        rope |= {"partial_rotary_factor": 1.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
        rope["original_max_position_embeddings"] = limit
        monkeypatch.setitem(FAMILIES, "phi3", {"rope_parameters": rope})
        return "phi3"
    monkeypatch.setitem(FAMILIES, "llama", {"rope_parameters": rope | {"factor": 2.0}, "max_position_embeddings": limit})
    return "llama"


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("limit", [48, 16])
def test_frequencies_that_follow_the_batch_equal_stock_peft(kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(with_rope(monkeypatch, kind, limit), tmp_path)
    loss, expected = plain_step(model, BATCH, 30)
    fast_loss, grads, _ = fast_step(model, BATCH, 30)
    assert float(loss) == pytest.approx(float(fast_loss), rel=1e-5)
    assert max(relative(grads[name], grad) for name, grad in expected.items()) < 2e-4


@pytest.mark.parametrize(("kind", "is_capturable"), [("longrope", True), ("dynamic", False)])
def test_which_frequencies_ask_the_card_a_question(kind: str, is_capturable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for a capture: whatever has to be known on the host fails there as well.

    A step that cannot be captured runs uncaptured and says so (tests/gpu/test_fast_step.py).
    """
    rotary = build(with_rope(monkeypatch, kind, 48), tmp_path).get_base_model().model.rotary_emb
    positions = torch.arange(40)[None]
    rotary(torch.zeros(1, 40, 64), positions)  # the first step is an ordinary one
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        inputs = fake.from_tensor(torch.zeros(1, 40, 64)), fake.from_tensor(positions)
        if is_capturable:
            assert rotary(*inputs)[0].shape == (1, 40, 16)
        else:
            with pytest.raises(DataDependentOutputException):
                rotary(*inputs)


def test_padded_rows_equal_stock_peft(tmp_path: Path) -> None:
    model = build("qwen2", tmp_path)
    ids = torch.randint(3, 160, (2, 64), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].reshape(-1, 160)
    loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum") / 50
    loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    fast_loss, grads, _ = fast_step(model, {"input_ids": ids, "labels": labels, "attention_mask": mask}, 50)
    assert float(loss.detach()) == pytest.approx(float(fast_loss), rel=1e-5)
    assert max(relative(grads[name], grad) for name, grad in expected.items()) < 2e-4


def test_only_some_projections_adapted(tmp_path: Path) -> None:
    model = build("llama", tmp_path, targets=["q_proj", "v_proj", "up_proj"])
    loss, expected = plain_step(model, BATCH, 30)
    fast_loss, grads, _ = fast_step(model, BATCH, 30)
    assert float(loss.detach()) == pytest.approx(float(fast_loss), rel=1e-5)
    assert max(relative(grads[name], grad) for name, grad in expected.items()) < 2e-4


def test_layers_too_large_to_hold_dequantized_give_the_same_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", tmp_path, dropout=0.2)
    _, held, micro = fast_step(model, BATCH, 30, dropout=0.2, kept=0)
    micro.close()
    remove_fast_path(model)
    monkeypatch.setattr(recompute, "HELD_BYTES", 0)
    _, fresh, _ = fast_step(model, BATCH, 30, dropout=0.2, kept=0)
    assert all(torch.equal(fresh[name], grad) for name, grad in held.items())


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_mlp_in_tiles_is_the_whole_one(family: str, in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dropout too: a tile of rows sees its part of the whole's mask. Later micro-steps add to gradients that are there already."""
    model = build(family, tmp_path, dropout=0.2)
    batch = read_batch(BATCH, torch.device("cpu"))
    results = []
    for rows in (64, 24):
        seen = []
        monkeypatch.setattr(layers, "tile_rows", lambda count, width, rows=rows, seen=seen: seen.append((count, width)) or rows)
        loss, grads, micro = fast_step(model, BATCH, 30, dropout=0.2, kept=0)
        if in_place:
            micro.run(batch, 30, 1, 0, 1)
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        results.append((loss, grads))
        assert seen[0] == (64, 64)
        micro.close()
        remove_fast_path(model)
    (loss, whole), (tiled_loss, tiled) = results
    assert float(tiled_loss) == pytest.approx(float(loss), rel=1e-6)
    assert max(relative(tiled[name], grad) for name, grad in whole.items()) < 1e-5


def test_two_micro_steps_accumulate_and_metrics_count(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    _, once, micro = fast_step(model, BATCH, 60)
    micro.run(read_batch(BATCH, torch.device("cpu")), 60, 1, 0, 1)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert relative(p.grad, 2 * once[name]) < 1e-5
    entropy, accuracy, count = micro.metrics.tolist()
    assert count == 2 and 0 < entropy / count < 6 and 0 <= accuracy <= count


def test_packed_logits_equal_unpacked(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path)
    fuse(model, dropout=0.0, num_kept_layers=2)
    decoder = model.get_base_model().model
    lengths = [17, 5, 30]
    kwargs = {k: v for k, v in BATCH.items() if k.startswith(("cu_", "max_"))}
    with torch.no_grad():
        packed = decoder(input_ids=BATCH["input_ids"], position_ids=BATCH["position_ids"], use_cache=False, **kwargs).last_hidden_state[0]
        remove_fast_path(model)  # still in training mode: an eval forward would make bitsandbytes repack the weights on some CPUs
        start = 0
        for length in lengths:
            alone = decoder(input_ids=BATCH["input_ids"][:, start : start + length], use_cache=False).last_hidden_state[0]
            assert relative(packed[start : start + length], alone) < 1e-5
            start += length


@pytest.mark.parametrize("family", ["gemma2", "mistral", "gemma3_text", "llama"])
def test_packed_attention_generates_as_eager_attention_does(family: str, tmp_path: Path) -> None:
    """Probes of a packed run generate through the registered attention: no packing, a cache, capped scores, windows of 9."""
    model = build(family, tmp_path).eval()
    keep_plain_layout(model)
    ids = torch.randint(3, 160, (1, 30), generator=torch.Generator().manual_seed(4))
    config = model.get_base_model().config
    answers, logits = [], []
    for kernel in ("eager", register()):
        config._attn_implementation = kernel
        with torch.no_grad():
            logits.append(model(input_ids=ids, use_cache=False).logits)
            answers.append(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False))
    assert relative(logits[1], logits[0]) < 1e-5
    assert torch.equal(answers[0], answers[1])


def test_remove_gives_the_plain_modules_back(tmp_path: Path) -> None:
    model = build("gemma3_text", tmp_path)
    _, before = plain_step(model, BATCH, 30)
    keys = list(model.state_dict())
    fuse(model, dropout=0.0, num_kept_layers=0)
    assert fast_state(model) and list(model.state_dict()) == keys
    remove_fast_path(model)
    with pytest.raises(LookupError):
        fast_state(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    _, after = plain_step(model, BATCH, 30)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_and_padded_plain_calls_stay_plain_while_fused(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    ids = torch.randint(3, 160, (2, 12))
    model.eval()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        fuse(model, dropout=0.5, num_kept_layers=0)
        fused = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(plain, fused)


def test_cpu_is_left_plain_with_a_reason(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    report = apply_fast_path(model, dropout=0.0, num_kept_layers=0, packed=True)
    assert not report.active and "GPU" in report.reasons[0]
    with pytest.raises(LookupError):
        fast_state(model)


def test_unknown_architecture_and_dora_are_refused(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    model.get_base_model().config.model_type = "olmo2"
    with pytest.raises(NotFusable, match="olmo2"):
        fuse(model, dropout=0.0, num_kept_layers=0)


def test_dropout_repeats_within_a_step_and_changes_between_steps(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    loss_kept, grads_kept, micro = fast_step(model, BATCH, 30, dropout=0.3, kept=2)
    micro.close()
    remove_fast_path(model)
    loss_recomputed, grads_recomputed, micro = fast_step(model, BATCH, 30, dropout=0.3, kept=0)
    assert float(loss_kept) == pytest.approx(float(loss_recomputed), rel=1e-6)
    assert max(relative(grads_recomputed[name], grads_kept[name]) for name in grads_kept) < 1e-4
    again = micro.run(read_batch(BATCH, torch.device("cpu")), 30, 1, 0, 0)
    other = micro.run(read_batch(BATCH, torch.device("cpu")), 30, 1, 0, 1)
    assert float(again) == pytest.approx(float(loss_recomputed), rel=1e-6)
    assert float(other) != pytest.approx(float(again), rel=1e-6)
