"""Accuracy of answered boxes: published cases, cases by hand, order, failures, negatives, intervals over source images."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from coordvlm.contracts import Prediction, Record
from coordvlm.contracts.sample import TARGET, PhraseTruth
from coordvlm.metrics.bootstrap import image_weights
from coordvlm.metrics.grounding import GroundingMetric
from coordvlm.metrics.phrases import outcomes, phrase_weights
from tests.data_root import peer_data
from tests.metrics.cases import read, truth
from tests.metrics.phrase_cases import answer, phrases, random_grounding

A, B = (10.0, 10.0, 60.0, 60.0), (100.0, 20.0, 150.0, 80.0)
SPEC_NAMES = {
    "acc_25", "acc_50", "acc_75", "acc_90", "acc_mean", "iou_mean_all", "iou_median_all", "iou_mean_parsed", "iou_median_parsed",
    "detection_rate", "parse_rate", "truncation_rate", "none_rate", "center_error_mean", "center_error_median", "point_in_box",
    "extra_box_rate", "reject_precision", "reject_recall", "reject_f1", "px_mean", "px_median", "px_p90", "px_p95", "px384_mean",
    "px384_median", "pck_2", "pck_5", "pck_8", "pck_10", "pck_15", "pck_all_5",
}  # fmt: skip


def evaluate(gt, answers, *, num_replicates=0, seed=0):
    metric = GroundingMetric(num_replicates=num_replicates, seed=seed, truth=gt)
    metric.update(answers)
    return metric.compute()


def values(gt, answers):
    return {name: interval.value for name, interval in evaluate(gt, answers).metrics.items()}


def shifted(box, dx):
    return (box[0] + dx, box[1], box[2] + dx, box[3])


# ------------------------------------------------------------------ published
@pytest.mark.parametrize("index", range(12))
def test_published_pairs(index):
    case = read(peer_data() / "peer_cases" / "ref_acc.json")["cases"][index]
    gt = phrases(tuple(map(float, case["gt_xyxy"])))
    found = evaluate(gt, [answer(1, tuple(map(float, case["pred_xyxy"])))])
    assert found.best_iou[0] == pytest.approx(case["iou"], abs=1e-8)
    assert found.metrics["acc_50"].value == float(case["hit_ge"])  # the rule is >=: one of the cases lies exactly on 0.5


def test_published_predictions_on_real_phrases():
    root = peer_data() / "peer_cases"
    data = read(root / "ref_acc_real.json")
    rows = {(r["set"], r["row"]): r for r in map(json.loads, (root / data["gt"]).resolve().read_text().splitlines())}
    chosen = [rows[p["set"], p["row"]] for p in data["predictions"]]
    gt = PhraseTruth.of(
        ids=range(len(chosen)), phrases=[r["phrase"] for r in chosen], source_image=[r["image_id"] for r in chosen],
        image_wh=np.array([(r["width"], r["height"]) for r in chosen], dtype=np.float64), boxes=[r["bbox_xyxy"] for r in chosen],
    )
    answers = [answer(i, *([tuple(p["pred_xyxy"])] if p["pred_xyxy"] else []), dropped=() if p["pred_xyxy"] else ["bad_json"])
               for i, p in enumerate(data["predictions"])]
    found = evaluate(gt, answers)
    want = data["expected"]
    assert found.best_iou == pytest.approx([p["iou"] for p in data["predictions"]], abs=1e-6)
    for name, key in (("acc_50", "acc_0_5"), ("acc_75", "acc_0_75"), ("acc_90", "acc_0_9"), ("iou_mean_all", "mean_iou")):
        assert found.metrics[name].value == pytest.approx(want[key], abs=1e-6), name
    assert found.counts["unparsed"] == want["unparsed"]
    assert found.metrics["detection_rate"].value == pytest.approx(1 - want["unparsed"] / want["n"])
    assert (found.counts["phrases"], found.counts["images"]) == (want["n"], 3)
    for name, part in want["per_set"].items():
        own = [i for i, r in enumerate(chosen) if r["set"] == name]
        assert len(own) == part["n"]
        got = evaluate(gt.subset(own), [a for a in answers if a.sample_id in own])
        assert got.metrics["acc_50"].value == pytest.approx(part["acc_0_5"])


# -------------------------------------------------------------------- by hand
def test_perfect_answers():
    found = evaluate(phrases(A, B), [answer(1, A), answer(2, B)])
    v = {name: interval.value for name, interval in found.metrics.items()}
    assert set(v) >= SPEC_NAMES
    for name in ("acc_25", "acc_90", "acc_mean", "iou_mean_all", "iou_median_parsed", "detection_rate", "parse_rate", "point_in_box"):
        assert v[name] == 1.0, name
    for name in ("truncation_rate", "none_rate", "extra_box_rate", "center_error_mean", "px_mean", "px384_p95"):
        assert v[name] == 0.0, name


def test_misses_of_every_kind_stay_in_the_denominator():
    """IoU 1, 1/3, a broken answer, "none", and no answer at all."""
    gt = phrases(A, A, A, A, A)
    v = values(gt, [answer(1, A), answer(2, shifted(A, 25)), answer(3, dropped=["bad_arity"]), answer(4, none=True)])
    assert (v["acc_25"], v["acc_50"]) == (2 / 5, 1 / 5)
    assert v["detection_rate"] == 2 / 5
    assert v["parse_rate"] == 3 / 5
    assert v["none_rate"] == 1 / 5
    assert v["iou_mean_all"] == pytest.approx((1 + 1 / 3) / 5)
    assert v["iou_mean_parsed"] == pytest.approx((1 + 1 / 3) / 2)
    assert v["iou_median_all"] == 0.0
    assert v["iou_median_parsed"] == pytest.approx(2 / 3)
    assert (v["center_error_mean"], v["center_error_median"]) == (12.5, 12.5)
    assert v["point_in_box"] == 2 / 5  # the shifted centre (60, 35) lies on the border
    assert (v["px_mean"], v["pck_2"], v["pck_all_2"]) == (0.0, 1.0, 1 / 5)


def test_acc_mean_is_the_mean_over_ten_thresholds():
    gt = phrases((0.0, 0.0, 100.0, 100.0))
    got = {iou: values(gt, [answer(1, (0.0, 0.0, 100.0, 100.0 * iou))])["acc_mean"] for iou in (0.49, 0.5, 0.54, 0.76, 0.95, 1.0)}
    assert got == pytest.approx({0.49: 0.0, 0.5: 0.1, 0.54: 0.1, 0.76: 0.6, 0.95: 1.0, 1.0: 1.0})


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75, 0.9])
def test_a_threshold_is_included(threshold):
    gt = phrases((0.0, 0.0, 100.0, 100.0))
    name = f"acc_{round(100 * threshold)}"
    assert values(gt, [answer(1, (0.0, 0.0, 100.0, 100 * threshold))])[name] == 1.0
    assert values(gt, [answer(1, (0.0, 0.0, 100.0, 100 * threshold - 0.01))])[name] == 0.0


def test_only_the_first_box_is_the_answer():
    v = values(phrases(A, A), [answer(1, B, A), answer(2, A, B)])
    assert v["acc_50"] == 0.5
    assert v["extra_box_rate"] == 1.0
    assert evaluate(phrases(A), [answer(1, A, B, B)]).counts["extra_boxes"] == 2


def test_a_dropped_record_before_the_box_is_not_the_answer_but_spoils_the_parse():
    v = values(phrases(A), [Prediction(1, (200, 100), (Record(TARGET, None, 0.0, "bad_arity"), Record(TARGET, A, 1.0, "repaired")))])
    assert (v["acc_50"], v["detection_rate"], v["parse_rate"]) == (1.0, 1.0, 0.0)


def test_none_outranks_a_box_in_the_same_answer():
    found = evaluate(phrases(A), [answer(1, A, none=True)])
    assert found.metrics["acc_50"].value == 0.0
    assert found.metrics["detection_rate"].value == 0.0
    assert found.counts["answered_none_and_box"] == 1


# ------------------------------------------------------------------ negatives
def test_phrases_that_name_nothing_enter_rejection_only():
    """Three negatives: rejected, boxed, unparsed; two targets: boxed, wrongly rejected."""
    gt = phrases(None, None, None, A, A)
    answers = [answer(1, none=True), answer(2, B), answer(3, dropped=["bad_json"]), answer(4, A), answer(5, none=True)]
    found = evaluate(gt, answers)
    v = {name: interval.value for name, interval in found.metrics.items()}
    assert (v["acc_50"], v["detection_rate"], v["iou_mean_all"], v["point_in_box"]) == (0.5, 0.5, 0.5, 0.5)
    assert (v["reject_precision"], v["reject_recall"]) == (1 / 2, 1 / 3)
    assert v["reject_f1"] == pytest.approx(statistics.harmonic_mean([1 / 2, 1 / 3]))
    assert v["none_rate"] == 2 / 5
    assert len(found.best_iou) == 2


def test_rejection_is_undefined_without_negatives():
    v = values(phrases(A, A), [answer(1, none=True), answer(2, A)])
    assert all(math.isnan(v[f"reject_{name}"]) for name in ("precision", "recall", "f1"))


def test_accuracy_is_undefined_with_negatives_alone():
    v = values(phrases(None, None), [answer(1, none=True), answer(2, B)])
    assert math.isnan(v["acc_50"])
    assert math.isnan(v["iou_median_all"])
    assert (v["reject_precision"], v["reject_recall"]) == (1.0, 0.5)


# -------------------------------------------------------------------- retries
def test_a_repeated_attempt_failed_the_first_time():
    gt = phrases(A, A, A, A)
    v = values(gt, [answer(1, A, attempts=1), answer(2, A, attempts=3), answer(3, A, flags=["retried"]), answer(4, flags=["retried"])])
    assert (v["acc_50"], v["detection_rate"]) == (0.75, 0.75)
    assert (v["first_try_acc_50"], v["first_try_detection_rate"]) == (0.25, 0.25)


def test_the_samples_of_a_consensus_are_one_try():
    def voted(i, *boxes, decodes):
        return replace(answer(i, *boxes), timing={"attempts": float(decodes), "samples": 5.0})

    gt = phrases(A, A, A)
    once = [voted(i, A, decodes=5) for i in (1, 2, 3)]
    assert not any(name.startswith("first_try") for name in values(gt, once)), "nothing was asked again"
    assert outcomes(gt, {p.sample_id: p for p in once}).attempts.tolist() == [1, 1, 1]
    v = values(gt, [*once[:2], voted(3, A, decodes=7)])
    assert (v["acc_50"], v["first_try_acc_50"]) == (1.0, pytest.approx(2 / 3))


def test_first_tries_are_not_reported_where_nothing_was_repeated():
    assert not any(name.startswith("first_try") for name in values(phrases(A), [answer(1, A, attempts=1)]))


# ------------------------------------------------------------ order and ranks
def test_order_does_not_matter():
    gt, answers = random_grounding(3)
    first, second = values(gt, answers), values(gt, answers[::-1])
    assert first == pytest.approx(second, nan_ok=True)


# ------------------------------------------------------------------ intervals
def test_replicates_are_those_of_physically_repeated_images():
    """Draw source images, copy all their phrases as often as drawn, evaluate the copy."""
    gt, answers = random_grounding(1, num=40, images=9)
    found = evaluate(gt, answers, num_replicates=6, seed=5)
    distinct = np.unique(gt.source_image)
    drawn = image_weights(len(distinct), 6, 5)
    by_id = {a.sample_id: a for a in answers}
    boxes = dict(zip(gt.ann_image_id.tolist(), gt.ann_xyxy_px.tolist(), strict=True))
    for column in range(6):
        picked = [row for row, image in enumerate(gt.source_image.tolist())
                  for _ in range(int(drawn[np.searchsorted(distinct, image), column]))]
        ids = gt.image_ids[picked].tolist()
        copy = PhraseTruth.of(ids=range(len(ids)), phrases=["x"] * len(ids), source_image=[0] * len(ids),
                              image_wh=gt.image_wh[picked], boxes=[boxes.get(i) for i in ids])
        moved = [Prediction(new, p.size, p.records, flags=p.flags, timing=p.timing)
                 for new, i in enumerate(ids) if (p := by_id.get(i)) is not None]
        want = values(copy, moved)
        for name, vector in found.replicates.items():
            if name in want:
                assert vector[column] == pytest.approx(want[name], nan_ok=True), name


def test_the_interval_is_wider_over_images_than_over_phrases():
    """Phrases on one image that succeed or fail together carry less than as many independent ones."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(30), 10)
    good = np.repeat(rng.random(30) < 0.5, 10)
    boxes = [A] * 300
    answers = [answer(i + 1, A if ok else B) for i, ok in enumerate(good)]
    together = evaluate(phrases(*boxes, source=source.tolist()), answers, num_replicates=300).metrics["acc_50"]
    apart = evaluate(phrases(*boxes), answers, num_replicates=300).metrics["acc_50"]
    assert together.value == apart.value
    assert together.high - together.low > 2.5 * (apart.high - apart.low)  # sqrt(10) in the limit


