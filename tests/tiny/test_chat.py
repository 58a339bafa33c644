"""The chat against transformers' own generate, on a real 4-bit model with real adapters."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from talk import HELLO, answers, write_adapter

from qlora_ui.base.errors import ModelError, QloraUiError, RunError, SettingsError
from qlora_ui.data.chat_history import ChatHistory
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import ChatService
from qlora_ui.engine.chat_adapters import check_adapter, layer_shapes
from qlora_ui.engine.chat_model import unpack_for_cpu
from qlora_ui.engine.decode import GrowingText, Noise, choose_tokens
from qlora_ui.engine.load import load_quantized
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling
from tests.conftest import make_tiny_model

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def shared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A workspace with a run that has an adapter and a checkpoint."""
    workspace = Workspace.at(tmp_path_factory.mktemp("chat"))
    run = create_run(workspace, RunConfig().changed({"model.id": str(tiny_model_dir), "launch.device": "cpu"}))
    write_adapter(run.adapter, tiny_model_dir, 3)
    write_adapter(run.checkpoints / "checkpoint-2", tiny_model_dir, 2)
    write_adapter(run.checkpoints / "checkpoint-3", tiny_model_dir, 8, use_dora=True)
    return workspace, run.id


@pytest.fixture
def service(shared: tuple[Workspace, str]) -> Iterator[ChatService]:
    service = ChatService(shared[0], Card())
    service.load(ChatTarget(run_id=shared[1]))
    yield service
    service.close()


