"""What a loaded chat takes of the memory: the 4-bit model, and keys and values of what was said."""

from __future__ import annotations

from qlora_ui.estimate.memory import quantized_bytes
from qlora_ui.models.facts import ModelFacts


def cache_bytes(facts: ModelFacts, num_tokens: int, *, num_rows: int = 1, element_bytes: int = 2) -> int:
    """Keys and values of `num_tokens` in each row (a row for each side of a comparison): 2 x layers x key-value heads x head size.

    The cache grows by doubling, so that up to twice as many tokens may be reserved as are held; windows do not shorten it.
    """
    return 2 * facts.num_layers * facts.key_width * element_bytes * num_tokens * num_rows


def chat_bytes(facts: ModelFacts, num_tokens: int, *, double_quant: bool = True, num_rows: int = 1, element_bytes: int = 2) -> int:
    """A chat with that many tokens in its cache: packed weights, what stays in 16 bits, and the cache; adapters come on top."""
    other = facts.num_embedding_params + facts.num_bias_params + facts.num_norm_params
    weights = quantized_bytes(facts, double_quant=double_quant) + other * element_bytes
    return weights + cache_bytes(facts, num_tokens, num_rows=num_rows, element_bytes=element_bytes)
