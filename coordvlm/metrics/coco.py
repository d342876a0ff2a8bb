"""COCO's box evaluation through faster-coco-eval or pycocotools, fed with arrays.

Order matters where scores are equal: predictions are handed over in image-id order, then emission order, and both backends sort
stably by descending score. So in a set where every score is 1 the emission order within an image decides which of its boxes
are matched first (and which fall behind ``max_dets``), and the image order decides the rest of the curve. The order *across*
images in a results file never matters, as COCO evaluates image by image.

Shapes: T IoU thresholds, 101 recall points, K classes, 4 area ranges, M detection limits.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import BoolArray, Detections, FloatArray, Truths, index_truth

BACKENDS = ("faster", "pycocotools")
IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10)
RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101)
MAX_DETS = (1, 10, 100)
#: [low, high] in squared px, both ends included, as COCO has them: an area of exactly 32**2 is small *and* medium.
AREA_RANGES: FloatArray = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
AREA_NAMES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class CocoResult:
    """Args:
        numbers: the 12 of COCO: AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR100, AR_small ...; NaN: undefined.
        class_ap, class_ap50: float64[K], NaN for a class without truth.
        precision: float64[T, 101, K], interpolated, all areas, last detection limit; NaN for a class without truth.
    """

    numbers: Mapping[str, float]
    class_ap: FloatArray
    class_ap50: FloatArray
    precision: FloatArray


def out_of_area(area: FloatArray) -> BoolArray:
    """bool[N, 4], True where an area lies outside COCO's range."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def box_area(xyxy: FloatArray) -> FloatArray:
    """float64[N], as COCO computes it for detections."""
    return (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])


def evaluate_coco(
    truth: GroundTruth,
    detections: Detections,
    backend: str,
    *,
    iou_thresholds: FloatArray = IOU_THRESHOLDS,
    max_dets: tuple[int, int, int] = MAX_DETS,
    class_agnostic: bool = False,
) -> CocoResult:
    """COCO's numbers for boxes.

    Args:
        detections: unknown descriptions are left out: COCO has no category for them.
        backend: ``faster`` or ``pycocotools``.
        iou_thresholds, max_dets, class_agnostic: COCO's ``iouThrs``, ``maxDets`` and ``not useCats``. AP uses the last limit.
    Raises:
        ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown COCO backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    truths, known = index_truth(truth), detections.known()
    num_classes = 1 if class_agnostic else truths.num_classes
    precision = np.full((len(iou_thresholds), len(RECALL_POINTS), num_classes, 4, 3), -1.0)
    recall = np.full((len(iou_thresholds), num_classes, 4, 3), -1.0)
    if (~truths.crowd).any():
        with contextlib.redirect_stdout(io.StringIO()) if backend == "pycocotools" else contextlib.nullcontext():
            result = _run(truth, truths, known, backend, iou_thresholds, max_dets, class_agnostic)
        precision, recall = np.asarray(result["precision"]), np.asarray(result["recall"])
    return _summarise(precision.reshape(-1, 101, num_classes, 4, 3), recall.reshape(-1, num_classes, 4, 3), iou_thresholds)


def _summarise(precision: FloatArray, recall: FloatArray, iou_thresholds: FloatArray) -> CocoResult:
    """precision[T, 101, K, 4, 3], recall[T, K, 4, 3] with -1 for undefined -> the numbers. As COCOeval.summarize."""
    precision, recall = (np.where(x > -1, x, np.nan) for x in (precision, recall))
    numbers = {"AP": _mean(precision[..., 0, -1])}
    for name, value in (("AP50", 0.5), ("AP75", 0.75)):
        numbers[name] = _mean(precision[np.isclose(iou_thresholds, value), ..., 0, -1])
    numbers |= {f"AP_{name}": _mean(precision[..., area, -1]) for area, name in enumerate(AREA_NAMES) if area}
    numbers |= {f"AR{limit}": _mean(recall[..., 0, index]) for index, limit in enumerate(MAX_DETS)}
    numbers |= {f"AR_{name}": _mean(recall[..., area, -1]) for area, name in enumerate(AREA_NAMES) if area}
    per_class = precision[..., 0, -1]
    at_50 = per_class[np.isclose(iou_thresholds, 0.5)]
    num_classes = precision.shape[2]
    return CocoResult(
        numbers,
        np.array([_mean(per_class[:, :, k]) for k in range(num_classes)]),
        np.array([_mean(at_50[:, :, k]) for k in range(num_classes)]),
        per_class,
    )


def _mean(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _run(
    truth: GroundTruth, truths: Truths, detections: Detections, backend: str, iou_thresholds: FloatArray,
    max_dets: tuple[int, int, int], class_agnostic: bool,
) -> Mapping[str, Any]:
    if backend == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluator
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluator
    categories = truth.category_ids.tolist()
    images = [{"id": i, "width": w, "height": h} for i, (w, h) in zip(truth.image_ids.tolist(), truth.image_wh.tolist(), strict=True)]
    tables = []
    for items, area, crowd, score in (
        (truths, truths.area, truths.crowd.astype(int), np.ones_like(truths.area)),
        (detections, box_area(detections.xyxy), np.zeros(len(detections), dtype=int), detections.score),
    ):
        xywh = np.concatenate((items.xyxy[:, :2], items.xyxy[:, 2:] - items.xyxy[:, :2]), 1)
        columns = (truth.image_ids[items.image], truth.category_ids[items.category], xywh, area, crowd, score)
        # Ids count from 1 whatever the file says: both backends take a match with id 0 for no match.
        annotations = [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "iscrowd": x, "score": s}
            for n, (i, c, b, a, x, s) in enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1)
        ]
        table = COCO()
        table.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in categories]}
        table.createIndex()
        tables.append(table)
    evaluator = Evaluator(tables[0], tables[1], "bbox")
    evaluator.params.iouThrs, evaluator.params.maxDets = iou_thresholds, list(max_dets)
    evaluator.params.useCats = int(not class_agnostic)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval  # type: ignore[no-any-return]
