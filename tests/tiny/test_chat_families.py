"""The chat's cache and masks give each family's own logits, over turns, windows and growing buffers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from qlora_ui.engine import chat_answer
from qlora_ui.engine.chat_adapters import RowSwitch
from qlora_ui.engine.chat_answer import Answering
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.load import keep_plain_layout
from qlora_ui.settings.sampling import Sampling
from tests.tiny.fast_models import COMMON, FAMILIES, build


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_same_logits_as_without_a_cache(family: str, attention: str, tmp_path: Path) -> None:
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("SDPA cannot cap the scores; the product never uses it here")
    peft_model = build(family, tmp_path)
    keep_plain_layout(peft_model)
    peft_model.eval()
    base = peft_model.get_base_model()
    base.config._attn_implementation = attention
    torch.manual_seed(0)
    texts = {"base": torch.randint(3, 150, (1, 40)), "default": torch.randint(3, 150, (1, 33))}
    with peft_model.disable_adapter():
        want = {"base": base(input_ids=texts["base"], use_cache=False).logits[0]}
    want["default"] = base(input_ids=texts["default"], use_cache=False).logits[0]

    switch = RowSwitch()
    switch.install(peft_model)
    cache = ChatCache(2, context=256, bucket=16)
    forward = ForwardPass(base, cache, switch, torch.device("cpu"), capture=False)
    keys = ["base", "default"]
    ids = [texts[key][0].tolist() for key in keys]
    for lengths in ((9, 4), (20, 16), (21, 17), (40, 33)):
        cache.reserve(keys, max(lengths))
        starts = [len(row.tokens) for row in cache.rows]
        parts = [row[start:length] for row, start, length in zip(ids, starts, lengths, strict=True)]
        logits = forward.run(keys, parts, starts, [0, 1])
        for index, key in enumerate(keys):
            cache.rows[index].tokens += parts[index]
            torch.testing.assert_close(logits[index], want[key][lengths[index] - 1], rtol=1e-4, atol=2e-5)
    # Back to an earlier place, one row alone, over another row's buffers.
    kept = cache.roll_back(cache.rows[1], ids[1][:12])
    assert kept == 11
    alone = forward.run(["default"], [ids[1][11:12]], [11], [1])
    torch.testing.assert_close(alone[0], want["default"][11], rtol=1e-4, atol=2e-5)


def longrope(original: int = 64) -> Any:
    """A model like Phi-3 128k: other factors from `original_max_position_embeddings` on."""
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, "partial_rotary_factor": 1.0}
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + 4 * place for place in range(8)]}
    lengths = {"max_position_embeddings": 2048, "original_max_position_embeddings": original, "sliding_window": None}
    config = Phi3Config(**{**COMMON, "num_key_value_heads": 4, "rope_parameters": rope | factors, **lengths})
    model = Phi3ForCausalLM(config).eval()
    for parameter in model.parameters():
        # Else attention is next to even, and where a token stands makes no difference.
        parameter.mul_(4 if parameter.ndim == 2 else 1)
    return model


@torch.inference_mode()
def test_padding_does_not_make_a_short_text_long() -> None:
    """Padding lies in the cache's last slot."""
    model = longrope()
    ids = torch.randint(3, 150, (50,)).tolist()
    cache = ChatCache(2, context=512, bucket=16)
    cache.reserve(["base", "other"], 200)
    forward = ForwardPass(model, cache, RowSwitch(), torch.device("cpu"), capture=False)
    padded = forward.run(["base", "base"], [ids, ids[:20]], [0, 0], [0, 1], at_least=60)
    for row, length in enumerate((50, 20)):
        want = model(input_ids=torch.tensor([ids[:length]]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(padded[row], want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("num_tokens", [60, 600])
@torch.inference_mode()
def test_a_text_that_grows_long_is_turned_by_one_set_of_factors(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows over the border in an answer, or begins beyond it and is read in parts; then a short one follows in the same cache."""
    model = longrope()
    seen: list[torch.Tensor] = []

    def greedy(logits_BV: torch.Tensor, *chosen_how: Any) -> torch.Tensor:
        seen.append(logits_BV[0].clone())
        return logits_BV.argmax(-1)

    monkeypatch.setattr(chat_answer, "choose_tokens", greedy)
    tokenizer = SimpleNamespace(decode=lambda ids, **named: "x" * len(ids), convert_ids_to_tokens=lambda ids: ["x"] * len(ids))
    chat: Any = SimpleNamespace(
        base=model, device=torch.device("cpu"), context_tokens=2048, stop_ids=frozenset(), tokenizer=tokenizer, num_layers=2
    )
    cache = ChatCache(2, context=2048, bucket=16)
    answering = Answering(chat, cache, ForwardPass(model, cache, RowSwitch(), torch.device("cpu"), capture=False))
    ids = torch.randint(3, 150, (num_tokens,)).tolist()
    for prompt in (ids, ids[:40]):
        seen.clear()
        answering.answer({"base": prompt}, {"base": "base"}, Sampling(temperature=0, max_tokens=12), lambda delta: None)
        text = list(prompt)
        for logits_V in seen:
            want = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits_V, want, rtol=1e-3, atol=1e-4)
            text.append(int(logits_V.argmax()))
        assert len(text) == len(prompt) + 12
