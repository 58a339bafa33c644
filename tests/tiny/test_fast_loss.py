"""The loss in tiles beside the whole logits: tiles of tokens and of words, a vocabulary that no tile divides, nothing that counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qlora_ui.engine.fast import loss
from qlora_ui.estimate import activations

TOKENS, WIDTH, VOCAB = 50, 24, 1025


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("num_counted", [0, 1, 40])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 5.0)])
def test_loss_and_gradient_are_those_of_whole_logits(  # noqa: PLR0917
    scale: float, softcap: float | None, num_counted: int, exact: bool, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word is a tile of its own; rows that do not count have a gradient of zero, whatever lay in memory before."""
    for module in (activations, loss):
        monkeypatch.setattr(module, "LOSS_WORDS", 256)
    monkeypatch.setattr(activations, "LOSS_TOKENS", 16)
    monkeypatch.setattr(activations, "LOGIT_BYTES", 2**20 if is_kept else 0)
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(TOKENS, WIDTH), torch.randn(VOCAB, WIDTH), torch.randint(0, VOCAB, (TOKENS,))
    counted = torch.randperm(TOKENS - 1)[:num_counted].sort().values
    labels[counted[-1:] + 1] = VOCAB - 1
    head, inverse = loss.Head(weight, scale, softcap), torch.full((1,), 1 / 7)
    gradient, memory = torch.full_like(hidden, torch.nan), loss.workspace_memory(hidden, head, exact=exact).fill_(255)
    space = loss.workspace(memory, hidden, head, exact=exact)
    sums = loss.tiled_loss(hidden, head, labels, counted, inverse, space, gradient)

    asked = hidden.clone().requires_grad_()
    logits = asked[counted] @ weight.t() * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_p, targets = functional.log_softmax(logits, -1), labels[counted + 1]
    expected = functional.nll_loss(log_p, targets, reduction="sum")
    (expected / 7).backward()
    entropy, num_top = -(log_p.exp() * log_p).sum(), (logits.argmax(-1) == targets).sum()
    torch.testing.assert_close(sums, torch.stack((expected, entropy, num_top.float())).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, asked.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "vocab"), [(576, 50257), (104, 32001), (100, 99)])
def test_parts_of_the_workspace_do_not_overlap(width: int, vocab: int, dtype: torch.dtype) -> None:
    """And rows of logits are a multiple of 128 bytes apart, of which kernels load 16 at a time."""
    hidden, head = torch.zeros(37, width, dtype=dtype), loss.Head(torch.zeros(vocab, width, dtype=dtype))
    memory = loss.workspace_memory(hidden, head, exact=True)
    space = loss.workspace(memory, hidden, head, exact=True)
    parts = [space.sums, space.chosen, space.logits]
    assert sum(part.nbytes for part in parts) == memory.nbytes
    ends = [part.data_ptr() - memory.data_ptr() + part.nbytes for part in parts]
    assert ends == [sum(part.nbytes for part in parts[: place + 1]) for place in range(3)]
    assert space.logits.stride(0) * dtype.itemsize % 128 == 0