def reference(service: ChatService, messages: list[Message], side: str, max_new_tokens: int = 24) -> str:
    """transformers' own generate, with PEFT's own forward."""

    def work(loaded: Any) -> str:
        from peft import PeftModel

        config = RunConfig()
        fresh = load_quantized(loaded.folder, config, torch.device("cpu"))
        model = fresh if side == "base" else PeftModel.from_pretrained(fresh, str(loaded.adapters[side]))
        model.eval()
        ids = torch.tensor([loaded.prompt_ids(messages)])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
        return str(loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    return str(service.call(work))


def test_both_sides_say_what_generate_says(service: ChatService) -> None:
    together = answers(service.stream(HELLO, GREEDY, ("base", "adapter")))
    assert together["base"] == reference(service, HELLO, "base")
    assert together["adapter"] == reference(service, HELLO, "adapter")
    assert together["base"] != together["adapter"]
    assert answers(service.stream(HELLO, GREEDY, ("adapter",)))["adapter"] == together["adapter"]
    assert answers(service.stream(HELLO, GREEDY, ("base",)))["base"] == together["base"]


def test_numbers_of_an_answer(service: ChatService) -> None:
    last = list(service.stream(HELLO, GREEDY))[-1]
    assert last.is_done and last.stopped_by in ("length", "end") and last.num_tokens <= 24
    assert last.tokens_per_s > 0 and 0 < last.first_token_s < 30


def passes(service: ChatService) -> list[int]:
    """Records how many tokens each later pass computes."""
    seen: list[int] = []
    run = service._pass.run  # type: ignore[union-attr]
    service._pass.run = lambda keys, ids, *more, **named: (seen.append(max(map(len, ids))), run(keys, ids, *more, **named))[1]  # type: ignore
    return seen


def test_second_turn_computes_only_what_is_new_and_edits_roll_back(service: ChatService) -> None:
    history = ChatHistory("be brief")
    history.ask("hello")
    for delta in service.stream(history.questions(("adapter",)), GREEDY):
        history.add(delta.side, delta.text)
    history.ask("how are you today")
    seen = passes(service)
    second = answers(service.stream(history.questions(("adapter",)), GREEDY))["adapter"]
    whole = service.count_tokens(history.questions(("adapter",))["adapter"])[0]
    assert seen[0] < whole / 2
    assert second == reference(service, history.questions(("adapter",))["adapter"], "adapter")
    history.add("adapter", second)
    history.edit(0, "world")
    seen.clear()
    edited = answers(service.stream(history.questions(("adapter",)), GREEDY))["adapter"]
    assert edited == reference(service, history.questions(("adapter",))["adapter"], "adapter")
    history.add("adapter", edited)
    history.retry()
    seen.clear()
    assert answers(service.stream(history.questions(("adapter",)), GREEDY))["adapter"] == edited
    assert seen[0] == 1


def test_sides_with_different_histories_in_one_batch(service: ChatService) -> None:
    own = {"base": [Message("user", "hello")], "adapter": [Message("user", "hello world " * 30), Message("assistant", "ok"), *HELLO]}
    together = answers(service.stream(own, GREEDY, ("base", "adapter")))
    for side, messages in own.items():
        assert together[side] == reference(service, messages, side)


def test_cache_grows_past_its_bucket(service: ChatService) -> None:
    long = [Message("user", "hello world how are you today " * 45)]
    assert service.count_tokens(long)[0] > 512 // 2
    assert answers(service.stream(long, GREEDY))["adapter"] == reference(service, long, "adapter")


def test_adapters_are_swapped_without_reloading_the_base(service: ChatService, shared: tuple[Workspace, str]) -> None:
    first = answers(service.stream(HELLO, GREEDY))["adapter"]
    base = service.call(lambda loaded: loaded.base)
    service.load(ChatTarget(run_id=shared[1], checkpoint="checkpoint-2"))
    assert service.call(lambda loaded: loaded.base) is base
    second = answers(service.stream(HELLO, GREEDY))["adapter"]
    assert second == reference(service, HELLO, "adapter") != first
    side = service.add_adapter(ChatTarget(run_id=shared[1]))
    three = answers(service.stream(HELLO, GREEDY, ("base", "adapter", side)))
    assert three["adapter"] == second and three[side] == first


def test_a_base_that_was_replaced_since_the_training_is_told_of(service: ChatService, shared: tuple[Workspace, str]) -> None:
    workspace, run_id = shared
    folder = workspace.runs / run_id / "checkpoints" / "checkpoint-2"
    loaded = service.loaded()
    assert loaded is not None and not loaded.warning
    for mark, is_told in ((service._base_mark, False), ("of others", True)):
        (folder / "manifest.json").write_text(json.dumps({"notes": {"weights_mark": mark}}), encoding="utf-8")
        told = service.load(ChatTarget(run_id=run_id, checkpoint="checkpoint-2")).warning
        assert ("was replaced since the adapter was trained" in told) == is_told
    (folder / "manifest.json").unlink()
    assert not service.load(ChatTarget(run_id=run_id)).warning


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_what_was_trained_in_full_leaves_with_its_adapter(service: ChatService, tiny_model_dir: Path, tmp_path: Path, module: str) -> None:
    folder = write_adapter(tmp_path / "full", tiny_model_dir, 4, modules_to_save=[module])
    weights = load_file(str(folder / "adapter_model.safetensors"))
    name = next(name for name in weights if module in name)
    torch.manual_seed(1)
    save_file({**weights, name: weights[name] + 0.05 * torch.randn_like(weights[name])}, str(folder / "adapter_model.safetensors"))

    def logits(loaded: Any) -> torch.Tensor:
        loaded.switch.choose(["base"], torch.float32, loaded.device)
        out: torch.Tensor = loaded.base(input_ids=torch.tensor([loaded.prompt_ids(HELLO)])).logits.clone()
        return out

    def swap(loaded: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loaded.remove_adapter("adapter")
        before = logits(loaded)
        loaded.add_adapter("full", folder)
        loaded.remove_adapter("full")
        return before, logits(loaded)

    before, after = service.call(swap)
    assert torch.equal(before, after)


def test_dora_answers_one_side_at_a_time(service: ChatService, shared: tuple[Workspace, str]) -> None:
    service.load(ChatTarget(run_id=shared[1], checkpoint="checkpoint-3"))
    got = answers(service.stream(HELLO, GREEDY, ("base", "adapter")))
    assert got["adapter"] == reference(service, HELLO, "adapter")
    assert got["base"] == reference(service, HELLO, "base")
    service.load(ChatTarget(run_id=shared[1]))
    assert answers(service.stream(HELLO, GREEDY))["adapter"] == reference(service, HELLO, "adapter")


def test_unpacked_weights_give_the_same_numbers_and_want_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_quantized(tiny_model_dir, RunConfig(), torch.device("cpu")).eval()
    ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        assert unpack_for_cpu(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    small = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr("qlora_ui.engine.chat_model.psutil.virtual_memory", lambda: small)
    assert not unpack_for_cpu(load_quantized(tiny_model_dir, RunConfig(), torch.device("cpu")))


def test_an_answer_falls_between_the_steps_of_others(service: ChatService) -> None:
    turns, done, steps = service._card.turns, threading.Event(), []

    def train() -> None:
        with turns.turn():
            while not done.is_set():
                steps.append(0)
                time.sleep(0.01)
                turns.pass_on()

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        assert answers(service.stream(HELLO, GREEDY))["adapter"]
    finally:
        done.set()
        trainer.join()
    assert steps


def test_sampling_has_numbers_of_its_own(service: ChatService) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, max_tokens=16, seed=7)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = answers(service.stream(HELLO, sampling))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert answers(service.stream(HELLO, sampling)) == first
    assert answers(service.stream(HELLO, sampling, ("base", "adapter")))["adapter"] == first["adapter"]
    drawn = list(service.stream(HELLO, Sampling(temperature=1.0, max_tokens=16)))[-1].seed
    assert answers(service.stream(HELLO, Sampling(temperature=1.0, max_tokens=16, seed=drawn)))


def test_choice_follows_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.25, 0.05]])).repeat(4000, 1)
    noise = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    one = Sampling(temperature=1, top_p=1)
    chosen = torch.stack([choose_tokens(logits[:1], one, u)[0] for u in noise])
    shares = torch.bincount(chosen, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.1, 0.6, 0.25, 0.05]), atol=0.02)
    cut = torch.stack([choose_tokens(logits[:1], Sampling(temperature=1, top_p=0.8), u)[0] for u in noise])
    assert set(cut.tolist()) == {1, 2}
    assert choose_tokens(logits[:1], Sampling(temperature=0), noise[0]).item() == 1
    assert choose_tokens(logits[:1], one, torch.tensor(0.99999994)).item() == 3
    assert Noise(Sampling(seed=1), 4, torch.device("cpu")).at(2) == Noise(Sampling(seed=1), 9, torch.device("cpu")).at(2)


