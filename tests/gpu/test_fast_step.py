"""The fast step on a CUDA device: every family in bfloat16, capture against eager, memory given back, other threads at work meanwhile."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ui.engine.fast import attention
from qlora_ui.engine.fast.apply import apply_fast_path, fast_state, fuse, remove_fast_path
from qlora_ui.engine.fast.attention import VarlenPlan, register
from qlora_ui.engine.fast.micro_step import MicroStep, read_batch
from tests.tiny.fast_models import FAMILIES, build, packed_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda:0")
BATCH = packed_batch([70, 5, 40, 101], 256)


def bf16(family: str, folder: Path, **options: Any) -> Any:
    return build(family, folder, device="cuda:0", dtype=torch.bfloat16, **options)


def step(model: Any, *, capture: bool, lock: threading.Lock | None = None) -> MicroStep:
    notes: list[str] = []
    micro = MicroStep(model, fast_state(model), run_seed=3, capture=capture, capture_lock=lock or threading.Lock(), on_note=notes.append)
    return micro


def flat_gradient(model: Any) -> Any:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_plain_in_bfloat16(family: str, tmp_path: Path) -> None:
    model = bf16(family, tmp_path)
    batch = {k: v.to(CUDA) if torch.is_tensor(v) else v for k, v in BATCH.items()}
    if family != "gemma2":
        model.get_base_model().config._attn_implementation = register()
    logits = (
        model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            use_cache=False,
            **({} if family == "gemma2" else {k: v for k, v in batch.items() if k.startswith(("cu_", "max_"))}),
        )
        .logits[0, :-1]
        .float()
    )
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100, reduction="sum") / 200
    loss.backward()
    expected = flat_gradient(model)
    model.zero_grad(set_to_none=True)
    fuse(model, dropout=0.0, num_kept_layers=1)
    micro = step(model, capture=True)
    for _ in range(3):
        micro.gradients.zero()
        fast = micro.run(read_batch(BATCH, CUDA), 200, 1, 0, 0)
    assert micro.num_graphs == 1
    assert float(fast) == pytest.approx(float(loss), rel=2e-3)
    got = flat_gradient(model)
    # gemma3's own bfloat16 gradients lie 13 % from its float32 ones on this model, the others' 3 to 7 %; two bfloat16 paths are closer
    assert float((got - expected).norm() / expected.norm()) < (0.05 if family.startswith("gemma") else 0.03)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_logits_equal_unpacked_ones_within_bfloat16(family: str, tmp_path: Path) -> None:
    documents, places, end = (70, 5, 40, 101), [], 0
    for length in documents:
        places.append(slice(end, end := end + length))
    ids = BATCH["input_ids"].to(CUDA)

    def alone(model: Any) -> Any:
        with torch.no_grad():
            return torch.cat([model(input_ids=ids[:, place], use_cache=False).logits[0].float() for place in places])

    exact = alone(build(family, tmp_path / "exact", device=str(CUDA), dtype=torch.float32))
    model = build(family, tmp_path / "rounded", device=str(CUDA), dtype=torch.bfloat16)
    rounded = alone(model)
    fuse(model, dropout=0.0, num_kept_layers=2)
    boundaries = {k: v.to(CUDA) if torch.is_tensor(v) else v for k, v in BATCH.items() if k.startswith(("cu_", "max_"))}
    base = model.get_base_model()
    with torch.no_grad():
        hidden = base.model(input_ids=ids, position_ids=BATCH["position_ids"].to(CUDA), use_cache=False, **boundaries).last_hidden_state
        packed = base.lm_head(hidden)[0, :end].float()
    noise = float((rounded - exact).norm() / exact.norm())
    assert float((packed - rounded).norm() / rounded.norm()) < 2 * noise < 0.1


def test_replay_equals_eager_with_dropout_and_several_shapes(tmp_path: Path) -> None:
    model = bf16("llama", tmp_path, dropout=0.1)
    fuse(model, dropout=0.1, num_kept_layers=1)
    batches = [BATCH, packed_batch([30, 60], 128)]
    eager, captured = step(model, capture=False), step(model, capture=True)
    for micro in (eager, captured):
        micro.gradients.attach()
    for number in range(4):
        for batch in batches:
            results = []
            for micro in (eager, captured):
                micro.gradients.detach()
                micro.gradients.attach()
                loss = micro.run(read_batch(batch, CUDA), 100, 1, number, 0)
                results.append((float(loss), flat_gradient(model)))
            assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
            assert float((results[0][1] - results[1][1]).norm() / results[0][1].norm()) < 1e-3
    assert captured.num_graphs == 2 and eager.num_graphs == 0


def test_twenty_cycles_give_the_memory_back(tmp_path: Path) -> None:
    model = bf16("qwen2", tmp_path)
    ids = torch.randint(3, 160, (1, 12), device=CUDA)
    readings = []
    for _ in range(21):
        report = apply_fast_path(model, dropout=0.05, num_kept_layers=1, packed=True)
        assert report.active, report.reasons
        model.train()
        micro = step(model, capture=True)
        for number in range(3):
            micro.run(read_batch(BATCH, CUDA), 200, 1, number, 0)
        assert micro.num_graphs == 1
        micro.close()
        del micro
        remove_fast_path(model)
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)
        gc.collect()
        torch.cuda.synchronize()
        readings.append(torch.cuda.memory_allocated())
    # the first cycle leaves cuBLAS's workspaces of the side stream behind, once per process
    assert abs(readings[-1] - readings[0]) <= 2**20, readings


def test_capture_while_another_thread_samples(tmp_path: Path) -> None:
    model = bf16("llama", tmp_path)
    fuse(model, dropout=0.05, num_kept_layers=0)
    lock, stop, failures = threading.Lock(), threading.Event(), []

    def sample() -> None:
        generator = torch.Generator(device=CUDA)
        a = torch.randn(256, 256, device=CUDA, generator=generator)
        try:
            while not stop.is_set():
                (a @ a).softmax(-1).multinomial(1, generator=generator).sum().item()
        except RuntimeError as failure:
            failures.append(failure)

    other = threading.Thread(target=sample)
    other.start()
    try:
        micro = step(model, capture=True, lock=lock)
        losses = [float(micro.run(read_batch(BATCH, CUDA), 200, 1, 0, 0)) for _ in range(20)]
    finally:
        stop.set()
        other.join()
    assert not failures and micro.num_graphs == 1
    assert max(losses) - min(losses) < 1e-4


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_failed_capture_falls_back_and_leaves_random_numbers_usable(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bf16("llama", tmp_path)
    fuse(model, dropout=0.0, num_kept_layers=0)
    notes: list[str] = []
    micro = MicroStep(model, fast_state(model), run_seed=0, capture=True, capture_lock=threading.Lock(), on_note=notes.append)
    forward = micro._forward

    def look(numbers: Any) -> None:
        numbers.sum().item()

    def waits_for_the_host(batch: Any) -> Any:
        hidden = forward(batch)
        if failing == "forward":
            look(hidden)
        else:
            hidden.register_hook(look)
        return hidden

    monkeypatch.setattr(micro, "_forward", waits_for_the_host)
    stream = torch.cuda.current_stream()
    losses = [float(micro.run(read_batch(BATCH, CUDA), 200, 1, 0, 0)) for _ in range(4)]
    assert micro.num_graphs == 0 and len(notes) == 1 and "uncaptured" in notes[0]
    assert max(losses) - min(losses) < 1e-4
    assert torch.cuda.current_stream() == stream
    # Whoever needs the card next gets what is cached: an allocator that believes in a capture under way gives nothing back.
    cached = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    del cached
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 2**28
    before = torch.cuda.get_rng_state()
    assert torch.isfinite(torch.randn(8, device=CUDA)).all() and not torch.equal(before, torch.cuda.get_rng_state())


def test_long_rows_of_one_document_on_cudnn_equal_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, length, heads, groups, dim = 2, 1024, 8, 2, 128
    cumulative = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=CUDA)
    plan = VarlenPlan(cumulative, length, dim**-0.5)
    qkv = torch.randn(rows * length, (heads + 2 * groups) * dim, device=CUDA, dtype=torch.bfloat16)
    q, k, v = (t.unflatten(1, (-1, dim)) for t in qkv.split([heads * dim, groups * dim, groups * dim], 1))
    grad = torch.randn(rows * length, heads, dim, device=CUDA, dtype=torch.bfloat16)
    results = []
    for use in (True, False):
        monkeypatch.setattr(attention, "CUDNN_FROM", 1024 if use else 10**9)
        out, lse = attention.varlen_forward(q, k, v, plan)
        results.append((out, *attention.varlen_backward(grad, q, k, v, out, lse, plan)))
    if not attention.prefers_cudnn(q, plan) and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("cuDNN's kernel is used on Hopper and later only")
    for a, b in zip(*results, strict=True):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 0.01


def test_embedding_on_the_host_changes_nothing_but_memory(tmp_path: Path) -> None:
    model = bf16("qwen2", tmp_path)
    gradients = []
    for on_host in (False, True):
        report = apply_fast_path(model, dropout=0.0, num_kept_layers=0, packed=True, embedding_on_host=on_host)
        assert ("input embedding in host memory" in report.parts) == on_host
        micro = step(model, capture=True)
        for _ in range(3):
            micro.gradients.zero()
            micro.run(read_batch(BATCH, CUDA), 200, 1, 0, 0)
        assert micro.num_graphs == 1
        gradients.append(flat_gradient(model))
        micro.close()
        remove_fast_path(model)
    assert model.get_base_model().model.embed_tokens.weight.is_cuda
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-3
