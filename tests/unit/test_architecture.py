"""What facts_from_config refuses, and the built-in model's facts."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ui.base.errors import ModelError
from qlora_ui.models.architecture import SMOLLM2_135M, builtin_facts, facts_from_config


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"num_local_experts": 8}, "model-moe", "8 experts"),
        ({"model_type": "qwen3_moe"}, "model-moe", "experts"),
        ({"model_type": "deepseek_v9", "auto_map": {"AutoModel": "x.Y"}}, "model-unsupported", "code of its own"),
        ({"model_type": None}, "model-unsupported", "no model type"),
        ({"vision_config": {}}, "model-multimodal", "images"),
        ({"quantization_config": {"quant_method": "gptq"}}, "model-quantized", "gptq"),
        ({"model_type": "mistral", "architectures": ["MistralModel"]}, "model-no-text", "MistralModel"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "model-no-text", "LlamaForSequenceClassification"),
        ({"hidden_size": "576"}, "model-config", "hidden_size"),
        ({"num_hidden_layers": 0}, "model-config", "num_hidden_layers"),
        ({"vocab_size": True}, "model-config", "vocab_size"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": None},
            "model-config",
            "max_window",
        ),
        ({"model_type": "gemma3_text", "sliding_window_pattern": "six"}, "model-config", "sliding_window_pattern"),
    ],
)
def test_refuses_with_a_reason(changes: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        facts_from_config({**SMOLLM2_135M, **changes})
    problem = caught.value.problems[0]
    assert problem.code == code
    assert words in str(caught.value)
    assert problem.fix


def test_builtin_model() -> None:
    facts = builtin_facts()
    assert facts.num_params == 134_515_008  # what its Hub page counts
    assert facts.num_quantized_params == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert facts.is_tied and facts.head_dim == 64 and facts.context_tokens == 8192


@pytest.mark.parametrize("named", [None, [], "LlamaForCausalLM", {}])
def test_a_config_need_not_name_its_class(named: object) -> None:
    assert facts_from_config({**SMOLLM2_135M, "architectures": named}).architecture == ""


def test_known_code_in_a_known_type_does_no_harm() -> None:
    # Phi-3's config.json names Python files although transformers has the model; they are never read.
    assert facts_from_config({**SMOLLM2_135M, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}).num_layers == 30