def test_stop_reaches_answers_that_wait(service: ChatService) -> None:
    assert service._model is not None
    service._model.stop_ids = frozenset()
    streams = [service.stream(HELLO, Sampling(max_tokens=1500, seed=1)) for _ in range(3)]
    next(streams[0])
    service.stop()
    assert [list(stream)[-1].stopped_by for stream in streams] == ["stop"] * 3
    assert not service._to_stop
    assert answers(service.stream(HELLO, GREEDY))["adapter"]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_temperature_next_to_nothing_takes_the_likeliest(top_p: float) -> None:
    logits = torch.tensor([[1.0, 20.0, 3.0], [90.0, -20.0, 89.0]])
    for temperature in (1e-40, 1e-39, 1e-12):
        assert choose_tokens(logits, Sampling(temperature, top_p), torch.tensor(0.9)).tolist() == [1, 0]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1), Sampling(temperature=0)])
def test_what_is_not_a_number_gives_no_token(sampling: Sampling) -> None:
    nan, rows = float("nan"), torch.tensor([[0.0, 40.0, 0.0]] * 4)
    rows[1, 2], rows[2] = nan, nan
    rows[3, 0] = float("inf")
    assert choose_tokens(rows, sampling, torch.tensor(0.5)).tolist() == [1, -1, -1, -1]


@pytest.mark.parametrize("temperature", [0, 1])
def test_numbers_that_are_none_end_an_answer_and_not_the_chat(service: ChatService, temperature: float) -> None:
    sampling = Sampling(temperature, max_tokens=24, seed=1)
    expected = answers(service.stream(HELLO, sampling))
    assert service._pass is not None and service._cache is not None
    run, layer, calls = service._pass.run, service._cache.layer(0), []

    def break_once(*args: Any, **arguments: Any) -> torch.Tensor:
        calls.append(0)
        logits = run(*args, **arguments)
        if len(calls) == 3:
            layer.values[:, :, -20:-10] = float("nan")
            logits = logits * float("nan")
        return logits

    service._pass.run = break_once  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="NaN"):
        answers(service.stream(HELLO, sampling))
    assert len(calls) == 3
    assert answers(service.stream(HELLO, sampling)) == expected


def test_wrong_sampling_names_all_problems() -> None:
    with pytest.raises(SettingsError) as caught:
        Sampling(temperature=-1, top_p=0, max_tokens=0)
    assert {problem.where for problem in caught.value.problems} == {"temperature", "top_p", "max_tokens"}


