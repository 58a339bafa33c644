"""The captured chat on a card: the tokens of the plain one, whatever comes between, and every byte back at the end."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ui.data.rows import Message
from qlora_ui.runs.card import Card
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.talk import HELLO, answers, write_adapter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def service(tiny_model_dir: Path, tmp_path: Path) -> Any:
    from qlora_ui.engine.chat import ChatService
    from qlora_ui.runs.chat_target import ChatTarget

    workspace = Workspace.at(tmp_path / "workspace")
    run = create_run(workspace, RunConfig().changed({"model.id": str(tiny_model_dir)}))
    for seed, folder in enumerate((run.adapter, run.checkpoints / "checkpoint-2")):
        write_adapter(folder, tiny_model_dir, seed + 1)
    service = ChatService(workspace, Card())
    service.load(ChatTarget(run_id=run.id))
    yield service
    service.close()


def plain(service: Any, *asked: Any) -> dict[str, str]:
    """The same question without graphs."""
    service._pass.reason = "for comparison"
    service._cache.forget()
    got = answers(service.stream(*asked))
    service._pass.reason = ""
    service._cache.forget()
    return got


def test_captured_says_what_the_plain_step_says(service: Any) -> None:
    from qlora_ui.runs.chat_target import ChatTarget
    from qlora_ui.settings.sampling import Sampling

    assert not service.loaded().reason
    greedy = Sampling(temperature=0, max_tokens=40)
    both = ("base", "adapter")
    for sides in (both, ("adapter",), ("base",)):
        assert answers(service.stream(HELLO, greedy, sides)) == plain(service, HELLO, greedy, sides)
    # A second turn on what the first left in the cache, longer than the first buffers.
    long = [*HELLO, Message("assistant", "yes " * 300), Message("user", "hello world how are you today " * 80)]
    assert answers(service.stream(long, greedy, both)) == plain(service, long, greedy, both)
    # The base's part of the cache outlives a change of adapter.
    service.load(ChatTarget(run_id=service.loaded().target.run_id, checkpoint="checkpoint-2"))
    assert answers(service.stream(HELLO, greedy, both)) == plain(service, HELLO, greedy, both)
    wild = Sampling(temperature=1.0, max_tokens=24, seed=5)
    assert answers(service.stream(HELLO, wild, both)) == plain(service, HELLO, wild, both)
    assert not service._pass.reason


def test_cycles_give_every_byte_back(service: Any) -> None:
    from qlora_ui.settings.sampling import Sampling

    target = service.loaded().target
    service.unload()
    gc.collect()
    torch.cuda.empty_cache()
    start = torch.cuda.memory_allocated()
    for _ in range(5):
        service.load(target)
        list(service.stream(HELLO, Sampling(max_tokens=8), ("base", "adapter")))
        assert service.unload() > 0
    assert abs(torch.cuda.memory_allocated() - start) < 2**20


def test_training_numbers_stay_untouched(service: Any) -> None:
    from qlora_ui.settings.sampling import Sampling

    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    list(service.stream(HELLO, Sampling(max_tokens=8), ("base", "adapter")))
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_model_that_cannot_be_captured_answers_and_leaves_nothing_behind(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_ui.settings.sampling import Sampling

    greedy = Sampling(temperature=0, max_tokens=20)
    said = answers(service.stream(HELLO, greedy, ("adapter",)))
    forward = service._pass._forward
    service._pass.forget_graphs()

    def asks_the_card(inputs: Any, num_rows: int) -> Any:
        logits = forward(inputs, num_rows)
        logits[0, 0].item()
        return logits

    monkeypatch.setattr(service._pass, "_forward", asks_the_card)
    service._cache.forget()
    assert answers(service.stream(HELLO, greedy, ("adapter",))) == said
    assert "cannot be captured" in service._pass.reason
    # Training in this process goes on drawing random numbers, and what is cached can be given back.
    before = torch.cuda.get_rng_state()
    assert torch.isfinite(torch.randn(8, device="cuda")).all() and not torch.equal(before, torch.cuda.get_rng_state())
    cached = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del cached
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 2**28
