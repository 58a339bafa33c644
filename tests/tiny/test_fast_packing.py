"""Packing, its collator, and length buckets: nothing lost but what is counted, shapes that never change, positions that restart."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_ui.engine.fast import attention
from qlora_ui.engine.fast.buckets import batch_buckets, bucket_for, choose_buckets
from qlora_ui.engine.fast.micro_step import read_batch
from qlora_ui.engine.fast.packing import CountingCollator, PackedCollator, best_fit, pack_examples

LENGTHS = st.lists(st.integers(0, 90), max_size=60)


@given(LENGTHS, st.integers(1, 64))
def test_every_sample_is_in_one_row_and_no_row_overflows(lengths: list[int], row_length: int) -> None:
    packed = best_fit(lengths, row_length)
    placed = sorted(index for row in packed.rows for index in row)
    assert placed == [i for i, length in enumerate(lengths) if length]
    assert all(sum(min(lengths[i], row_length) for i in row) <= row_length for row in packed.rows)
    assert packed.num_tokens == sum(min(length, row_length) for length in lengths)
    assert packed.num_truncated == sum(length > row_length for length in lengths)
    assert packed.num_tokens <= len(packed.rows) * row_length


def test_best_fit_fills_rows_that_first_come_first_served_would_not() -> None:
    packed = best_fit([6, 5, 4, 5], 10)
    assert packed.rows == ((0, 2), (1, 3))


def test_lognormal_lengths_fill_rows_to_95_percent() -> None:
    import numpy as np

    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(150), 0.6, 2000), 16, 512).astype(int).tolist()
    packed = best_fit(lengths, 512)
    assert packed.num_tokens > 0.95 * 512 * len(packed.rows)


def test_collator_keeps_shapes_and_separates_documents() -> None:
    ids = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10] * 12]
    columns, packed = pack_examples(ids, ids, 8)
    assert packed.num_truncated == 1
    rows = [{key: values[i] for key, values in columns.items()} for i in range(len(columns["input_ids"]))]
    collator = PackedCollator(0, 8, 2, packed.max_documents)
    batches = [collator(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    assert len({tuple(batch[key].shape for key in ("input_ids", "labels", "position_ids", "cu_seq_lens_q")) for batch in batches}) == 1
    for batch in batches:
        starts = batch["cu_seq_lens_q"].unique().tolist()
        assert starts[0] == 0 and starts[-1] == 16 and 8 in starts
        for begin, end in itertools.pairwise(starts):
            assert batch["position_ids"][0, begin:end].tolist() == list(range(end - begin))
            assert batch["labels"][0, begin] == -100


def test_a_short_last_batch_is_filled_up_and_counts_nothing_more() -> None:
    batch = PackedCollator(0, 8, 3, 2)([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "seq_lengths": [3]}])
    assert batch["input_ids"].shape == (1, 24) and int((batch["labels"] != -100).sum()) == 2


def test_more_documents_than_announced_is_an_error() -> None:
    with pytest.raises(ValueError, match="documents"):
        PackedCollator(0, 8, 1, 1)([{"input_ids": [1] * 8, "seq_lengths": [2, 2, 2, 2]}])


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.integers(1, 5))
def test_buckets_hold_every_sample_and_are_few(lengths: list[int], num_buckets: int) -> None:
    buckets = choose_buckets(lengths, 512, num_buckets=num_buckets)
    assert len(buckets) <= num_buckets and list(buckets) == sorted(set(buckets)) and buckets[-1] <= 512
    assert all(bucket_for(min(length, 512), buckets) >= min(length, 512) for length in lengths)


def test_buckets_pad_least() -> None:
    lengths = [60] * 50 + [250] * 30 + [500] * 5 + [330]
    buckets = choose_buckets(lengths, 512, num_buckets=3)
    cost = sum(bucket_for(length, buckets) for length in lengths)
    edges = (64, 256, 384, 512)
    assert cost == min(sum(bucket_for(n, (*pair, 512)) for n in lengths) for pair in ((a, b) for a in edges for b in edges if a < b < 512))


def test_padded_batches_come_in_few_shapes() -> None:
    lengths = [40 + 37 * (i % 100) for i in range(3000)]  # up to 3,703: 30 round lengths
    buckets = batch_buckets(lengths, 4)
    assert len(buckets) <= 8 and buckets[-1] == max(lengths)
    shapes = set()
    for start in range(0, 400, 4):
        length = max(lengths[start : start + 4])
        ids = torch.zeros(4, length, dtype=torch.int64)
        labels = torch.randint(-1, 2, (4, length), generator=torch.Generator().manual_seed(start)) * 100
        told = CountingCollator(lambda rows, ids=ids, labels=labels: {"input_ids": ids, "labels": labels})([])
        batch = read_batch(told, torch.device("cpu"), buckets)
        asked = read_batch({"input_ids": ids, "labels": labels}, torch.device("cpu"), buckets)
        assert torch.equal(batch.counted, asked.counted)
        assert batch.max_length >= length and batch.ids.shape[0] == 4 * batch.max_length
        assert batch.labels.view(4, -1)[:, length:].eq(-100).all()
        shapes.add(batch.shape)
    assert len(shapes) <= 8
    assert batch_buckets([], 4) == ()


def test_packed_row_is_what_the_plain_collator_of_trl_reads() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ids = [[1, 2, 3], [4, 5], [6, 7, 8]]
    columns, _ = pack_examples(ids, ids, 8)
    rows = [{key: values[i] for key, values in columns.items()} for i in range(len(columns["input_ids"]))]
    theirs, ours = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows), PackedCollator(0, 8, 1, 3)(rows)
    assert torch.equal(ours["input_ids"], theirs["input_ids"]) and torch.equal(ours["position_ids"], theirs["position_ids"])
    assert torch.equal(ours["labels"], theirs["labels"])


@pytest.mark.parametrize(
    ("capability", "is_exact", "length", "is_cudnn"),
    [((9, 0), True, 64, True), ((9, 0), False, 64, False), ((9, 0), False, 2048, True), ((12, 0), True, 2048, False)],
)
def test_without_dropout_rows_go_to_the_kernel_that_sdpa_takes(
    capability: tuple[int, int], is_exact: bool, length: int, is_cudnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an RTX 50 torch itself prefers its flash kernel."""
    monkeypatch.setattr(attention, "supports_flash", lambda q, plan: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    plan = attention.VarlenPlan(torch.tensor([0, length]), length, 1.0, is_exact=is_exact)
    assert attention.prefers_cudnn(torch.zeros(length, 2, 64), plan) == is_cudnn