def test_text_grows_without_broken_characters(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    text = "héllo 👩‍👩‍👧 世界\n    indented  spaces\n"
    growing = GrowingText(tokenizer)
    pieces = [growing.push(token) for token in tokenizer(text)["input_ids"]] + [growing.finish()]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    broken = GrowingText(tokenizer)
    half = tokenizer("👩", add_special_tokens=False)["input_ids"][:2]
    assert "".join([broken.push(token) for token in half]) == "" and broken.finish() == "\ufffd"


def test_stop_ends_within_a_token_and_leaving_the_loop_stops(service: ChatService) -> None:
    long = Sampling(temperature=1.0, max_tokens=1500, seed=1)
    deltas = service.stream(HELLO, long)
    next(deltas)
    threading.Timer(0.2, service.stop).start()
    rest = list(deltas)
    assert rest[-1].stopped_by in ("stop", "end")
    left = service.stream(HELLO, long)
    next(left)
    left.close()
    assert answers(service.stream(HELLO, GREEDY))["adapter"] == reference(service, HELLO, "adapter")


def test_context_is_full_in_words(service: ChatService) -> None:
    with pytest.raises(QloraUiError, match="reads at most 2,048"):
        list(service.stream([Message("user", "hello " * 3000)], GREEDY))
    assert answers(service.stream(HELLO, GREEDY))["adapter"]


def test_an_adapter_that_does_not_fit_leaves_nothing_half_loaded(
    service: ChatService, shared: tuple[Workspace, str], tiny_model_dir: Path
) -> None:
    other = create_run(shared[0], RunConfig().changed({"model.id": str(tiny_model_dir), "launch.device": "cpu"}))
    write_adapter(other.adapter, make_tiny_model(other.path / "wide", hidden=128), 1)
    with pytest.raises(ModelError, match="does not fit"):
        service.load(ChatTarget(run_id=other.id))
    assert service.loaded() is None
    with pytest.raises(QloraUiError, match="Load a model"):
        service.stream(HELLO)
    service.load(ChatTarget(run_id=shared[1]))
    assert answers(service.stream(HELLO, GREEDY))["adapter"] == reference(service, HELLO, "adapter")


def test_a_closed_chat_refuses_in_words(shared: tuple[Workspace, str]) -> None:
    service = ChatService(shared[0], Card())
    service.close()
    for ask in (service.unload, lambda: service.load(ChatTarget(run_id=shared[1])), lambda: service.call(print)):
        with pytest.raises(RunError, match="closing"):
            ask()
    service.close()


def test_unload_frees_and_gives_the_card_back(shared: tuple[Workspace, str]) -> None:
    card = Card()
    service = ChatService(shared[0], card)
    loaded = service.load(ChatTarget(run_id=shared[1]))
    assert loaded.sides == ("base", "adapter") and card.holder() is not None
    freed = service.unload()
    assert freed >= loaded.num_bytes > 0 and service.loaded() is None and card.holder() is None
    with pytest.raises(QloraUiError):
        service.stream(HELLO)
    with card.hold("training", "x"), pytest.raises(RunError, match="training run"):
        service._fits_beside = lambda config: False  # type: ignore[method-assign]
        service.load(ChatTarget(run_id=shared[1]))
    service.close()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows, where the Hub's cache does without them")
def test_a_model_of_the_hubs_cache_is_as_large_as_the_files_behind_its_links(
    shared: tuple[Workspace, str], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Links have no size: a model of any size was loaded beside a run wherever 512 MiB were free.
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    card = Card()
    service = ChatService(shared[0], card)
    free = psutil.virtual_memory()._replace(available=512 * 2**20 + (tiny_model_dir / "model.safetensors").stat().st_size)
    monkeypatch.setattr("qlora_ui.engine.chat.psutil.virtual_memory", lambda: free)
    with card.hold("training", "x"), pytest.raises(RunError, match="training run"):
        service.load(ChatTarget(model_id=str(tmp_path)))
    service.close()


def test_asking_the_card_unloads_the_chat(shared: tuple[Workspace, str]) -> None:
    card = Card()
    service = ChatService(shared[0], card)
    service.load(ChatTarget(run_id=shared[1]))
    assert card.free("chat")
    with card.hold("training", "x", wait_s=10):
        assert service.loaded() is None
    service.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "not LoRA"),
        ({"r": 10**7}, "rank"),
        ({"target_modules": "(a+)+$"}, "list of names"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"r": 8}, "would need 8"),
    ],
)
def test_bad_adapters_are_refused(
    changes: dict[str, Any], words: str, shared: tuple[Workspace, str], tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", tiny_model_dir, 1)
    layers = layer_shapes(load_quantized(tiny_model_dir, RunConfig(), torch.device("cpu")))
    assert check_adapter(folder, layers)["r"] == 4
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=words):
        check_adapter(folder, layers)


def test_adapter_of_another_base_and_damaged_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", tiny_model_dir, 1)
    layers = layer_shapes(load_quantized(tiny_model_dir, RunConfig(), torch.device("cpu")))
    weights = folder / "adapter_model.safetensors"
    with pytest.raises(ModelError, match="does not have"):
        check_adapter(folder, {name: shape for name, shape in layers.items() if ".layers.1." not in name})
    with pytest.raises(ModelError, match="would need"):
        check_adapter(folder, {name: (out, 2 * num_in) for name, (out, num_in) in layers.items()})
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(4, 4)}, weights)
    with pytest.raises(ModelError, match="would need"):
        check_adapter(folder, layers)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="damaged"):
        check_adapter(folder, layers)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="run code"):
        check_adapter(folder, layers)
