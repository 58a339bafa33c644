"""The hashed dropout: its rate, its independence, and that one key gives one mask."""

from __future__ import annotations

import itertools

import pytest
import torch

from qlora_ui.engine.fast.dropout import Dropout, keep_mask, step_seed

ROWS, COLUMNS = 256, 1000


def mask(rate: float, salt: int, seed: tuple[int, int]) -> torch.Tensor:
    return keep_mask(Dropout(rate, torch.tensor(seed, dtype=torch.int32)), salt, ROWS, COLUMNS)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
def test_rate_is_met_overall_per_row_and_per_column(rate: float) -> None:
    dropped = ~mask(rate, 3, step_seed(0, 7, 1))
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(float(dropped.float().mean()) - rate) < 5 * deviation / (ROWS * COLUMNS) ** 0.5 + 1e-5
    assert float((dropped.float().mean(1) - rate).abs().max()) < 5 * deviation / COLUMNS**0.5
    assert float((dropped.float().mean(0) - rate).abs().max()) < 5.5 * deviation / ROWS**0.5


def test_masks_of_layers_steps_and_neighbours_are_uncorrelated() -> None:
    masks = [
        mask(0.3, salt, step_seed(0, step, micro))
        for salt, step, micro in ((0, 0, 0), (1, 0, 0), (8, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))
    ]
    limit = 5 / (ROWS * COLUMNS) ** 0.5
    centred = [(m.float() - 0.7) / 0.21**0.5 for m in masks]
    for a, b in itertools.combinations(centred, 2):
        assert abs(float((a * b).mean())) < limit
    m = centred[0]
    for a, b in ((m[:, :-1], m[:, 1:]), (m[:-1], m[1:]), (m[:, :-64], m[:, 64:]), (m[:, :-128], m[:, 128:])):
        assert abs(float((a * b).mean())) < 1.2 * limit


def test_two_masks_are_no_shifted_copies_of_each_other() -> None:
    a, b = (mask(0.5, salt, step_seed(1, 2, 3)).flatten()[:50_000].float() - 0.5 for salt in (0, 1))
    spectrum = torch.fft.rfft(a, 100_000) * torch.fft.rfft(b, 100_000).conj()
    assert float(torch.fft.irfft(spectrum).abs().max()) / 12_500 < 0.05


def test_same_key_same_mask_and_expectation_kept() -> None:
    seed = step_seed(5, 6, 7)
    assert torch.equal(mask(0.05, 2, seed), mask(0.05, 2, seed))
    dropout = Dropout(0.05, torch.tensor(seed, dtype=torch.int32))
    assert float(mask(0.05, 2, seed).float().mean()) * dropout.inverse_keep == pytest.approx(1, abs=3e-3)
    assert not Dropout(0.0, dropout.seed).active


def test_step_seeds_differ_and_fit_int32() -> None:
    seeds = {step_seed(run, step, micro) for run in range(4) for step in range(50) for micro in range(8)}
    assert len(seeds) == 1600
    assert all(-(2**31) <= word < 2**31 for pair in seeds for word in pair)
