"""What an evaluation says of its numbers: intervals that hold, and verdicts that follow from them."""

from __future__ import annotations

import pytest

from qlora_ui.catalog.metrics import Estimate, applicable, bootstrap, mean_share
from qlora_ui.engine.evaluate_verdict import verdict


@pytest.mark.parametrize("gains", [[0.5], [0.5, 0.4], [0.5, 0.4, 0.3, 0.2, 0.1]])
def test_a_handful_of_rows_proves_nothing(gains: list[float]) -> None:
    # One row drawn again is the same row: "95 %: 0.50 to 0.50", and a green tick.
    said = verdict({}, bootstrap(gains), None, len(gains))
    assert said["kind"] == "unsure" and "too few to rely on: hold back at least 6" in said["text"] and "95 %" not in said["text"]


def test_six_rows_that_point_the_same_way_are_enough() -> None:
    assert verdict({}, bootstrap([0.5, 0.4, 0.3, 0.2, 0.1, 0.6]), None, 6)["kind"] == "better"


def test_no_difference_is_no_lack_of_rows() -> None:
    said = verdict({}, bootstrap([0.0] * 200), None, 200)
    assert said["kind"] == "same" and said["text"] == "Your adapter changes next to nothing on these rows (95 %: loss unchanged)."
    assert verdict({}, Estimate(0.002, 0.001, 0.003), None, 200)["kind"] == "same"
    assert verdict({}, Estimate(0.1, -0.1, 0.3), None, 8)["kind"] == "unsure"


def test_a_loss_that_rose_is_said_with_one_sign() -> None:
    said = verdict({}, Estimate(-0.4, -0.5, -0.3), None, 50)
    assert said["kind"] == "worse"
    assert "33 % less likely than the base does (loss 0.40 nats a token higher; 95 %: 0.30 to 0.50)" in said["text"]


def test_a_verdict_says_what_a_gain_means_before_the_unit_of_the_loss() -> None:
    # Somebody who does not code knows no nat: e to the gain is how many times as likely the right word is.
    said = verdict({}, Estimate(1.05, 0.85, 1.25), None, 50)["text"]
    assert said == (
        "Your adapter finds the words of these rows 2.9 times as likely as the base does "
        "(loss 1.05 nats a token lower; 95 %: 0.85 to 1.25)."
    )
    assert (
        "finds the words of these rows as likely as the base does (loss unchanged)"
        in verdict({}, Estimate(0.0, None, None), None, 2)["text"]
    )
    assert "(95 %: loss from 0.10 nats a token higher to 0.30 nats a token lower)" in verdict({}, Estimate(0.1, -0.1, 0.3), None, 8)["text"]


def test_what_four_bits_cost_is_told_from_chance() -> None:
    assert "3 % less likely than in full (loss 0.03 nats a token higher)" in verdict({}, None, Estimate(0.03, 0.01, 0.05), 50)["text"]
    assert "nothing that can be measured" in verdict({}, None, Estimate(0.03, -0.1, 0.16), 50)["text"]


@pytest.mark.parametrize(("right", "low", "high"), [(16, 0.81, 1.0), (0, 0.0, 0.19), (8, 0.28, 0.72)])
def test_answers_that_are_all_right_are_not_certain(right: int, low: float, high: float) -> None:
    # Wilson's interval, from any table of it; drawn again, 16 of 16 gave "100 % (100 to 100 %)".
    share = mean_share([1.0] * right + [0.0] * (16 - right))
    assert share.value == right / 16 and (share.low, share.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


def test_answers_that_occur_once_are_no_labels() -> None:
    assert "label_f1" not in applicable(["4", "Paris"]) and "label_f1" not in applicable(["4", "4", "Paris"])
    assert applicable(["yes", "no", "no", "yes"]) == ["label_f1", "exact_match"]
