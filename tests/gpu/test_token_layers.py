# ruff: noqa: E402
# mypy: disable-error-code="untyped-decorator"
"""The decode step's own layers say what the model's layers say, for every family, on one row and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ui.engine.fast.ops import uses_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a card it runs where Triton's interpreter does: TRITON_INTERPRET=1.
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not uses_triton(torch.zeros(1, device=DEVICE)), reason="Triton does not work here")]

from qlora_ui.engine.chat_adapters import RowSwitch
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_layers import TokenLayers
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.load import keep_plain_layout
from tests.tiny.fast_models import FAMILIES, build

KEYS = ["base", "default"]


@torch.inference_mode()
def test_a_kernel_that_does_not_run_here_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_ui.engine.fast import triton_token

    base, switch, layers = _ready("llama", tmp_path)
    cache = ChatCache(2, context=256, bucket=80)
    cache.reserve(KEYS, 70)
    forward = ForwardPass(base, cache, switch, DEVICE, capture=False, tokens=layers)
    forward.run(KEYS, [[5, 6, 7], [5, 6, 7]], [0, 0], [0, 1])
    want = forward.run(KEYS, [[8], [8]], [3, 3], [0, 1]).clone()

    class NotHere:
        def __getitem__(self, grid: object) -> object:
            raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(triton_token, "token_attend", NotHere())
    _assert_close(forward.run(KEYS, [[8], [8]], [3, 3], [0, 1]), want)
    assert "no kernel image" in layers.reason
    assert not layers.can((), (1, 1))


@pytest.mark.parametrize(("family", "storage"), [*((family, torch.uint8) for family in FAMILIES), ("qwen2", torch.bfloat16)])
@torch.inference_mode()
def test_single_tokens_as_the_model_itself_reads_them(family: str, storage: torch.dtype, tmp_path: Path) -> None:
    base, switch, layers = _ready(family, tmp_path, storage)
    cache = ChatCache(2, context=256, bucket=80)
    cache.reserve(KEYS, 70)
    plain = ForwardPass(base, cache, switch, DEVICE, capture=False)
    fused = ForwardPass(base, cache, switch, DEVICE, capture=False, tokens=layers)
    ids = torch.randint(3, 150, (2, 70), generator=torch.Generator().manual_seed(0)).tolist()
    plain.run(KEYS, [row[:60] for row in ids], [0, 0], [0, 1])
    for at in range(60, 66):
        tokens, starts = [row[at : at + 1] for row in ids], [at, at]
        want = plain.run(KEYS, tokens, starts, [0, 1]).clone()
        _forget(cache, at)
        got = fused.run(KEYS, tokens, starts, [0, 1]).clone()
        _assert_close(got, want)
        # One row alone, of the second side, over the same slots.
        _assert_close(fused.run(KEYS[1:], tokens[1:], starts[1:], [1]), want[1:])
    assert (want[0] - want[1]).abs().max() > 0.01
    # What it wrote into the cache is what the model itself goes on with.
    _assert_close(
        plain.run(KEYS, [row[66:67] for row in ids], [66, 66], [0, 1]), fused.run(KEYS, [row[66:67] for row in ids], [66, 66], [0, 1])
    )


def _ready(family: str, folder: Path, storage: torch.dtype = torch.uint8) -> tuple[Any, RowSwitch, TokenLayers]:
    """A model of the family with an adapter that says something, and its layers."""
    peft_model = build(family, folder, storage=storage)
    keep_plain_layout(peft_model)
    peft_model.to(DEVICE).eval()
    base = peft_model.get_base_model()
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    if family == "gemma2":
        base.config._attn_implementation = "eager"
    layers = TokenLayers(base)
    assert layers.reason == ""
    switch = RowSwitch()
    switch.install(peft_model)
    layers.install(peft_model)
    return base, switch, layers


def _forget(cache: ChatCache, at: int) -> None:
    for index in range(2):
        cache.layer(index).keys[:, :, at] = 7.0
        cache.layer(index).values[:, :, at] = 7.0


def _assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    if want.dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    else:
        assert (got - want).float().abs().mean() < 0.02 * want.float().abs().mean()
