"""What a chat takes of the memory beside its model: keys and values of what was said."""

from __future__ import annotations

from qlora_ui.models.facts import ModelFacts


def cache_bytes(facts: ModelFacts, num_tokens: int, *, num_rows: int = 1, element_bytes: int = 2) -> int:
    """Keys and values of `num_tokens` in each row (a row for each side of a comparison): 2 x layers x key-value heads x head size.

    The cache grows by doubling, so that up to twice as many tokens may be reserved as are held; windows do not shorten it.
    """
    return 2 * facts.num_layers * facts.key_width * element_bytes * num_tokens * num_rows
