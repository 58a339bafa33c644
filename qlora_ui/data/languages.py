"""Which scripts and languages a dataset is in, at a glance: letters are counted, common words are voted on."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

_SAMPLE_CHARS = 300
_VOTED_ROWS = 5000

# Starts of blocks of letters (Unicode 16) and the script's name; what lies between two starts belongs to the first.
_BLOCKS = (
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, "Latin"),
    (0x02B0, ""), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"),
    (0x0780, ""), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, ""),
    (0x0B80, "Tamil"), (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00, "Thai"),
    (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Burmese"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"),
    (0x13A0, ""), (0x1780, "Khmer"), (0x1800, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Kana"),
    (0x3100, ""), (0x3400, "Han"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""), (0xF900, "Han"), (0xFB00, ""),
    (0x20000, "Han"), (0x30000, ""),
)  # fmt: skip
_STARTS = np.array([start for start, _ in _BLOCKS], dtype=np.uint32)

_WORDS = {
    "English": "the and is of to in that it for with was you are this not have can what how your at be",
    "German": "der die und das ist nicht ein zu den mit sich auf eine wie auch ich wir sie haben kann bei von für im bis oder sind",
    "French": "le la les et des est une dans que pour qui pas sur avec vous je nous du au avez",
    "Spanish": "el los las que una por con para del es como pero más está se qué cómo tiene puede su",
    "Italian": "il di che non per una sono con del gli più nel della è come si ha può dei",
    "Portuguese": "não uma com para os por mais como dos ao são você seu foi da em na pode tem",
    "Dutch": "het een van dat niet met voor zijn op aan ook maar deze wordt naar ik hebben kan bij wij",
    "Polish": "nie się jest że na do jak to co przez dla od czy są po",
    "Turkish": "bir ve bu için ile çok daha olarak gibi var ne olan de da en",
    "Russian": "и в не на что с как это по для из но он она или",
    "Vietnamese": "và của là có được không cho một trong với các này để những khi",
    "Indonesian": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke",
}
_LANGUAGES = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_BY_SCRIPT = {"Kana": "Japanese", "Hangul": "Korean", "Han": "Chinese", "Greek": "Greek", "Arabic": "Arabic", "Hebrew": "Hebrew",
              "Thai": "Thai", "Devanagari": "Hindi", "Bengali": "Bengali", "Tamil": "Tamil", "Georgian": "Georgian"}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")


class Languages:
    """Counts letters by script over all rows, and votes on the language of the first few thousand."""

    def __init__(self) -> None:
        self._letters: Counter[str] = Counter()
        self._votes: Counter[str] = Counter()
        self._num_voted = 0

    def add(self, texts: list[str]) -> None:
        """The next rows; of each the first few hundred characters count."""
        heads = [text[:_SAMPLE_CHARS] for text in texts]
        together = "".join(heads)
        if together.isascii():
            # About the share of letters in English text; only the comparison with other scripts matters.
            self._letters["Latin"] += round(len(together) * 0.8)
        else:
            points = np.frombuffer(together.encode("utf-32-le", "replace"), dtype=np.uint32)
            counts = np.bincount(np.searchsorted(_STARTS, points, side="right") - 1, minlength=len(_BLOCKS))
            for (_, script), count in zip(_BLOCKS, counts.tolist(), strict=True):
                if script and count:
                    self._letters[script] += count
        # A few rows of every chunk, so that the end of a long file has its say.
        for head in heads[:: max(len(heads) // 40, 1)] if self._num_voted > 400 else heads[:400]:
            if self._num_voted < _VOTED_ROWS:
                self._vote(head)

    def _vote(self, text: str) -> None:
        self._num_voted += 1
        words = {word.lower() for word in _WORD.findall(text)}
        scores = {language: len(words & common) for language, common in _LANGUAGES.items()}
        best = max(scores, key=lambda language: scores[language])
        if scores[best] >= 2:
            self._votes[best] += 1
            return
        if not text.isascii():
            one = Languages()
            one._num_voted = _VOTED_ROWS
            one.add([text])
            script = one._letters.most_common(1)[0][0] if one._letters else ""
            script = "Kana" if one._letters["Kana"] else script
            self._votes[_BY_SCRIPT.get(script, "unclear")] += 1
        else:
            self._votes["unclear"] += 1

    def scripts(self) -> dict[str, float]:
        """Share of letters by script, the largest first; under half a percent is left out."""
        return _shares(self._letters)

    def languages(self) -> dict[str, float]:
        """Share of rows by language, the largest first; `unclear` for short or mixed rows and code."""
        return _shares(self._votes)


def _shares(counts: Counter[str]) -> dict[str, float]:
    total = sum(counts.values())
    if not total:
        return {}
    return {name: round(count / total, 3) for name, count in counts.most_common() if count >= 0.005 * total}
