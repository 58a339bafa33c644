"""What an evaluation measures: names and words for the page, and the few lines that compute the ones on text. No torch here.

A metric to add: a Metric in METRICS, and where it is about an answer's text a function in TEXT_METRICS.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of the quality receipt."""

    name: str
    title: str
    help: str
    term: str = ""
    """The field's word, where the title is everybody's."""


METRICS = (
    Metric("loss", "Loss", "Surprise at each learned token of the held-back rows, in nats: the number that training lowers."),
    Metric("perplexity", "Perplexity", "e to the loss: among how many equally likely words the model hesitates."),
    Metric("accuracy", "Token accuracy", "Share of learned tokens that the model would have chosen itself."),
    Metric(
        "exact_match",
        "Word for word",
        "Share of answers that say just what the row says, but for case and spaces.",
        "exact match",
    ),
    Metric("label_f1", "The right label", "Balance of hits and false alarms, the mean of all labels.", "F1"),
    Metric("rouge_l", "Words in common", "How much of an answer and of the row's are the same words in the same order.", "ROUGE-L"),
    Metric("json_validity", "Valid JSON", "Share of answers that are JSON."),
)


MOST_ROWS = 200
"""Held-back rows that an evaluation looks at unless told otherwise."""
FEWEST_ROWS = 6
"""For an interval of 95 %: five of five rows point the same way by chance once in 16 times, six of six once in 32."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; the ends are None where there are too few rows for one."""

    value: float
    low: float | None
    high: float | None


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *, rounds: int = 1000, seed: int = 0) -> Estimate:
    """Mean of one value a row (weighted where rows hold more tokens than others) with its interval: rows are drawn again and again."""
    heavy = list(weights) if weights is not None else [1.0] * len(values)
    mean = sum(value * weight for value, weight in zip(values, heavy, strict=True)) / sum(heavy)
    if len(values) < FEWEST_ROWS:
        return Estimate(mean, None, None)
    draw = random.Random(seed)
    means = []
    for _ in range(rounds):
        rows = draw.choices(range(len(values)), k=len(values))
        means.append(sum(values[row] * heavy[row] for row in rows) / sum(heavy[row] for row in rows))
    means.sort()
    return Estimate(mean, means[int(0.025 * (rounds - 1))], means[int(0.975 * (rounds - 1))])


def mean_share(shares: Sequence[float]) -> Estimate:
    """Mean of one share an answer; where each is 0 or 1 with Wilson's interval (1927): drawn again, answers all right would be certain."""
    if not set(shares) <= {0.0, 1.0} or len(shares) < FEWEST_ROWS:
        return bootstrap(shares)
    mean, squared = sum(shares) / len(shares), 1.96**2 / len(shares)
    middle, reach = mean + squared / 2, math.sqrt(squared * (mean * (1 - mean) + squared / 4))
    # Rounding must not carry an end past 0 or 1.
    return Estimate(mean, max((middle - reach) / (1 + squared), 0.0), min((middle + reach) / (1 + squared), 1.0))


def applicable(references: Sequence[str]) -> list[str]:
    """Which text metrics make sense for these reference answers."""
    if not references:
        return []
    names = []
    plain = [_plain(text) for text in references]
    is_json = sum(map(is_valid_json, references)) >= 0.8 * len(references)
    is_short = sorted(map(len, plain))[len(plain) // 2] <= 60
    distinct = set(plain)
    if is_json:
        names.append("json_validity")
    if not is_json and is_short and 2 <= len(distinct) <= len(plain) // 2 and max(map(len, distinct)) <= 60:
        names.append("label_f1")
    if is_short or is_json:
        names.append("exact_match")
    if not is_json and "label_f1" not in names:
        names.append("rouge_l")
    return names


def exact_match(answer: str, reference: str) -> float:
    """1 where both are equal but for case and spaces; JSON is compared by what it says."""
    try:
        return float(json.loads(answer) == json.loads(reference))
    except ValueError:
        return float(_plain(answer) == _plain(reference))


def without_thinking(text: str) -> str:
    """What an answer says once it has thought; nothing where its thinking has no end."""
    _, end, said = text.rpartition("</think>")
    return said.strip() if end else "" if text.lstrip().startswith("<think>") else text


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), lower case, without punctuation."""
    left, right = words_of(answer), words_of(reference)
    if not right:
        # Signs and pictures only: then those count.
        left, right = list("".join(answer.split())), list("".join(reference.split()))
    if not left or not right:
        return float(left == right)
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for index, other in enumerate(right, 1):
            diagonal, row[index] = row[index], diagonal + 1 if word == other else max(row[index], row[index - 1])
    return 2 * row[-1] / (len(left) + len(right))


def is_valid_json(text: str) -> bool:
    """Whether the text is a JSON object or list, a code fence around it allowed."""
    try:
        return isinstance(json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())), dict | list)
    except ValueError:
        return False


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "json_validity": lambda answer, reference: float(is_valid_json(answer)),
}
"""Value of one answer; label F1 is a number of all answers together."""


def label_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Macro F1 over the reference labels and the confusion matrix; answers that are no label count as “(other)”.

    Returns `{"f1", "labels", "matrix", "per_label"}`, rows of the matrix being the references.
    """
    names = {_plain(text): text.strip() for text in references}
    labels = sorted(names)
    counts: Counter[tuple[str, str]] = Counter()
    for answer, reference in zip(answers, references, strict=True):
        said = _plain(answer)
        counts[_plain(reference), said if said in names else ""] += 1
    per_label = {}
    for label in labels:
        hits = counts[label, label]
        num_said = sum(counts[reference, label] for reference in labels)
        num_meant = sum(counts[label, answer] for answer in [*labels, ""])
        per_label[names[label]] = {
            "precision": hits / num_said if num_said else 0.0,
            "recall": hits / num_meant if num_meant else 0.0,
            "f1": 2 * hits / (num_said + num_meant) if num_said + num_meant else 0.0,
            "count": num_meant,
        }
    return {
        "f1": sum(scores["f1"] for scores in per_label.values()) / len(labels),
        "labels": [names[label] for label in labels] + ["(other)"],
        "matrix": [[counts[label, other] for other in [*labels, ""]] for label in labels],
        "per_label": per_label,
    }


UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of scripts that write no spaces between words (Thai, Lao, Burmese, Khmer, kana, Han): each counts as a word."""
_WORDS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .。")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return _WORDS.findall(text.lower())
