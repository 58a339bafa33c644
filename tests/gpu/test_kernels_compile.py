"""Every Triton kernel compiled for the cards that run it, with the arguments that a step gives it: needs Triton, and no card.

What only a card would show otherwise: an argument that a kernel is not given, a type that does not fit, a tile that is too large. For one
kind of card and one rank in the ordinary suite; QLORA_UI_LONG=1 adds the others.
"""
# ruff: noqa: E402  (torch and Triton are asked for first)

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from qlora_ui.engine.fast import layer_ops, loss, ops, rope, triton_layers, weights
from qlora_ui.engine.fast.dropout import Dropout
from qlora_ui.engine.fast.layers import MAX_RANK
from qlora_ui.engine.fast.ops import Adapter
from qlora_ui.engine.fast.rope import HeadNorm, Heads

SHARED_KIB = {80: 163, 89: 99, 90: 227, 120: 99}
"""Shared memory of a program on cards of a compute capability: A100; RTX 4090, L40S; H100, H200; RTX 5090."""
ROWS = 1024
CARDS = [pytest.param(capability, id=f"sm_{capability}", marks=[] if capability == 89 else pytest.mark.slow) for capability in SHARED_KIB]
RANKS = [16, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (8, 64, MAX_RANK))]


class Compiler:
    """Takes the place of Triton's launches: compiles for `capability` what would be launched, each variant once."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self._backend = make_backend(self._target)
        self._most = SHARED_KIB[capability] * 1024
        self.variants: set[str] = set()
        self.names: set[str] = set()

    def __call__(self, kernel: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(0 < size < 2**31 for size in grid) and all(size < 2**16 for size in grid[1:])
        options = {"debug": False, "instrumentation_mode": "", **named}
        bound, specialization, parsed = create_function_from_signature(kernel.signature, kernel.params, self._backend)(*given, **options)
        if (key := f"{kernel.__name__} {specialization} {parsed}") in self.variants:
            return
        self.variants.add(key)
        self.names.add(kernel.__name__)
        parsed, signature, constants, attributes = kernel._pack_args(self._backend, options, bound, specialization, parsed)
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self._target, options=parsed.__dict__)
        assert compiled.metadata.shared <= self._most, (kernel.__name__, compiled.metadata.shared, constants)


@pytest.fixture(params=CARDS)
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    for module in (ops, layer_ops, loss, rope, weights):
        monkeypatch.setattr(module, "uses_triton", lambda x: True)
    compiler = Compiler(request.param)

    def run(kernel: Any, *given: Any, **named: Any) -> None:
        compiler(kernel, *given, **named)

    monkeypatch.setattr(triton.JITFunction, "run", run)
    return compiler


def rand(*shape: int) -> Any:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def group(width: int, sizes: tuple[int, ...], rank: int) -> list[Adapter]:
    starts = itertools.accumulate(sizes[:-1], initial=0)
    return [
        Adapter(rand(rank, width), rand(size, rank), 2.0, salt, start) for salt, (size, start) in enumerate(zip(sizes, starts, strict=True))
    ]


def drops(rate: float) -> Dropout | None:
    return Dropout(rate, torch.zeros(2, dtype=torch.int32)) if rate else None


@pytest.mark.parametrize("rank", RANKS)
def test_projections_and_mlp(rank: int, compiler: Compiler) -> None:
    """Without dropout a step is exact: each layer's product apart, the activation as torch computes it."""
    hidden, mlp = 576, 1536
    for rate, (width, sizes) in itertools.product((0.0, 0.05), ((hidden, (hidden, 192, 192)), (hidden, (mlp, mlp)), (mlp, (hidden,)))):
        adapters, total = group(width, sizes, rank), sum(sizes)
        x, grad, dropout = rand(ROWS, width), rand(ROWS, total), drops(rate)
        inner = ops.project_down(x, adapters, dropout)
        back = ops.project_back(grad, inner, adapters, [rand(*ad.b.shape) for ad in adapters])
        ops.accumulate_a(back, x, adapters, [rand(*ad.a.shape) for ad in adapters], dropout)
        others = [None if rate else rand(ROWS, width) for _ in sizes[1:]]
        ops.add_input_gradients_([rand(ROWS, width), *others], range(len(sizes)), back, adapters, dropout)
        if sizes == (mlp, mlp):
            gu, dh, (down,) = rand(ROWS, total), rand(ROWS, mlp), group(mlp, (hidden,), rank)
            layer_ops.gated(gu, inner, adapters, gelu=False, exact=not rate)
            layer_ops.gated_backward_(gu, inner, adapters, dh, rand(ROWS, 1, inner.shape[2]), down, dropout, gelu=False, exact=not rate)
        else:
            ops.add_up_(rand(ROWS, total), inner, adapters, rand(ROWS, total) if len(sizes) == 1 else None)
    assert {name for name in compiler.names if "lora" in name} == {"lora_down", "lora_back", "lora_outer", "lora_dx", "lora_up"}


