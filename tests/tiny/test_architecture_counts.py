"""Counts from config.json against the models that transformers builds from the same configuration, on the meta device."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_ui.models.architecture import SUPPORTED_TYPES, facts_from_config

# Real configurations, as their config.json has them (absent keys are absent there too).
CONFIGS = {
    "SmolLM2-135M": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "Llama-3.1-8B": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "Llama-3.2-3B": {"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128,
                     "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "llama with biases": {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
                          "attention_bias": True, "mlp_bias": True, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000},
    "Qwen2.5-1.5B": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": False,
                     "sliding_window": 32768, "max_window_layers": 21},
    "Qwen2.5-7B": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "Qwen3-0.6B": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "Mistral-7B-v0.3": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "sliding_window": None},
    "Mistral-Nemo": {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40, "head_dim": 128,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131072, "sliding_window": None},
    "gemma-2b": {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                 "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256},
    "gemma-2-2b": {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                   "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    "gemma-3-1b": {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
                   "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512},
    "Phi-3-mini": {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 32, "sliding_window": 2047},
    "Phi-4-mini": {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
                   "num_key_value_heads": 8, "vocab_size": 200064, "tie_word_embeddings": True, "partial_rotary_factor": 0.75},
    "SmolLM3-3B": {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                   "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256},
    "defaults only": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4,
                      "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_the_built_model(name: str) -> None:
    facts = facts_from_config(CONFIGS[name])
    config = AutoConfig.for_model(**CONFIGS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = {
        module_name.rsplit(".", 1)[-1]: module
        for module_name, module in model.model.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {(item.name, item.num_in, item.num_out, item.has_bias) for item in facts.linears} == {
        (key, module.in_features, module.out_features, module.bias is not None) for key, module in linears.items()
    }
    assert facts.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert facts.head_dim == model.model.layers[0].self_attn.head_dim
    types = getattr(config, "layer_types", None)
    if types and facts.model_type not in ("llama",):
        assert facts.num_windowed_layers == sum(kind == "sliding_attention" for kind in types)
    rotary = model.model.rotary_emb
    inv_freq = getattr(rotary, "inv_freq", None)
    if inv_freq is not None:
        assert (facts.rotary_dim or facts.head_dim) == 2 * inv_freq.numel()
    assert facts.activation in (getattr(config, "hidden_act", None), getattr(config, "hidden_activation", None))
    assert facts.logit_softcap == getattr(config, "final_logit_softcapping", None)


def test_every_supported_type_is_compared() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(SUPPORTED_TYPES)
