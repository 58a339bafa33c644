"""Few padded lengths for batches that are not packed: each length is one captured graph, each token of padding is wasted work."""

import random
from collections.abc import Sequence


def choose_buckets(lengths: Sequence[int], max_length: int, *, num_buckets: int = 4, multiple: int = 64) -> tuple[int, ...]:
    """Return at most `num_buckets` ascending lengths, multiples of `multiple` (the last at most `max_length`), with the least padding.

    Exact by dynamic programming over the rounded lengths; longer samples count as `max_length`. Every sample fits some bucket.
    """
    if num_buckets < 1 or max_length < 1 or multiple < 1:
        raise ValueError("Buckets, lengths and the multiple must be at least 1.")
    counts: dict[int, int] = {}
    for length in lengths:
        rounded = min((max(min(length, max_length), 1) + multiple - 1) // multiple * multiple, max_length)
        counts[rounded] = counts.get(rounded, 0) + 1
    edges = sorted(counts)
    if len(edges) <= num_buckets:
        return tuple(edges)
    # cost[j]: padded tokens of all samples up to edges[j - 1] with the current number of buckets; cut[k][j]: where the last bucket begins
    prefix = [0]
    for edge in edges:
        prefix.append(prefix[-1] + counts[edge])
    cost = [0.0] + [float("inf")] * len(edges)
    cuts: list[list[int]] = []
    for _ in range(num_buckets):
        best = [float("inf")] * (len(edges) + 1)
        best[0] = 0.0
        cut = [0] * (len(edges) + 1)
        for j in range(1, len(edges) + 1):
            for i in range(j):
                candidate = cost[i] + edges[j - 1] * (prefix[j] - prefix[i])
                if candidate < best[j]:
                    best[j], cut[j] = candidate, i
        cost = best
        cuts.append(cut)
    chosen: list[int] = []
    j = len(edges)
    for cut in reversed(cuts):
        if j == 0:
            break
        chosen.append(edges[j - 1])
        j = cut[j]
    return tuple(reversed(chosen))


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds `length`, or the largest one, to which such a sample is cut."""
    return next((bucket for bucket in buckets if bucket >= length), buckets[-1])


def batch_buckets(lengths: Sequence[int], batch_size: int, *, num_buckets: int = 8) -> tuple[int, ...]:
    """Return the padded lengths for batches of `batch_size` samples drawn at random, chosen for the longest sample of each."""
    if not lengths:
        return ()
    rng = random.Random(0)
    order = list(lengths)
    longest: list[int] = [max(lengths)]
    for _ in range(max(1, 2000 // max(1, len(order) // batch_size))):
        rng.shuffle(order)
        longest += [max(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    return choose_buckets(longest, max(lengths), num_buckets=num_buckets)