def test_one_source_image_has_no_interval():
    found = evaluate(phrases(A, B, source=[7, 7]), [answer(1, A), answer(2, A)], num_replicates=50)
    assert math.isnan(found.metrics["acc_50"].low)
    assert not found.replicates


def test_weights_follow_the_source_image():
    gt = phrases(A, A, A, A, source=[5, 9, 5, 9])
    weights = phrase_weights(gt, 20, 3)
    assert np.array_equal(weights[0], weights[2])
    assert np.array_equal(weights[1], weights[3])
    assert np.array_equal(weights[:2], image_weights(2, 20, 3))


# -------------------------------------------------------------------- refusals
def test_a_truth_of_detection_is_refused():
    with pytest.raises(ValueError, match="PhraseTruth"):
        GroundingMetric(num_replicates=0, seed=0, truth=truth((1, "cat", A)))


@pytest.mark.parametrize(("box", "shown"), [(None, "None"), ((0.0, 0.0, math.nan, 1.0), "nan"), ((0.0, 0.0, math.inf, 1.0), "inf")])
def test_a_kept_record_without_a_box_is_refused(box, shown):
    broken = Prediction(1, (200, 100), (Record(TARGET, box, 1.0, "ok"),))
    with pytest.raises(ValueError, match=rf"phrase 1: .*{shown}"):
        evaluate(phrases(A), [broken])


def test_unknown_and_repeated_phrases_are_refused():
    metric = GroundingMetric(num_replicates=0, seed=0, truth=phrases(A))
    with pytest.raises(ValueError, match="phrase 4, which the truth"):
        metric.update([answer(4, A)])
    metric.update([answer(1, A)])
    with pytest.raises(ValueError, match="phrase 1 was predicted twice"):
        metric.update([answer(1, A)])
    assert [p.sample_id for p in metric.predictions] == [1]


def test_no_phrase_at_all():
    v = values(phrases(), [])
    assert math.isnan(v["acc_50"])


def test_negative_settings_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        GroundingMetric(num_replicates=-1, seed=0)
