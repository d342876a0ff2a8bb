from __future__ import annotations

import math

import pytest

from coordvlm.reports.compare_data import Estimate
from coordvlm.reports.compare_words import amount, estimate, lead, span, title, verdict
from tests.reports.comparisons import comparison, group, pair


def test_a_difference_is_said_with_its_interval_and_what_is_beside_it() -> None:
    found = comparison()
    assert verdict(found, found.pairs[0]) == (
        "hybrid beats ce by 3.1 AP [1.2, 5.0]; also better in median pixel error by 0.20 px; no difference shown in duplicates."
    )


def test_no_difference_is_said_with_the_power() -> None:
    one = pair(value=0.004, low=-0.01, high=0.018, p=0.5)
    assert verdict(comparison(pairs=[one]), one) == (
        "no difference shown between hybrid and ce in AP "
        "(hybrid +0.4 [−1.0, 1.8]; a difference of 3.0 AP would have been seen with 80\u00a0%)."
    )


def test_the_better_one_comes_first_and_numbers_are_what_it_wins_by() -> None:
    one = pair(value=-0.031, low=-0.05, high=-0.012)
    assert verdict(comparison(pairs=[one]), one) == "ce beats hybrid by 3.1 AP [1.2, 5.0]."
    lower = pair("px_median", -0.5, -0.8, -0.2)
    assert verdict(comparison(pairs=[lower], metric="px_median"), lower) == "hybrid beats ce by 0.50 px [0.20, 0.80]."
    higher = pair("px_median", 0.5, 0.2, 0.8)
    assert verdict(comparison(pairs=[higher], metric="px_median"), higher) == "ce beats hybrid by 0.50 px [0.20, 0.80]."


def test_a_price_is_named() -> None:
    found = comparison(pairs=[pair(), pair("duplicate_rate", 0.02, 0.01, 0.03)])
    assert verdict(found, found.pairs[0]) == "hybrid beats ce by 3.1 AP [1.2, 5.0]; hybrid worse in duplicates by 2.0 points."
    found = comparison(pairs=[pair(p=0.4), pair("duplicate_rate", 0.02, 0.01, 0.03)])
    assert "; ce better in duplicates by 2.0 points." in verdict(found, found.pairs[0])


def test_correction_decides_and_is_named() -> None:
    one = pair(p=0.02, p_holm=0.2)
    text = verdict(comparison(pairs=[one, pair(first="mixed")]), one)
    assert text.startswith("no difference shown between hybrid and ce in AP once 2 comparisons are allowed for (hybrid +3.1 [1.2, 5.0]")


def test_few_seeds_are_in_the_sentence() -> None:
    assert verdict(comparison(), pair(seeds=(1, 5))).endswith("(one seed: the interval knows image noise only).")
    assert verdict(comparison(), pair(seeds=(2, 5))).endswith("(two seeds: seed noise is poorly known).")


def test_what_is_equal_or_undefined_is_not_called_a_difference() -> None:
    same = pair("duplicate_rate", 0.0, 0.0, 0.0, 1.0, se=0.0)
    gone = pair("px_median", *[math.nan] * 4)
    found = comparison(pairs=[pair(), same, gone])
    assert verdict(found, found.pairs[0]).endswith("; equal in duplicates; undefined: median pixel error.")
    lost = pair(value=math.nan, low=math.nan, high=math.nan, p=math.nan)
    assert "cannot be compared: AP is undefined" in verdict(comparison(pairs=[lost]), lost)
    bare = pair(low=math.nan, high=math.nan, p=math.nan)
    assert "AP has no interval" in verdict(comparison(pairs=[bare]), bare)


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [("AP", 0.0312, "3.1 AP"), ("AP", -0.0312, "−3.1 AP"), ("F1_50", 0.5, "50.0 F1_50"), ("duplicate_rate", 0.012, "1.2 points"),
     ("pck_5", 0.5, "50.0 points"), ("px_median", 0.414, "0.41 px"), ("px_median", 414.2, "414 px"), ("tokens_per_image", 12.0, "12.00"),
     ("AP", 0.0004, "0.04 AP"), ("AP", 0.0, "0.0 AP"), ("AP", math.nan, "–")],
)
def test_amounts(metric: str, value: float, shown: str) -> None:
    assert amount(metric, value) == shown


def test_estimates_and_titles() -> None:
    assert estimate("AP", Estimate(0.631, spread=0.008)) == "63.1 ± 0.8"
    assert estimate("AP", Estimate(0.631)) == "63.1"
    assert span("px_mean", 1.0, math.nan) == ""
    shown = {"AP": "AP (%)", "px_mean": "px_mean (px)", "tokens_per_image": "tokens_per_image", "parse_rate": "parse_rate (%)"}
    assert {m: title(m) for m in shown} == shown


def test_the_lead_says_who_is_ahead_and_of_whom_that_is_shown() -> None:
    groups = [group("ce", 0.5), group("hybrid", 0.63), group("mixed", 0.6)]
    pairs = [pair(), pair(first="mixed", second="ce"), pair(first="hybrid", second="mixed", p=0.3)]
    assert lead(comparison(groups=groups, pairs=pairs)) == (
        "hybrid has the highest AP (63.0); it beats ce; a lead over mixed is not shown."
    )
    assert lead(comparison(groups=groups[:2])) == ""
    assert lead(comparison(groups=groups, pairs=pairs, baseline="ce")) == ""
