"""Pixel errors by hand and against published keypoint cases."""

from __future__ import annotations

import numpy as np
import pytest

from coordvlm.contracts import MatchedPairs
from coordvlm.metrics.pixels import PixelErrors, euclidean, pixel_histogram
from tests.data_root import peer_data
from tests.metrics.cases import read, truth


def pairs(image_ids, predicted, true):
    n = len(image_ids)
    return MatchedPairs(np.array(image_ids, dtype=np.int64), np.arange(n), np.arange(n), np.ones(n),
                        np.array(predicted, dtype=np.float64).reshape(-1, 4), np.array(true, dtype=np.float64).reshape(-1, 4))


@pytest.fixture
def errors():
    """Images of 200 x 100. Corner errors 5 (3, 4) and 0 in image 1; 10 (-6, 8) and 2 (0, 2) in image 2; one truth missed."""
    gt = truth((1, "cat", (10, 10, 60, 60)), (2, "cat", (20, 20, 90, 90)), (2, "dog", (0, 0, 9, 9)), images=(1, 2))
    return PixelErrors(gt, pairs([1, 2], [(13, 14, 60, 60), (14, 28, 90, 92)], [(10, 10, 60, 60), (20, 20, 90, 90)]),
                       np.array([1.0, 2.0]))


def test_errors_of_both_corners(errors):
    assert errors.error_xy.tolist() == [[3, 4], [0, 0], [-6, 8], [0, 2]]
    assert errors.error.tolist() == [5, 0, 10, 2]


def test_shares_and_means(errors):
    found = {name: num.sum() / den.sum() for name, (num, den) in errors.sums().items()}
    scale = np.array([384 / 200, 384 / 100])
    assert found["px_mean"] == 17 / 4
    assert found["px384_mean"] == pytest.approx(np.linalg.norm(errors.error_xy * scale, axis=1).mean())
    assert [found[f"pck_{r}"] for r in (2, 5, 8, 10, 15)] == [0.5, 0.75, 0.75, 1.0, 1.0]
    assert [found[f"pck_all_{r}"] for r in (2, 5, 8, 10, 15)] == [2 / 6, 3 / 6, 3 / 6, 4 / 6, 4 / 6]


def test_quantiles_follow_the_weights(errors):
    found = errors.quantiles(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 2.0]]))
    assert found["px_median"].tolist() == [3.5, 2.5, 6.0]
    assert found["px_p90"][0] == pytest.approx(np.percentile([0, 2, 5, 10], 90))


def test_histogram_includes_upper_edges():
    assert pixel_histogram(np.array([0, 2, -2.001, 5, 10, 10.5])).tolist() == [2, 2, 1, 1]
    assert pixel_histogram(np.empty(0)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("within_5", "within_8", "mean", "tiers"),
    [(0.95, 1, 2.9, (1, 1, 1)), (0.95, 1, 3.0, (1, 1, 0)), (0.9, 0.9, 3.9, (1, 1, 0)), (0.89, 0.9, 5.9, (1, 0, 0)),
     (0.89, 0.9, 6.0, (0, 0, 0)), (np.nan, np.nan, np.nan, (0, 0, 0))],
)
def test_tiers(errors, within_5, within_8, mean, tiers):
    counts = errors.counts({"pck_5": within_5, "pck_8": within_8, "px_mean": mean})
    assert (counts["tier_minimum"], counts["tier_target"], counts["tier_stretch"]) == tiers
    assert (counts["matched_pairs"], counts["px_0_2"], counts["px_x_2_5"], counts["px_y_5_10"]) == (2, 2, 1, 1)


def test_mean_error_of_a_published_keypoint_case():
    case = next(c for c in read(peer_data() / "peer_cases" / "point_metrics.json")["cases"] if c["id"] == "mmpose-epe")
    keep = np.array(case["mask"], dtype=bool)
    error = np.array(case["pred"], dtype=float)[keep] - np.array(case["target"], dtype=float)[keep]
    assert euclidean(error).mean() == pytest.approx(case["expected_mean_euclidean"], abs=1e-6)
