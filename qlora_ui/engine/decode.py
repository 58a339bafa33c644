"""From logits to tokens to text: sampling, and text that grows without broken characters.

Shapes: B sides answered at once, V words of the vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch

from qlora_ui.settings.sampling import Sampling

MAX_PENDING_TOKENS = 8
"""Tokens that may wait for the rest of a character; the longest one has 4 bytes, so more means that they are no text."""


NO_TOKEN = -1
"""Chosen where the logits hold no numbers (NaN)."""
COLDEST = 1e-6
"""Smallest temperature above 0 that is divided by: below it logits become infinite, and the likeliest token was chosen long before."""


class Noise:
    """The random numbers of one answer, from a generator of their own.

    Drawn on the CPU before the first token: a graph that is being captured owns CUDA's generator, and training's random
    numbers stay untouched. All sides share them, so that a difference between answers is the adapter's doing, not luck's.
    """

    def __init__(self, sampling: Sampling, num_tokens: int, device: torch.device) -> None:
        self.seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        generator = torch.Generator().manual_seed(self.seed)
        self._uniform = torch.rand(num_tokens, generator=generator).to(device)

    def at(self, index: int) -> torch.Tensor:
        """The number in [0, 1) that decides token `index`."""
        return self._uniform[index]


def choose_tokens(logits_BV: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> torch.Tensor:
    """The next token of every row: the likeliest, or the one at `uniform` on the line of sorted probabilities, cut at top-p.

    NO_TOKEN for a row with NaN in it, which is seen where tokens are read back anyway: asking the card would make it wait.
    """
    if sampling.temperature == 0:
        best_BV, chosen_B = logits_BV.max(-1)
        return chosen_B.where(best_BV.isfinite(), NO_TOKEN)
    probs_BV, order_BV = torch.softmax(logits_BV.float() / max(sampling.temperature, COLDEST), -1).sort(-1, descending=True)
    if sampling.top_p < 1:
        before_BV = probs_BV.cumsum(-1) - probs_BV
        probs_BV = torch.where(before_BV < sampling.top_p, probs_BV, 0.0)
    reached_BV = probs_BV.cumsum(-1)
    place_B1 = (reached_BV <= uniform * reached_BV[:, -1:]).sum(-1, keepdim=True)
    # Rounding may carry the last step past the last token that is allowed. NaN allows none, and an index below 0 breaks a card's process.
    allowed_B1 = (probs_BV > 0).sum(-1, keepdim=True) - 1
    chosen_B1 = order_BV.gather(-1, torch.minimum(place_B1, allowed_B1).clamp(min=0))
    return chosen_B1.where(allowed_B1 >= 0, NO_TOKEN).squeeze(-1)


class GrowingText:
    """The text of an answer, handed out as it becomes certain.

    A token may hold part of a character, and some tokenizers put the space before a word on the word: so text is decoded
    from the last certain place on, and bytes that are no character yet are held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._certain = 0

    def push(self, token_id: int) -> str:
        """The new text that this token completes; may be empty."""
        self._ids.append(token_id)
        return self._take(at_end=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._take(at_end=True)

    def _take(self, *, at_end: bool) -> str:
        old = self._decode(self._ids[self._start : self._certain])
        new = self._decode(self._ids[self._start :])
        waits = new.endswith("\ufffd") and len(self._ids) - self._certain < MAX_PENDING_TOKENS
        if (waits and not at_end) or len(new) <= len(old):
            return ""
        self._start, self._certain = self._certain, len(self._ids)
        return new[len(old) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
