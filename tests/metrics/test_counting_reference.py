"""Counting against plain loops over samples and steps; intervals over source images; the time it takes."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest

from coordvlm.contracts.sample import PointTruth
from coordvlm.metrics.bootstrap import image_weights, source_weights
from coordvlm.metrics.counting import CountingMetric
from tests.metrics.count_cases import evaluate, random_counting, values


def reference(gt, answers, any_unmarked=False):
    """The same numbers by plain loops over samples and steps."""
    by_id = {a.sample_id: a for a in answers}
    errors, errors384, n5, near, kinds, squares = [], [], [], [], {"end": [], "last": [], "early": []}, []
    off, pairs, made, there, finished = [], 0, 0, 0, []
    for sample_id, (w, h) in zip(gt.image_ids.tolist(), gt.image_wh.tolist(), strict=True):
        true = [tuple(p) for p in gt.points_of(sample_id).tolist()]
        answer = by_id.get(sample_id)

        def distance(a, b, sx=384 / w, sy=384 / h):
            return math.sqrt(((a[0] - b[0]) * sx) ** 2 + ((a[1] - b[1]) * sy) ** 2)

        for asked in answer.asked if answer else ():
            left = true[asked.k :]
            if left:
                aim = min(left, key=lambda p: distance(p, asked.point_px)) if any_unmarked else left[0]
                errors.append(math.dist(aim, asked.point_px))
                errors384.append(distance(aim, asked.point_px))
                near.append(min(distance(p, asked.point_px) for p in left) <= 5)
                squares.append((2 * (asked.point_px[0] - aim[0]) / w) ** 2)
                if len(true) <= 5:
                    n5.append(errors384[-1])
            kind = "end" if not left else "last" if len(left) == 1 else "early"
            kinds[kind].append((asked.done > 0.5) == (not left))
        if answer is None:
            if true:
                errors384.append(math.inf)
                errors.append(math.inf)
                near.append(False)
                if len(true) <= 5:
                    n5.append(math.inf)
            for kind in ("end", "last", "early")[: 1 + min(len(true), 2)]:
                kinds[kind].append(False)
        found = [r.point_px for r in answer.records if r.status == "ok"] if answer else []
        off.append(len(found) - len(true))
        finished.append(answer is not None and "finished" in answer.flags)
        made, there = made + len(found), there + len(true)
        pairs += most_pairs([[distance(a, b) <= 5 for b in true] for a in found])
    answered = [e for e in errors384 if math.isfinite(e)]
    return {
        "px_mean": statistics.fmean(e for e in errors if math.isfinite(e)), "px384_mean": statistics.fmean(answered),
        "px384_median": statistics.median(answered), "px384_p90": np.percentile(answered, 90), "px384_p95": np.percentile(answered, 95),
        "pck_5": np.mean(np.array(errors) <= 5), "pck384_5": np.mean(np.array(errors384) <= 5),
        "pck384_15": np.mean(np.array(errors384) <= 15), "n5_pck384_8": np.mean(np.array(n5) <= 8) if n5 else math.nan,
        "on_unmarked": np.mean(near), "loss_x": statistics.fmean(squares),
        **{f"done_acc_{kind}": np.mean(right) for kind, right in kinds.items()},
        "count_mae": np.mean(np.abs(off)), "count_rmse": np.sqrt(np.mean(np.square(off))),
        "count_bias": np.mean(off), "finished_rate": np.mean(finished), "loc_precision": pairs / made, "loc_recall": pairs / there,
        "loc_f1": 2 * pairs / (made + there),
    }  # fmt: skip


def most_pairs(close):
    """Size of a largest matching, by augmenting paths."""
    owner = {}

    def place(row, seen):
        for column, ok in enumerate(close[row]):
            if ok and column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(close)))


@pytest.mark.parametrize("any_unmarked", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_plain_loops_in_any_order(seed, any_unmarked):
    gt, answers = random_counting(seed)
    assert len(answers) < len(gt.image_ids), "some samples have no answer"
    want = reference(gt, answers, any_unmarked)
    got = values(gt, answers, any_unmarked=any_unmarked)
    assert {name: got[name] for name in want} == pytest.approx(want, nan_ok=True)
    shuffled = [answers[i] for i in np.random.default_rng(5).permutation(len(answers))]
    assert values(gt, shuffled, any_unmarked=any_unmarked) == pytest.approx(got, nan_ok=True)


# ------------------------------------------------------------------- intervals
def test_replicates_are_those_of_physically_repeated_images():
    """Draw source images, copy all their samples as often as drawn, evaluate the copy."""
    gt, answers = random_counting(2, num=30, images=7)
    found = evaluate(gt, answers, num_replicates=5, seed=3)
    distinct = np.unique(gt.source_image)
    drawn = image_weights(len(distinct), 5, 3)
    by_id = {a.sample_id: a for a in answers}
    assert set(found.replicates) == set(found.metrics)
    for column in range(5):
        picked = [row for row, image in enumerate(gt.source_image.tolist())
                  for _ in range(int(drawn[np.searchsorted(distinct, image), column]))]
        ids = gt.image_ids[picked].tolist()
        copy = PointTruth.of(ids=range(len(ids)), categories=["x"] * len(ids), source_image=[0] * len(ids), image_wh=gt.image_wh[picked],
                             points=[gt.points_of(i) for i in ids])
        moved = [replace(p, sample_id=new) for new, i in enumerate(ids) if (p := by_id.get(i)) is not None]
        want = values(copy, moved)
        for name, vector in found.replicates.items():
            assert vector[column] == pytest.approx(want.get(name, math.nan), nan_ok=True), name


def test_no_interval_over_a_single_image_or_without_replicates():
    gt, answers = random_counting(0, images=1)
    for found in (evaluate(gt, answers, num_replicates=20), evaluate(gt, answers)):
        assert not found.replicates
        assert math.isnan(found.metrics["pck384_5"].low)


def test_samples_of_one_image_are_drawn_together():
    weights = source_weights(np.array([5, 9, 5, 9]), 20, 3)
    assert np.array_equal(weights[0], weights[2])
    assert np.array_equal(weights[:2], image_weights(2, 20, 3))


def test_five_hundred_samples_with_a_thousand_replicates_take_two_seconds():
    gt, answers = random_counting(1, num=500, images=500, most=20)
    metric = CountingMetric(num_replicates=1000, seed=0, tolerance_px=5.0, any_unmarked=False, truth=gt)
    metric.update(answers)
    begin = time.thread_time()
    metric.compute()
    assert time.thread_time() - begin < 2
