"""F1, duplicates and rates on examples small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordvlm.contracts import Record
from coordvlm.metrics.arrays import index_truth
from coordvlm.metrics.matching import (
    absent_classes,
    answer_counts,
    answer_sums,
    best_f1_threshold,
    best_ious,
    duplicates,
    f1_sums,
    match_classes,
    matched_pairs,
)
from tests.metrics.cases import detections_of, predicted, truth

A, B = (0.0, 0.0, 100.0, 100.0), (150.0, 0.0, 190.0, 40.0)
A_SHIFTED = (0.0, 0.0, 100.0, 80.0)  # IoU 0.8 with A


def f1(gt, *predictions):
    """F1 at each of the ten thresholds."""
    truths, detections = index_truth(gt), detections_of(gt, predictions)
    twice, total = f1_sums(truths, detections, match_classes(truths, detections))
    return twice.sum(1) / total.sum(1)


def test_f1_counts_by_threshold():
    # At 0.50 .. 0.80 one hit, one miss, one false positive; above 0.80 no hit.
    found = f1(truth((1, "cat", A), (1, "dog", B)), predicted(1, ("cat", A_SHIFTED, 0.9), ("dog", A, 0.8)))
    assert found.tolist() == [0.5] * 7 + [0.0] * 3


def test_an_overlap_equal_to_the_threshold_counts():
    half = (0.0, 0.0, 100.0, 50.0)  # IoU exactly 0.5
    assert f1(truth((1, "cat", A)), predicted(1, ("cat", half, 0.9))).tolist() == [1.0] + [0.0] * 9


def test_an_unknown_description_is_a_false_positive():
    assert f1(truth((1, "cat", A)), predicted(1, ("cat", A, 0.9), ("unicorn", A, 0.8)))[0] == pytest.approx(2 / 3)


def test_a_second_prediction_of_a_box_is_a_false_positive():
    assert f1(truth((1, "cat", A)), predicted(1, ("cat", A, 0.9), ("cat", A, 0.8)))[0] == pytest.approx(2 / 3)


def test_the_higher_score_takes_the_box_even_if_emitted_later():
    gt = truth((1, "cat", A))
    detections = detections_of(gt, [predicted(1, ("cat", A, 0.1), ("cat", A_SHIFTED, 0.9))])
    truths = index_truth(gt)
    pairs = matched_pairs(gt, truths, detections, match_classes(truths, detections))
    assert (pairs.image_id.tolist(), pairs.pred_index.tolist(), pairs.ann_id.tolist()) == ([1], [1], [0])
    assert pairs.iou.tolist() == [pytest.approx(0.8)]
    assert pairs.pred_xyxy_px.tolist() == [list(A_SHIFTED)]
    assert pairs.true_xyxy_px.tolist() == [list(A)]


def test_predictions_on_a_crowd_are_ignored_and_crowds_are_no_truth():
    gt = truth((1, "cat", A), (1, "cat", B), crowds=[0])
    inside = (10.0, 10.0, 30.0, 30.0)  # IoU with the crowd 0.04, but it lies inside
    assert f1(gt, predicted(1, ("cat", inside, 0.9), ("cat", inside, 0.8), ("cat", B, 0.7)))[0] == 1.0
    assert f1(gt, predicted(1, ("dog", inside, 0.9), ("cat", B, 0.7)))[0] == pytest.approx(2 / 3)  # another class is not excused


def test_no_limit_of_one_hundred_predictions():
    noise = [("cat", (0.0, 0.0, 5.0, 5.0 + i / 100), 0.9) for i in range(150)]
    found = f1(truth((1, "cat", A)), predicted(1, *noise, ("cat", A, 0.1)))
    assert found[0] == pytest.approx(2 / (151 + 1))


def test_duplicates_are_later_boxes_of_the_same_class():
    gt = truth((1, "cat", A), images=(1, 2))
    near = (0.0, 0.0, 100.0, 90.0)  # IoU exactly 0.9
    found = duplicates(detections_of(gt, [
        predicted(1, ("cat", A, 0.1), ("dog", A, 0.9), ("cat", near, 0.9), ("cat", A_SHIFTED, 0.9), ("elf", A, 1), (" elf ", A, 1)),
        predicted(2, ("cat", A, 0.9)),
    ]))
    # A_SHIFTED has IoU 0.8 with A and 0.889 with ``near``; image 2 starts afresh.
    assert found.tolist() == [False, False, True, False, False, True, False]


def test_absent_classes_include_unknown_descriptions_and_know_crowds():
    gt = truth((1, "cat", A), (2, "dog", B), images=(1, 2), crowds=[1])
    detections = detections_of(gt, [
        predicted(1, ("cat", B, 1), ("dog", B, 1), ("elf", B, 1)), predicted(2, ("dog", A, 1), ("cat", A, 1)),
    ])
    assert absent_classes(index_truth(gt), detections).tolist() == [False, True, True, False, True]


def test_best_iou_of_each_truth():
    gt = truth((1, "cat", A), (1, "dog", B), (1, "cat", B), crowds=[2])
    detections = detections_of(gt, [predicted(1, ("cat", A_SHIFTED, 0.1), ("cat", (0.0, 0.0, 100.0, 30.0), 0.9), ("elf", B, 1))])
    assert best_ious(index_truth(gt), detections).tolist() == [pytest.approx(0.8), 0.0]


def test_best_threshold_keeps_equal_scores_together():
    gt = truth((1, "cat", A), (1, "dog", B))
    truths = index_truth(gt)

    def best(*records):
        detections = detections_of(gt, [predicted(1, *records)])
        return best_f1_threshold(truths, detections, match_classes(truths, detections))

    noise = ("cat", (0.0, 0.0, 9.0, 9.0))
    assert best(("cat", A, 0.9), (*noise, 0.5), ("dog", B, 0.7), (*noise, 0.2)) == (0.7, 1.0)
    # Cutting between the two boxes of score 0.7 is impossible: both or none.
    assert best(("cat", A, 0.9), ("dog", B, 0.7), (*noise, 0.7)) == (0.7, pytest.approx(0.8))
    assert all(math.isnan(x) for x in best())


def test_parse_and_truncation_rates_are_over_all_images():
    broken = Record("cat", None, 0.0, "bad_arity")
    repaired = Record("cat", A, 0.5, "repaired")
    gt = truth((1, "cat", A), images=(1, 2, 3, 4, 5, 6))
    predictions = {
        1: predicted(1, ("cat", A, 0.5), tokens=4, seconds=1.0),
        2: predicted(2, ("cat", A, 0.5), extra=[broken], tokens=8),
        3: predicted(3, extra=[repaired], flags=["truncated"]),
        4: predicted(4, flags=["no_output", "truncated"]),
        5: predicted(5),  # a legitimate empty answer
    }  # image 6 was never answered
    shares = {name: num.sum() / den.sum() for name, (num, den) in answer_sums(gt, predictions).items()}
    assert shares == {"parse_rate": 0.5, "truncation_rate": pytest.approx(1 / 3), "tokens_per_image": 6.0, "seconds_per_image": 1.0}
    counts = answer_counts(gt, predictions, detections_of(gt, list(predictions.values())))
    assert counts["images"] == 6
    assert counts["images_without_prediction"] == 1
    assert counts["records"] == 4
    assert counts["predictions"] == 3
    assert (counts["status_ok"], counts["status_repaired"], counts["status_bad_arity"], counts["status_bad_json"]) == (2, 1, 1, 0)
    assert (counts["images_truncated"], counts["images_no_output"]) == (2, 1)


def test_true_positives_agree_with_the_matching_of_scipy():
    """Where overlaps are unambiguous, greedy and optimal assignment find the same pairs."""
    from scipy.optimize import linear_sum_assignment

    from coordvlm.metrics.greedy import overlap

    rng = np.random.default_rng(0)
    cells = np.array([(x, y) for x in range(0, 180, 30) for y in range(0, 90, 30)], dtype=float)
    boxes = np.concatenate((cells, cells + 25), 1)
    guess = rng.permutation(boxes + rng.normal(0, 1.5, boxes.shape))[:12]
    gt = truth(*((1, "cat", tuple(b)) for b in boxes))
    truths, detections = index_truth(gt), detections_of(gt, [predicted(1, *(("cat", tuple(g), rng.random()) for g in guess))])
    pairs = matched_pairs(gt, truths, detections, match_classes(truths, detections))
    table = np.stack([overlap(detections.xyxy, np.tile(b, (12, 1)), np.zeros(12, bool)) for b in boxes], axis=1)
    rows, columns = linear_sum_assignment(-table)
    assert dict(zip(pairs.pred_index.tolist(), pairs.ann_id.tolist(), strict=True)) == dict(
        zip(rows.tolist(), columns.tolist(), strict=True)
    )
