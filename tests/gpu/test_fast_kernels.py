"""Every Triton kernel against its plain torch stand-in, on random data, ragged sizes included.

Runs on CUDA, or on the CPU where TRITON_INTERPRET=1 is set (Triton's interpreter, float32 only).
"""
# ruff: noqa: E402  (torch and a card are asked for first)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not INTERPRETED, reason="no CUDA device and no TRITON_INTERPRET=1"),
]

from qlora_ui.engine.fast import layer_ops, ops, rope, weights
from qlora_ui.engine.fast import loss as loss_module
from qlora_ui.engine.fast.dropout import Dropout
from qlora_ui.engine.fast.loss import Head, tiled_loss
from qlora_ui.engine.fast.ops import Adapter
from qlora_ui.engine.fast.rope import HeadNorm, Heads
from qlora_ui.estimate import activations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOLERANCE = 8e-3 if DEVICE == "cuda" else 1e-5


def rand(*shape: int, scale: float = 1.0) -> Any:
    return torch.randn(*shape, device=DEVICE).mul_(scale).to(DTYPE)


def close(a: Any, b: Any) -> None:
    assert torch.isfinite(a.float()).all()
    assert float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-9)) < TOLERANCE


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to make every later operation run on plain torch."""

    def switch() -> None:
        for module in (ops, layer_ops, rope, loss_module, weights):
            monkeypatch.setattr(module, "uses_triton", lambda x: False)

    return switch


def group(width: int, sizes: list[int], rank: int) -> list[Adapter]:
    torch.manual_seed(rank)
    out, column = [], 0
    for index, size in enumerate(sizes):
        out.append(Adapter(rand(rank, width, scale=0.1), rand(size, rank), 2.0 + index, 5 + index, column))
        column += size
    return out


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width", "sizes", "rank"), [(70, 200, [130, 40, 40], 16), (64, 256, [96], 8), (33, 130, [64, 72], 40)])
def test_lora(rate: float, rows: int, width: int, sizes: list[int], rank: int, plain: Any) -> None:  # noqa: PLR0917
    adapters, total = group(width, sizes, rank), sum(sizes)
    dropout = Dropout(rate, torch.tensor([123, -77], dtype=torch.int32, device=DEVICE)) if rate else None
    x, grad, y = rand(rows, width), rand(rows, total), rand(rows, total)
    residual = rand(rows, total) if len(sizes) == 1 else None

    def everything() -> list[Any]:
        inner = ops.project_down(x, adapters, dropout)
        grads_a, grads_b = [torch.ones_like(ad.a) for ad in adapters], [torch.ones_like(ad.b) for ad in adapters]
        back = ops.project_back(grad, inner, adapters, grads_b)
        up = ops.add_up_(y.clone(), inner, adapters, residual)
        dx = ops.add_input_gradients_([x.clone() for _ in adapters], list(range(len(adapters))), back, adapters, dropout)
        ops.accumulate_a(back, x, adapters, grads_a, dropout)
        return [inner, back, up, dx, *grads_a, *grads_b]

    fast = everything()
    plain()
    for a, b in zip(fast, everything(), strict=True):
        close(a, b)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("adapted", ["both", "up", "one over both", "none"])
def test_gated(gelu: bool, adapted: str, plain: Any) -> None:
    rows, width, rank = 40, 136, 16
    adapters = {
        "both": group(64, [width, width], rank),
        "up": [Adapter(rand(rank, 64), rand(width, rank), 1.5, 1, width)],
        "one over both": group(64, [2 * width], rank),
        "none": [],
    }[adapted]
    down = Adapter(rand(rank, width, scale=0.1), rand(64, rank), 1.0, 9, 0)
    dropout = Dropout(0.2, torch.tensor([1, 2], dtype=torch.int32, device=DEVICE))
    gu, dh, inner_grad = rand(rows, 2 * width), rand(rows, width), rand(rows, 1, 16)
    inner = rand(rows, len(adapters), 16) if adapters else None

    def everything() -> list[Any]:
        a, d = gu.clone(), dh.clone()
        out = layer_ops.gated(a, inner, adapters, gelu=gelu, exact=True)
        assert torch.equal(a, gu)
        layer_ops.gated_backward_(a, inner, adapters, d, inner_grad, down, dropout, gelu=gelu, exact=True)
        b, e = gu.clone(), dh.clone()
        layer_ops.gated_backward_(b, inner, adapters, e, None, None, None, gelu=gelu, exact=True)
        return [out, a, d, b, e]

    fast = everything()
    plain()
    for place, (a, b) in enumerate(zip(fast, everything(), strict=True)):
        close(a, b)
        # dropout's product is rounded otherwise, Gemma's activation has another tanh
        assert DEVICE == "cpu" or gelu or place in (1, 2) or torch.equal(a, b)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("width", [200, 1536, 4096])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(offset: float, width: int, exact: bool, plain: Any) -> None:
    x, delta, weight, dy, dtotal = rand(70, width), rand(70, width), rand(width), rand(70, width), rand(70, width)

    def everything() -> list[Any]:
        total, y, rstd = layer_ops.norm(x, weight, 1e-5, offset, delta, exact=exact)
        _, alone, _ = layer_ops.norm(x, weight, 1e-5, offset, exact=exact)
        return [
            total,
            y,
            rstd,
            alone,
            layer_ops.norm_backward(dy, total, weight, rstd, offset, dtotal, exact=exact),
            layer_ops.norm_backward(dy, total, weight, rstd, offset, None, exact=exact),
        ]

    fast = everything()
    plain()
    for a, b in zip(fast, everything(), strict=True):
        close(a, b)
        assert not exact or DEVICE == "cpu" or torch.equal(a, b)  # the sum over a row in torch's order


@pytest.mark.parametrize(("normed", "rotary"), [(False, 64), (False, 48), (True, 64)])
def test_rope(normed: bool, rotary: int, plain: Any) -> None:
    heads = Heads(5, 2, 64)
    qkv, cos, sin, grad = rand(11, 9 * 64), rand(11, rotary), rand(11, rotary), rand(11, 9 * 64)
    norm = HeadNorm(rand(64), rand(64), 1e-6, 1.0) if normed else None

    def everything() -> list[Any]:
        return [rope.rotate(qkv.clone(), heads, cos, sin, norm), rope.rotate_backward_(grad.clone(), qkv, heads, cos, sin, norm)]

    fast = everything()
    plain()
    for a, b in zip(fast, everything(), strict=True):
        close(a, b)
        assert normed or torch.equal(a, b)  # every product and every sum rounded, as torch's operations round them


def loss_of(
    hidden: torch.Tensor, head: Head, labels: torch.Tensor, counted: torch.Tensor, inverse: torch.Tensor, *, exact: bool = True
) -> list[torch.Tensor]:
    space = loss_module.workspace(loss_module.workspace_memory(hidden, head, exact=exact), hidden, head, exact=exact)
    gradient = torch.full_like(hidden, float("nan"))
    return [gradient, tiled_loss(hidden, head, labels, counted, inverse, space, gradient)]


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 5.0)])
def test_loss(scale: float, softcap: float | None, is_kept: bool, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "LOSS_TOKENS", 64)
    monkeypatch.setattr(activations, "LOSS_WORDS", 2048)
    monkeypatch.setattr(loss_module, "LOSS_WORDS", 2048)
    monkeypatch.setattr(activations, "LOGIT_BYTES", 2**30 if is_kept else 0)
    hidden, head = rand(150, 64), Head(rand(5000, 64, scale=0.5), scale, softcap)
    labels = torch.randint(0, 5000, (150,), device=DEVICE)
    counted = torch.arange(0, 149, 2, device=DEVICE)
    inverse = torch.full((1,), 0.01, device=DEVICE)
    runs = [loss_of(hidden, head, labels, counted, inverse, exact=exact) for exact in (True, False)]
    plain()
    for run in runs:
        for a, b in zip(run, loss_of(hidden, head, labels, counted, inverse), strict=True):
            close(a, b)


@pytest.mark.skipif(DEVICE == "cpu", reason="the order of its sums is the card's")
@pytest.mark.parametrize("vocab", [49152, 100000])
def test_the_loss_is_that_of_trl_to_the_bit(vocab: int) -> None:
    from trl.kernels import ChunkedLogProbFunction

    hidden, head = rand(1024, 576), Head(rand(vocab, 576, scale=0.05))
    labels = torch.randint(0, vocab, (1024,), device=DEVICE)
    counted = torch.randperm(1023, device=DEVICE)[:990].sort().values
    gradient, sums = loss_of(hidden, head, labels, counted, torch.full((1,), 1 / 990, device=DEVICE))
    asked = hidden.clone().requires_grad_()
    log_p, entropy, _, _, is_top = ChunkedLogProbFunction.apply(
        asked[counted], head.weight, None, labels[counted + 1], 1.0, 32768, None, 1.0, ("log_probs", "entropy", "is_top1")
    )
    (-log_p.sum() / torch.tensor(990, device=DEVICE)).backward()
    assert torch.equal(gradient, asked.grad)
    close(sums, torch.stack((-log_p.detach().sum(), entropy.sum(), is_top.sum().float())))


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
def test_dequantize(nested: bool, storage: torch.dtype) -> None:
    import bitsandbytes as bnb

    weight = torch.randn(192, 320, device=DEVICE).to(DTYPE)
    packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=nested, quant_type="nf4", quant_storage=storage)
    out = torch.full_like(weight, float("nan"))
    weights.dequantize_into(out, packed, state)
    expected = bnb.functional.dequantize_4bit(packed, state)
    assert float((out.float() - expected.float()).abs().max()) <= (0.02 if torch.bfloat16 == DTYPE else 1e-6)
    close(out, expected)
    half = torch.full((192, 128), float("nan"), device=DEVICE, dtype=DTYPE)
    weights.dequantize_into(half, packed, state, (64, 192))
    close(half, expected[:, 64:192])


@pytest.mark.skipif(DEVICE == "cpu", reason="fused products and sums are the card's")
def test_dequantized_weights_are_those_of_bitsandbytes_to_the_bit() -> None:
    import bitsandbytes as bnb

    # where the compiler fuses, about one block in 250,000 has another size: 247 numbers of a model with 106 million
    for _ in range(16):
        weight = torch.randn(4096, 4096, device=DEVICE).to(DTYPE)
        packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        out = torch.empty_like(weight)
        weights.dequantize_into(out, packed, state)
        assert torch.equal(out, bnb.functional.dequantize_4bit(packed, state))


def test_large_matrices_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes as bnb

    layers = []
    for size in (192, 64):
        layer = bnb.nn.Linear4bit(320, size, bias=True, compute_dtype=DTYPE, quant_type="nf4")
        layers.append(layer.to(DEVICE))
    x, grad = rand(40, 320), rand(40, 256)
    for group_ in (layers, layers[:1]):
        matrix = weights.FrozenMatrix(group_)
        g = grad[:, : matrix.num_out].contiguous()
        whole = matrix.apply(x), matrix.apply_transposed(g), *matrix.input_products(g, apart=True)
        monkeypatch.setattr(weights, "PART_BYTES", 1)
        for a, b in zip((matrix.apply(x), matrix.apply_transposed(g), *matrix.input_products(g, apart=True)), whole, strict=True):
            close(a, b)
        monkeypatch.undo()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_norms_of_a_chat(family: str, tmp_path: Path) -> None:
    from qlora_ui.engine.chat_norms import fuse_norms, restore_norms
    from tests.tiny.fast_models import build

    model = build(family, tmp_path, device=DEVICE, dtype=DTYPE).eval()
    ids = torch.randint(3, 160, (2, 9), device=DEVICE)
    with torch.inference_mode():
        plain = model(input_ids=ids, use_cache=False).logits
        assert fuse_norms(model) >= 5
        fused = model(input_ids=ids, use_cache=False).logits
        restore_norms(model)
        again = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(plain, again)
    # gemma norms what its layers give back, which is small in a random model and makes rounding larger
    assert float((fused - plain).float().norm() / plain.float().norm()) < (0.02 if torch.bfloat16 == DTYPE else 5e-3)
