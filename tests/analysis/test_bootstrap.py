"""Paired comparison of two runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from coordvlm.analysis.bootstrap import paired_difference
from coordvlm.contracts import Evaluation, Interval
from coordvlm.metrics.bootstrap import image_weights
from coordvlm.metrics.replicates import load_replicates, save_replicates
from coordvlm.utils.errors import DataError


def runs(shift):
    """Two runs whose per-image values differ by ``shift`` and little noise, while images differ a lot."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 5, 200)
    second = first - shift + rng.normal(0, 0.5, 200)
    weights = image_weights(200, 2000, 0) / 200
    return first, second, first @ weights, second @ weights


def test_a_paired_interval_is_narrower_and_agrees_with_the_t_test():
    first, second, a, b = runs(0.1)
    found = paired_difference(first.mean(), second.mean(), a, b)
    reference = stats.ttest_rel(first, second)
    low, high = reference.confidence_interval()
    assert found.difference.value == pytest.approx((first - second).mean())
    assert (found.difference.low, found.difference.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert found.p_value == pytest.approx(reference.pvalue, abs=0.02)
    assert found.difference.high - found.difference.low < 0.2 * (np.quantile(a, 0.975) - np.quantile(a, 0.025))


def test_a_run_does_not_differ_from_itself():
    first, _, a, _ = runs(0)
    found = paired_difference(first.mean(), first.mean(), a, a)
    assert found.p_value == 1.0
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)


def test_p_is_never_zero_and_the_sides_are_symmetric():
    first, second, a, b = runs(3)
    assert paired_difference(first.mean(), second.mean(), a, b).p_value == pytest.approx(2 / 2001)
    assert paired_difference(second.mean(), first.mean(), b, a).p_value == pytest.approx(2 / 2001)


def test_undefined_replicates_are_left_out():
    a, b = np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, np.nan])
    assert paired_difference(1.0, 0.0, a, b).num_replicates == 1
    nothing = paired_difference(1.0, 0.0, a * np.nan, b)
    assert (nothing.num_replicates, np.isnan(nothing.p_value)) == (0, True)


def test_vectors_of_different_length_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(0, 0, np.zeros(3), np.zeros(4))


def evaluation(**replicates):
    return Evaluation(metrics={k: Interval(0.0) for k in replicates}, counts={}, replicates=replicates)


def test_saved_replicates_come_back_paired(tmp_path):
    a, b, ids = tmp_path / "a.npz", tmp_path / "b.npz", np.array([3, 5])
    save_replicates(a, evaluation(AP=np.array([0.1, np.nan]), px_mean=np.ones(2)), image_ids=ids, seed=0)
    save_replicates(b, evaluation(AP=np.array([0.3, 0.4])), image_ids=ids, seed=0)
    found = load_replicates(a, b)
    assert list(found) == ["AP"]
    np.testing.assert_array_equal(found["AP"], [[0.1, np.nan], [0.3, 0.4]])


def test_replicates_of_other_images_or_seeds_are_refused(tmp_path):
    a = tmp_path / "a.npz"
    save_replicates(a, evaluation(AP=np.ones(2)), image_ids=np.array([3, 5]), seed=0)
    for name, ids, seed, message in (("b", [3, 6], 0, "same images"), ("c", [3, 5], 1, "same bootstrap seed")):
        other = tmp_path / f"{name}.npz"
        save_replicates(other, evaluation(AP=np.ones(2)), image_ids=np.array(ids), seed=seed)
        with pytest.raises(DataError, match=message):
            load_replicates(a, other)
    np.savez(tmp_path / "d.npz", AP=np.ones(2))
    with pytest.raises(DataError, match="bootstrap file"):
        load_replicates(a, tmp_path / "d.npz")
