"""Configurations of the models that the presets name, so that they can be estimated before anything is downloaded.

Published by their authors in config.json; what is left out here is the default of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.models.architecture import SMOLLM2_135M
from qlora_ui.models.builtin import HUB_ID


def _config(model_type: str, shape: tuple[int, int, int, int, int], **rest: Any) -> dict[str, Any]:
    """`shape`: hidden size, intermediate size, layers, heads, heads of keys and values."""
    hidden, intermediate, layers, heads, kv_heads = shape
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "dtype": "bfloat16",
        **rest,
    }


KNOWN_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    HUB_ID: SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _config(
        "llama", (2048, 8192, 24, 32, 32), vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": _config(
        "qwen2", (1536, 8960, 28, 12, 2), vocab_size=151936, max_position_embeddings=32768, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-32B-Instruct": _config(
        "qwen2", (5120, 27648, 64, 40, 8), vocab_size=152064, max_position_embeddings=32768, tie_word_embeddings=False
    ),
    "Qwen/Qwen3-4B-Instruct-2507": _config(
        "qwen3", (2560, 9728, 36, 32, 8), head_dim=128, vocab_size=151936, max_position_embeddings=262144, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _config(
        "llama", (3072, 8192, 28, 24, 8), head_dim=128, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _config(
        "llama", (4096, 14336, 32, 32, 8), vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _config(
        "mistral", (4096, 14336, 32, 32, 8), vocab_size=32768, max_position_embeddings=32768, sliding_window=None, tie_word_embeddings=False
    ),
    "microsoft/phi-4": _config(
        "phi3", (5120, 17920, 40, 40, 10), vocab_size=100352, max_position_embeddings=16384, sliding_window=None, tie_word_embeddings=False
    ),
    "google/gemma-2-9b-it": _config(
        "gemma2", (3584, 14336, 42, 16, 8), head_dim=256, vocab_size=256000, max_position_embeddings=8192, sliding_window=4096
    ),
}
