from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from coordvlm.analysis.paired import Difference, Seeds, detectable, difference, holm, mean_interval
from coordvlm.metrics.bootstrap import image_weights

IMAGES, REPLICATES = 150, 300
WEIGHTS = image_weights(IMAGES, REPLICATES, 0) / IMAGES


def recipe(rng: np.random.Generator, shared: np.ndarray, seeds: int, mean: float, *, seed_sd: float, own_sd: float) -> Seeds:
    """The mean over images of a score: level of the recipe and its seed, difficulty of the image, noise of its own."""
    score = mean + rng.normal(0, seed_sd, (seeds, 1)) + shared + rng.normal(0, own_sd, IMAGES) + rng.normal(0, own_sd, (seeds, IMAGES))
    return Seeds(score.mean(1), score @ WEIGHTS)


def simulate(count: int, seeds: int, gap: float, seed_sd: float, own_sd: float) -> list[Difference]:
    rng = np.random.default_rng(seeds)
    found = []
    for _ in range(count):
        shared = rng.normal(0, 0.5, IMAGES)
        a, b = (recipe(rng, shared, seeds, m, seed_sd=seed_sd, own_sd=own_sd) for m in (gap, 0.0))
        found.append(difference(a, b, num_images=IMAGES, coverage=0.95))
    return found


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("seed_sd", "own_sd"), [(0.1, 0.2), (0.02, 0.2), (0.0, 0.4)], ids=["seeds", "both", "images"])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(seeds: int, seed_sd: float, own_sd: float) -> None:
    found = simulate(300, seeds, 0.2, seed_sd, own_sd)
    held = np.mean([d.low <= 0.2 <= d.high for d in found])
    assert held >= 0.90  # three standard errors below 0.94: with 2 seeds 0.92-0.94 is what it is
    assert np.mean([d.value for d in found]) == pytest.approx(0.2, abs=0.02)
    if seeds > 2:
        assert held <= 0.995


def test_images_that_all_recipes_share_cancel() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5.0, IMAGES)
    a, b = (recipe(rng, shared, 3, m, seed_sd=0.01, own_sd=0.05) for m in (0.1, 0.0))
    alone = mean_interval(a, num_images=IMAGES, coverage=0.95)
    paired = difference(a, b, num_images=IMAGES, coverage=0.95)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.p < 0.05


def test_seed_noise_widens_and_is_named() -> None:
    calm, wild = (simulate(40, 3, 0.0, sd, 0.2) for sd in (0.0, 0.3))
    assert np.mean([d.se for d in wild]) > 5 * np.mean([d.se for d in calm])
    assert np.mean([d.image_share for d in calm]) > 0.75
    assert np.mean([d.image_share for d in wild]) < 0.1
    assert np.mean([d.df for d in wild]) < 6


def test_without_seed_noise_it_is_the_textbook_interval() -> None:
    """One seed each, a mean over images: Student's paired t interval, up to bootstrap noise."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 1, (2, IMAGES)) + rng.normal(0, 3, IMAGES)
    weights = image_weights(IMAGES, 4000, 1) / IMAGES
    a, b = (Seeds(np.array([s.mean()]), (s @ weights)[None]) for s in scores)
    found = difference(a, b, num_images=IMAGES, coverage=0.95)
    wanted = stats.ttest_rel(scores[0], scores[1])
    low, high = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert found.p == pytest.approx(wanted.pvalue, rel=0.15)


def test_without_image_noise_it_is_welchs_interval() -> None:
    first, second = np.array([0.60, 0.64, 0.66, 0.61]), np.array([0.50, 0.58, 0.49])
    a, b = (Seeds(v, np.tile(v[:, None], (1, 50))) for v in (first, second))
    found = difference(a, b, num_images=10**9, coverage=0.95)
    wanted = stats.ttest_ind(first, second, equal_var=False)
    low, high = wanted.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == (pytest.approx(low), pytest.approx(high), pytest.approx(wanted.pvalue))
    assert found.df == pytest.approx(wanted.df)


def test_equal_and_constant_metrics_differ_in_nothing() -> None:
    same = Seeds(np.ones(3), np.ones((3, 20)))
    found = difference(same, same, num_images=16, coverage=0.95)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    other = Seeds(np.zeros(3), np.zeros((3, 20)))
    assert difference(same, other, num_images=16, coverage=0.95).p == 0


def test_an_undefined_metric_has_no_interval() -> None:
    gone = Seeds(np.array([0.5, math.nan]), np.full((2, 20), 0.5))
    assert not gone.defined
    assert math.isnan(difference(gone, gone, num_images=16, coverage=0.95).low)
    rare = Seeds(np.array([0.5]), np.where(np.arange(20) < 5, 0.5, math.nan)[None])
    assert math.isnan(difference(rare, rare, num_images=16, coverage=0.95).p)


def test_replicates_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="20 and 30 replicates are not paired"):
        difference(Seeds(np.ones(1), np.ones((1, 20))), Seeds(np.ones(1), np.ones((1, 30))), num_images=9, coverage=0.95)
    with pytest.raises(ValueError, match="S >= 1"):
        Seeds(np.ones(2), np.ones((3, 20)))


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.02, math.nan, 0.03])
    assert found[::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(found[1])


def test_the_detectable_difference_is_shown_with_that_power() -> None:
    """Against the noncentral t distribution: power at the detectable difference."""
    for df, comparisons in ((4.0, 1), (20.0, 15), (499.0, 3)):
        found = Difference(0.0, -1, 1, 0.5, 0.3, df, 1.0)
        ratio = detectable(found, level=0.05, power=0.8, comparisons=comparisons) / 0.3
        critical = stats.t.isf(0.05 / comparisons / 2, df)
        assert stats.nct.sf(critical, df, ratio) == pytest.approx(0.8, abs=0.06)
    assert math.isnan(detectable(Difference(0.0, *[math.nan] * 6), level=0.05, power=0.8, comparisons=1))


def test_resampling_seeds_would_be_too_narrow_with_few_of_them() -> None:
    """Why the interval is not a hierarchical bootstrap's: the same noise, seeds and images resampled together."""
    rng = np.random.default_rng(1)
    held = {"bootstrap": 0, "ours": 0}
    for _ in range(200):
        shared = rng.normal(0, 0.5, IMAGES)
        a, b = (recipe(rng, shared, 3, 0.0, seed_sd=0.1, own_sd=0.2) for _ in range(2))
        drawn = [r.replicates[rng.integers(0, 3, (3, REPLICATES)), np.arange(REPLICATES)].mean(0) for r in (a, b)]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        found = difference(a, b, num_images=IMAGES, coverage=0.95)
        held["bootstrap"] += bool(low <= 0 <= high)
        held["ours"] += bool(found.low <= 0 <= found.high)
    assert held["bootstrap"] < 180 < held["ours"]
