"""COCO's published and recomputed numbers come out of our metric, with both backends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from coordvlm.metrics.coco import evaluate_coco
from coordvlm.metrics.detection import DetectionMetric
from tests.data_root import peer_data
from tests.metrics.cases import BACKENDS, detections_of, perfect, predicted, predictions_of, random_case, read, truth, truth_of

OUR_NAMES = {"APs": "AP_small", "APm": "AP_medium", "APl": "AP_large", "ARs": "AR_small", "ARm": "AR_medium", "ARl": "AR_large"}
SMALL_CASES = (
    "tm-inputs", "tm-issue-943-fp-on-empty-image", "tm-issue-981-empty-preds-on-one-image", "tm-doc-single", "tm-missing-pred",
    "tm-missing-gt", "tm-empty-preds", "tm-empty-gt", "d2-full",
)
REAL_SETS = ("bccd_val", "bccd_val_clean", "tinycoco_val", "tinycoco_train")


def folder() -> Path:
    return peer_data() / "peer_cases" / "coco_eval"


def check(values, expected, per_class=None, names=(), tolerance=1e-9):
    """Expected numbers in COCO's names, -1 for undefined."""
    compared = 0
    for name, number in expected.items():
        if name == "AP_per_class":
            for category, ap in number.items():
                found = per_class[names[int(category)]]["AP"]
                assert math.isnan(found) if ap == -1 else found == pytest.approx(ap, abs=tolerance), category
            continue
        found = values[OUR_NAMES.get(name, name)]
        assert math.isnan(found) if number == -1 else found == pytest.approx(number, abs=tolerance), name
        compared += 1
    assert compared


def run(data, results, backend):
    gt = truth_of(data)
    metric = DetectionMetric(backend=backend, num_replicates=0, seed=0, casefold=False, truth=gt)
    metric.update(predictions_of(gt, results))
    found = metric.compute()
    names = dict(zip(gt.category_ids.tolist(), gt.category_names, strict=True))
    return {name: m.value for name, m in found.metrics.items()}, found.per_class, names


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case_id", SMALL_CASES)
def test_small_published_case(case_id, backend):
    case = next(c for c in read(folder() / "small_cases.json")["cases"] if c["id"] == case_id)
    values, per_class, names = run(case["gt"], case["dt"], backend)
    check(values, case["expected"], per_class, names)
    if case.get("published"):
        check(values, case["published"], tolerance=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case_id", ["tm-box-format-xyxy", "tm-box-format-xywh", "d2-no-categories", "d2-one-max-det"])
def test_small_case_with_other_parameters(case_id, backend):
    case = next(c for c in read(folder() / "small_cases.json")["cases"] if c["id"] == case_id)
    gt = truth_of(case["gt"])
    params = case["params"]
    options = {
        "iou_thresholds": np.array(params["iouThrs"]) if "iouThrs" in params else None,
        "max_dets": tuple(params["maxDets"]) if "maxDets" in params else None,
        "class_agnostic": True if params.get("useCats") == 0 else None,
    }
    found = evaluate_coco(
        gt, detections_of(gt, predictions_of(gt, case["dt"])), backend, **{k: v for k, v in options.items() if v is not None}
    )
    # pycocotools prints AP at a limit of 100 only; we always read the last limit, as the other backend does.
    expected = case.get("faster_coco_eval") or {k: v for k, v in case["expected"].items() if k != "AP_per_class"}
    check(found.numbers, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cocoapi_example_on_one_hundred_images(backend):
    root = folder() / "cocoapi_fakebbox100"
    values, per_class, names = run(read(root / "gt.json"), read(root / "dt.json"), backend)
    expected = read(root / "expected.json")
    check(values, expected["published"])
    check(values, expected["verified_here"]["pycocotools"], per_class, names)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_decide_what_is_ignored(backend):
    root = folder() / "fce_ignore_flag"
    expected = read(root / "expected.json")
    results = [r for r in read(root / "dt.json") if r["score"] >= expected["min_score"]]
    check(run(read(root / "gt.json"), results, backend)[0], expected["published"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["jitter", "jitter_score1", "perfect"])
@pytest.mark.parametrize("name", REAL_SETS)
def test_real_annotations(name, variant, backend):
    case = read(folder() / "real_expected.visible.json")["sets"][name][variant]
    data = read(peer_data() / case["gt"].replace("../../../", "").replace("coco_sample/", ""))
    results = read(folder() / case["dt"]) if case["dt"] else perfect(data)
    assert len(results) == case["n_dt"]
    values, per_class, names = run(data, results, backend)
    check(values, case["pycocotools"], per_class, names)
    if variant == "jitter":
        ones = read(folder() / "real_expected.visible.json")["sets"][name]["jitter_score1"]
        scored_by_file = read(folder() / ones["dt"])
        assert [r["bbox"] for r in scored_by_file] == [r["bbox"] for r in results]
        assert values["AP_score1"] == pytest.approx(ones["pycocotools"]["AP"], abs=1e-9)
        assert values["AP50_score1"] == pytest.approx(ones["pycocotools"]["AP50"], abs=1e-9)
    else:
        assert values["AP_score1"] == values["AP"]
        assert values["AP50_score1"] == values["AP50"]


def test_backends_agree_on_random_sets():
    for seed in range(4):
        data, results = random_case(seed, ties=True)
        gt = truth_of(data)
        detections = detections_of(gt, predictions_of(gt, results))
        fast, reference = (evaluate_coco(gt, detections, b) for b in BACKENDS)
        for name, value in reference.numbers.items():
            assert fast.numbers[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
        np.testing.assert_allclose(fast.precision, reference.precision, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_id_zero_can_be_matched(backend):
    gt = truth((1, "cat", (0, 0, 50, 50)))
    assert gt.ann_ids[0] == 0
    assert evaluate_coco(gt, detections_of(gt, [predicted(1, ("cat", (0, 0, 50, 50), 0.5))]), backend).numbers["AP"] == pytest.approx(1)


def test_nothing_is_printed(capfd):
    gt = truth((1, "cat", (0, 0, 50, 50)))
    for backend in BACKENDS:
        evaluate_coco(gt, detections_of(gt, []), backend)
    assert capfd.readouterr().out == ""


def test_unknown_backend_is_refused():
    gt = truth()
    with pytest.raises(ValueError, match=r"'coco'.*faster, pycocotools"):
        evaluate_coco(gt, detections_of(gt, []), "coco")
