"""A model read layer by layer gives the numbers of the model in one piece, for every family and every form that may not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fast_models import COMMON, FAMILIES

from qlora_ui.base.progress import Cancelled
from qlora_ui.engine.evaluate_models import BASE_FULL, MERGED_DEQUANTIZED, MERGED_ORIGINAL, UnquantizedModels, Variant
from qlora_ui.engine.evaluate_scores import EvalRow, Scores, score_rows
from qlora_ui.engine.evaluate_streamed import streamed_bytes
from qlora_ui.settings.run_config import RunConfig
from tests.tiny.test_exports import _config, _peft_model

CPU = torch.device("cpu")
LENGTHS = (12, 15, 13, 20)
ROWS = [EvalRow(list(range(length, 2 * length)), [-100] * 4 + list(range(length + 4, 2 * length))) for length in LENGTHS]


def _both(models: UnquantizedModels, variant: Variant, adapter: Path) -> tuple[Scores, Scores, list[tuple[int, int]]]:
    """Scores of the whole model and of the streamed one."""
    context: Any = models.plain() if variant == BASE_FULL else models.merged(adapter, dequantized=variant == MERGED_DEQUANTIZED)
    with context as model:
        whole = score_rows(model, ROWS, CPU)
    seen: list[tuple[int, int]] = []
    with models.by_layer(variant, adapter, ROWS, lambda done, total: seen.append((done, total))) as model:
        return whole, score_rows(model, ROWS, CPU), seen


def _assert_same(whole: Scores, streamed: Scores) -> None:
    assert streamed.nll == pytest.approx(whole.nll, abs=1e-4)
    assert streamed.num_right == whole.num_right and torch.equal(streamed.choices_N, whole.choices_N)
    assert whole.logits_NV is not None and streamed.logits_NV is not None
    assert torch.allclose(whole.logits_NV, streamed.logits_NV, atol=1e-4)


@pytest.mark.parametrize("variant", [BASE_FULL, MERGED_ORIGINAL, MERGED_DEQUANTIZED], ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora__modules_to_save": ("embed_tokens",)}, {"lora__targets": ("q_proj", "embed_tokens"), "lora__dora": True}],
    ids=["lora", "embedding trained", "embedding adapted"],
)
def test_layer_by_layer_the_numbers_are_the_same(tiny_model_dir: Path, tmp_path: Path, variant: Variant, changes: dict[str, Any]) -> None:
    config = _config(tiny_model_dir, **changes)
    _peft_model(tiny_model_dir, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    models = UnquantizedModels(tiny_model_dir, config, CPU, 10**6)
    whole, streamed, seen = _both(models, variant, tmp_path / "adapter")
    assert seen == [(0, 2), (1, 2)]
    _assert_same(whole, streamed)


def test_rows_that_are_there_twice_pass_once(tiny_model_dir: Path) -> None:
    models = UnquantizedModels(tiny_model_dir, _config(tiny_model_dir), CPU, 10**6)
    rows = [*ROWS, ROWS[0], ROWS[2], ROWS[0]]
    with models.plain() as model:
        whole = score_rows(model, rows, CPU)
    with models.by_layer(BASE_FULL, tiny_model_dir, rows, lambda done, total: None) as model:
        _assert_same(whole, score_rows(model, rows, CPU))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_streamed(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / family
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})).save_pretrained(folder)
    config = RunConfig().changed({"model.id": str(folder), "launch.device": "cpu"})
    models = UnquantizedModels(folder, config, CPU, 10**6)
    whole, streamed, _ = _both(models, BASE_FULL, tmp_path)
    _assert_same(whole, streamed)


def test_what_it_takes_grows_with_a_layer_and_not_with_the_depth(tmp_path: Path) -> None:
    from tiny_model import make_tiny_model

    shallow, deep = (make_tiny_model(tmp_path / str(depth), num_layers=depth) for depth in (2, 6))
    assert streamed_bytes(shallow, torch.float32, 20) == streamed_bytes(deep, torch.float32, 20) > 4 * 512 * 64
    assert streamed_bytes(deep, torch.float32, 2000) > streamed_bytes(deep, torch.float32, 20)


def test_it_can_be_stopped_between_two_layers(tiny_model_dir: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Cancelled("stopped")

    models = UnquantizedModels(tiny_model_dir, _config(tiny_model_dir), CPU, 10**6)
    with pytest.raises(Cancelled), models.by_layer(BASE_FULL, tiny_model_dir, ROWS, stop):
        raise AssertionError("not reached")
