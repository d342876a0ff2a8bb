"""A replicate is exactly COCO on duplicated images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from coordvlm.metrics.arrays import index_truth
from coordvlm.metrics.bootstrap import (
    AveragePrecision,
    image_weights,
    percentile_interval,
    weighted_quantiles,
    weighted_ratio,
)
from coordvlm.metrics.coco import evaluate_coco
from tests.metrics.cases import detections_of, predictions_of, random_case, truth_of


def numbers(data, results, backend="pycocotools"):
    gt = truth_of(data)
    return evaluate_coco(gt, detections_of(gt, predictions_of(gt, results)), backend).numbers


def replicates(data, results, weights, areas=4):
    gt = truth_of(data)
    return AveragePrecision(index_truth(gt), detections_of(gt, predictions_of(gt, results)), areas=areas).replicates(weights)


def repeated(data, results, times):
    """The set with image i copied times[i] times under new ids, copies next to each other."""
    images, anns, copies = [], [], []
    for image, n in zip(data["images"], times, strict=True):
        for copy in range(int(n)):
            new = 1000 * image["id"] + copy
            images.append(image | {"id": new})
            own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            anns += [a | {"id": len(anns) + n, "image_id": new} for n, a in enumerate(own, start=1)]
            copies += [r | {"image_id": new} for r in results if r["image_id"] == image["id"]]
    return data | {"images": images, "annotations": anns}, copies


@pytest.mark.parametrize("ties", [False, True])
def test_weights_of_one_give_coco(ties):
    for seed in range(6):
        data, results = random_case(seed, ties=ties, crowd=0.2)
        found = replicates(data, results, np.ones((len(data["images"]), 1)))
        for name, value in numbers(data, results).items():
            assert found[name][0] == pytest.approx(value, abs=1e-9, nan_ok=True), (seed, name)


def test_more_than_one_hundred_predictions_of_a_class_are_cut_as_in_coco():
    data, results = random_case(3, num_images=3, num_classes=1, repeats=60)
    assert max(Counter(r["image_id"] for r in results).values()) > 150
    found = replicates(data, results, np.ones((3, 1)))
    for name, value in numbers(data, results).items():
        assert found[name][0] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_a_replicate_is_coco_on_duplicated_images():
    for seed in range(4):
        data, results = random_case(seed, num_images=6, num_classes=3, crowd=0.15)
        weights = image_weights(6, 5, seed)
        found = replicates(data, results, weights)
        for column in range(5):
            expected = numbers(*repeated(data, results, weights[:, column]))
            for name, value in expected.items():
                assert found[name][column] == pytest.approx(value, abs=1e-9, nan_ok=True), (seed, column, name)


def test_replicates_do_not_depend_on_the_block(monkeypatch):
    data, results = random_case(5)
    weights = image_weights(len(data["images"]), 100, 0)
    whole = replicates(data, results, weights)
    monkeypatch.setattr("coordvlm.metrics.bootstrap._BLOCK", 1)
    for name, values in replicates(data, results, weights).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12)


def test_a_replicate_without_truth_is_undefined():
    data, results = random_case(0, num_images=4)
    used = {a["image_id"] for a in data["annotations"] if not a["iscrowd"]}
    weights = np.array([[0.0 if i["id"] in used else 1.0] for i in data["images"]])
    assert np.isnan(replicates(data, results, weights)["AP"]).all()


def test_weights_draw_as_many_images_as_there_are():
    weights = image_weights(50, 200, 0)
    assert weights.shape == (50, 200)
    assert (weights.sum(0) == 50).all()
    assert np.array_equal(weights, image_weights(50, 200, 0))
    assert not np.array_equal(weights, image_weights(50, 200, 1))
    # Counts of one image are binomial(50, 1/50).
    observed = np.bincount(weights.astype(int).ravel().clip(max=4), minlength=5)
    chance = stats.binom(50, 1 / 50)
    expected = np.append(chance.pmf(range(4)), chance.sf(3)) * weights.size
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_weights_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="-1"):
        image_weights(5, -1, 0)
    assert image_weights(0, 3, 0).shape == (0, 3)


def test_quantiles_are_those_of_the_repeated_values():
    rng = np.random.default_rng(0)
    values, image = rng.exponential(size=40), rng.integers(0, 10, 40)
    weights, levels = image_weights(10, 30, 1), np.array([0.0, 0.5, 0.9, 0.95, 1.0])
    found = weighted_quantiles(values, image, weights, levels)
    for column in range(30):
        expected = np.quantile(np.repeat(values, weights[image, column].astype(int)), levels)
        np.testing.assert_allclose(found[:, column], expected, atol=1e-12)


def test_quantiles_of_nothing_are_undefined():
    assert np.isnan(weighted_quantiles(np.empty(0), np.empty(0, np.int64), np.ones((2, 3)), np.array([0.5]))).all()
    assert np.isnan(weighted_quantiles(np.ones(1), np.zeros(1, np.int64), np.zeros((2, 1)), np.array([0.5]))).all()


def test_ratio_is_of_sums_not_of_images():
    found = weighted_ratio(np.array([1.0, 0.0]), np.array([1.0, 3.0]), np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    assert found[:2].tolist() == [0.25, 1.0]
    assert np.isnan(found[2])


def test_interval_agrees_with_scipy_and_leaves_undefined_out():
    sample = np.random.default_rng(0).normal(3, 1, 400)
    reference = stats.bootstrap((sample,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    means = (sample @ image_weights(400, 4000, 0)) / 400
    found = percentile_interval(float(sample.mean()), np.append(means, np.nan))
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.01)
    assert np.isnan(percentile_interval(1.0, np.array([np.nan])).low)