def test_layers_with_few_adapters(compiler: Compiler) -> None:
    """Only some of the layers that share an input are adapted, or none."""
    products = [rand(ROWS, 576) for _ in range(3)]
    adapters = group(576, (576, 192), 16)
    ops.add_input_gradients_(products, (-1, -1, -1), None, [], None)
    ops.add_input_gradients_(products, (0, -1, 1), rand(ROWS, 2, 16), adapters, None)
    for gelu, adapted in itertools.product((False, True), ([], group(576, (1536,), 16))):
        gu, inner = rand(ROWS, 3072), rand(ROWS, 1, 16) if adapted else None
        layer_ops.gated(gu, inner, adapted, gelu=gelu, exact=True)
        layer_ops.gated_backward_(gu, inner, adapted, rand(ROWS, 1536), None, None, None, gelu=gelu, exact=True)
    assert compiler.names == {"lora_dx", "gated_forward", "gated_backward"}


@pytest.mark.parametrize("width", [576, 8192])
def test_norms(width: int, compiler: Compiler) -> None:
    x, weight, rstd = rand(ROWS, width), rand(width), torch.zeros(ROWS)
    for offset, other in itertools.product((0.0, 1.0), (None, x)):
        for exact in (True, False):
            layer_ops.norm(x, weight, 1e-6, offset, other, exact=exact)
            layer_ops.norm_backward(x, x, weight, rstd, offset, other, exact=exact)
    assert compiler.names == {"norm_forward", "norm_backward", "norm_of_a_row", "norm_of_a_row_backward"}


@pytest.mark.parametrize(
    ("heads", "rotary", "offsets"),
    [(Heads(9, 3, 64), 64, ()), (Heads(32, 8, 128), 128, (0.0,)), (Heads(24, 8, 128), 96, ()), (Heads(4, 1, 256), 256, (1.0,))],
)
def test_rotary_embedding(heads: Heads, rotary: int, offsets: tuple[float, ...], compiler: Compiler) -> None:
    """Llama, Qwen 3, Phi-4 mini and Gemma 3."""
    weight = rand(heads.dim)
    for norm in (None, *(HeadNorm(weight, weight, 1e-6, offset) for offset in offsets)):
        qkv = rand(64, (heads.num_q + 2 * heads.num_k) * heads.dim)
        angles = rand(64, rotary)
        rope.rotate(qkv, heads, angles, angles, norm)
        rope.rotate_backward_(qkv, qkv, heads, angles, angles, norm)
    assert compiler.names == {"rope_forward", "rope_backward"}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("vocab", "softcap"), [(49152, None), (50257, None), (256000, 30.0)])
def test_loss(vocab: int, softcap: float | None, exact: bool, compiler: Compiler) -> None:
    hidden, head = rand(40, 64), loss.Head(rand(vocab, 64), softcap=softcap)
    space = loss.workspace(loss.workspace_memory(hidden, head, exact=exact), hidden, head, exact=exact)
    variants = []
    for counted in (39, 16, 1):
        places = torch.arange(counted)
        loss.tiled_loss(hidden, head, torch.zeros(40, dtype=torch.int64), places, torch.ones(1), space, torch.empty_like(hidden))
        variants.append(len(compiler.variants))
    assert len(set(variants)) == 1  # nothing is compiled in the middle of a run because a batch has another number of tokens that count
    assert compiler.names == {"fold_logits", "to_gradient"}


@pytest.mark.parametrize("nested", [True, False])
def test_weights(nested: bool, compiler: Compiler) -> None:
    table = torch.zeros(256)
    inner = SimpleNamespace(absmax=table, code=table, blocksize=256)
    absmax = torch.zeros(8, dtype=torch.uint8 if nested else torch.float32)
    state = SimpleNamespace(shape=(16, 256), absmax=absmax, code=table[:16], nested=nested, state2=inner, offset=table[:1], blocksize=64)
    for columns in (None, (64, 256)):
        first, last = columns or (0, 256)
        weights.dequantize_into(rand(16, last - first), torch.zeros(2048, 1, dtype=torch.uint8), state, columns)
    launch: Callable[..., Any] = triton_layers.gather_rows[(4,)]
    launch(torch.zeros(4, dtype=torch.int64), table.view(4, 64), table.view(4, 64), 64, BLOCK=64, num_warps=1)
    assert compiler.names == {"nf4_dequantize", "gather_rows"}
