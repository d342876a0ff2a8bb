"""Matching and overlap are COCO's, bit by bit."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from coordvlm.metrics import greedy
from coordvlm.metrics.arrays import index_truth
from coordvlm.metrics.coco import IOU_THRESHOLDS, box_area, out_of_area
from coordvlm.metrics.greedy import match, overlap, rank_in_group, same_group_pairs
from tests.metrics.cases import detections_of, predicted, predictions_of, random_case, truth, truth_of


def reference(data, results):
    """evalImgs of pycocotools: (category, area index, image) -> result."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = data
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes([dict(r) for r in results]), "bbox")
        evaluator.evaluate()
    return [e for e in evaluator.evalImgs if e is not None], evaluator.params.areaRng


def test_overlap_has_the_bits_of_pycocotools():
    rng = np.random.default_rng(0)
    xywh = rng.uniform(0, 100, (400, 4))
    xywh[::7, 2] = 0  # no area
    a, b = xywh[:200], xywh[200:]
    crowd = rng.random(200) < 0.3
    xyxy_a, xyxy_b = (np.concatenate((x[:, :2], x[:, :2] + x[:, 2:]), 1) for x in (a, b))
    back_a, back_b = (np.concatenate((x[:, :2], x[:, 2:] - x[:, :2]), 1) for x in (xyxy_a, xyxy_b))
    expected = [mask.iou([list(p)], [list(q)], [int(c)])[0, 0] for p, q, c in zip(back_a, back_b, crowd, strict=True)]
    assert overlap(xyxy_a, xyxy_b, crowd).tolist() == expected


@pytest.mark.parametrize("ties", [False, True])
def test_matches_are_those_of_cocoeval(ties):
    for seed in range(5):
        data, results = random_case(seed, ties=ties, crowd=0.25, num_classes=2)
        gt = truth_of(data)
        detections, truths = detections_of(gt, predictions_of(gt, results)), index_truth(gt)
        found = match(
            detections, truths, rank_in_group(detections.image, detections.category, detections.score), IOU_THRESHOLDS,
            ignore=truths.crowd[:, None] | out_of_area(truths.area), out_of_range=out_of_area(box_area(detections.xyxy)),
        )
        images, ranges = reference(data, results)
        compared = 0
        for e in images:
            area = ranges.index(e["aRng"])
            for column, dt_id in enumerate(e["dtIds"]):  # ids of results count from 1 in file order, which is image order here
                ids = np.where(found.truth[dt_id - 1, area] >= 0, gt.ann_ids[found.truth[dt_id - 1, area]], 0)
                assert ids.tolist() == e["dtMatches"][:, column].tolist()
                assert found.ignored[dt_id - 1, area].tolist() == e["dtIgnore"][:, column].tolist()
                compared += 1
        assert compared > 50


def test_equal_scores_are_matched_in_emission_order():
    gt = truth((1, "cat", (0, 0, 100, 100)))
    detections = detections_of(gt, [predicted(1, ("cat", (0, 0, 100, 90), 0.5), ("cat", (0, 0, 100, 100), 0.5))])
    truths = index_truth(gt)
    found = match(detections, truths, rank_in_group(detections.image, detections.category, detections.score), np.array([0.5, 0.95]),
                  ignore=truths.crowd[:, None], out_of_range=np.zeros((2, 1), bool))
    assert found.truth[:, 0].tolist() == [[0, -1], [-1, 0]]  # the first takes it at 0.5; at 0.95 only the second fits


def test_pairs_do_not_depend_on_the_chunk(monkeypatch):
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 9, 60), rng.integers(0, 9, 50)
    expected = {(i, j) for i in range(60) for j in range(50) if left[i] == right[j]}
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr(greedy, "_CHUNK", chunk)
        pairs = [(int(i), int(j)) for a, b in same_group_pairs(left, right) for i, j in zip(a, b, strict=True)]
        assert set(pairs) == expected
        assert pairs == sorted(pairs)
