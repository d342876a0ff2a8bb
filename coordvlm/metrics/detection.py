"""The detection protocol as one metric: predictions in, an ``Evaluation`` out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import Detections, FloatArray, class_lookup, flatten, index_truth
from coordvlm.metrics.bootstrap import AveragePrecision, image_weights, intervals, weighted_ratio
from coordvlm.metrics.coco import BACKENDS, IOU_THRESHOLDS, RECALL_POINTS, CocoResult, evaluate_coco
from coordvlm.metrics.collecting import CollectingMetric
from coordvlm.metrics.matching import (
    ImageSums,
    answer_counts,
    answer_sums,
    best_f1_threshold,
    best_ious,
    f1_sums,
    match_classes,
    matched_pairs,
    per_image,
    prediction_sums,
)
from coordvlm.metrics.pixels import PixelErrors

_F1_NAMES = {"F1_50": 0, "F1_75": 5, "F1_95": 9}


class DetectionMetric(CollectingMetric):
    """Detection metrics on original annotations at original resolution, with bootstrap intervals over images.

    Args:
        backend: ``faster`` (faster-coco-eval) or ``pycocotools``; equal to 1e-9.
        num_replicates: bootstrap replicates; 0 gives values without intervals.
        seed: of the image weights. Runs on the same images and seed have paired replicates.
        casefold: compare descriptions with category names regardless of case (both are always stripped).
        ap_only: COCO's numbers only (to compare read-outs): no matching, no pixel errors.
        truth: the split's truth, or later by ``set_truth``.
    """

    def __init__(
        self, *, backend: str, num_replicates: int, seed: int, casefold: bool, ap_only: bool = False,
        truth: GroundTruth | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"unknown COCO backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        super().__init__(num_replicates=num_replicates, seed=seed)
        self.backend, self.casefold, self.ap_only = backend, casefold, ap_only
        if truth is not None:
            self.set_truth(truth)

    def check_truth(self, truth: GroundTruth) -> None:
        """Names that cannot be told apart and ids that do not exist are a ``ValueError``."""
        class_lookup(truth, self.casefold)
        index_truth(truth)

    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all images of the truth."""
        truth = self.truth
        detections = flatten(truth, predictions, casefold=self.casefold)
        result = _Evaluator(truth, detections, self)
        if not self.ap_only:
            result.match(predictions)
        counts = answer_counts(truth, predictions, detections) | {"sampler_duplicates": sampler_duplicates} | result.counts
        return Evaluation(metrics=intervals(result.values, result.replicates), counts=counts, **result.fields())


class _Evaluator:
    """One evaluation: values and replicates of every metric, filled step by step."""

    def __init__(self, truth: GroundTruth, detections: Detections, options: DetectionMetric) -> None:
        self.truth, self.truths, self.detections = truth, index_truth(truth), detections
        self.weights = image_weights(len(truth.image_ids), options.num_replicates, options.seed)
        self.values: dict[str, float] = {}
        self.replicates: dict[str, FloatArray] = {}
        self.counts: dict[str, int] = {}
        self._extra: dict[str, Any] = {}
        self.coco = evaluate_coco(truth, detections, options.backend)
        self._average_precision(self.coco, detections, suffix="")
        score_one = detections.with_score_one()
        self._average_precision(evaluate_coco(truth, score_one, options.backend), score_one, suffix="_score1")

    def _average_precision(self, result: CocoResult, detections: Detections, *, suffix: str) -> None:
        names = ("AP", "AP50", "AP75") if suffix else tuple(result.numbers)
        self.values |= {name + suffix: result.numbers[name] for name in names}
        if self.weights.shape[1]:
            flags = AveragePrecision(self.truths, detections, areas=1 if suffix else 4)
            replicates = flags.replicates(self.weights)
            self.replicates |= {name + suffix: replicates[name] for name in names}

    def match(self, predictions: Mapping[int, Prediction]) -> None:
        """F1, rates, pixel errors and what plots need."""
        matches = match_classes(self.truths, self.detections)
        self._f1(*f1_sums(self.truths, self.detections, matches))
        pairs = matched_pairs(self.truth, self.truths, self.detections, matches)
        num_truth = per_image(self.truths.image[~self.truths.crowd], self.truths.num_images)
        pixels = PixelErrors(self.truth, pairs, num_truth)
        self._ratios(prediction_sums(self.truths, self.detections) | answer_sums(self.truth, predictions) | pixels.sums())
        everything = np.ones((self.truths.num_images, 1))
        self.values |= {name: float(row[0]) for name, row in pixels.quantiles(everything).items()}
        if self.weights.shape[1]:
            self.replicates |= pixels.quantiles(self.weights)
        threshold, best = best_f1_threshold(self.truths, self.detections, matches)
        self.values["F1_50_best"] = best
        self.counts = pixels.counts(self.values)
        self._extra = {
            "pairs": pairs, "best_iou": best_ious(self.truths, self.detections), "px_error": pixels.error,
            "px_error_xy": pixels.error_xy, "best_threshold": threshold,
        }

    def _f1(self, twice_correct: FloatArray, total: FloatArray) -> None:
        """Shapes: [T, I] each."""
        value, replicates = (weighted_ratio(twice_correct, total, w) for w in (np.ones((total.shape[1], 1)), self.weights))
        for name, index in _F1_NAMES.items():
            self.values[name] = float(value[index, 0])
            self.replicates[name] = replicates[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # undefined at every threshold is NaN, which is meant
            self.values["F1_mean"] = float(np.nanmean(value[:, 0]))
            self.replicates["F1_mean"] = np.nanmean(replicates, axis=0)

    def _ratios(self, sums: ImageSums) -> None:
        numerator, denominator = (np.stack([pair[side] for pair in sums.values()]) for side in (0, 1))
        value, replicates = (weighted_ratio(numerator, denominator, w) for w in (np.ones((numerator.shape[1], 1)), self.weights))
        self.values |= dict(zip(sums, value[:, 0].tolist(), strict=True))
        self.replicates |= dict(zip(sums, replicates, strict=True))

    def fields(self) -> dict[str, Any]:
        """The remaining fields of ``Evaluation``."""
        num_truth = np.bincount(self.truths.category[~self.truths.crowd], minlength=self.truths.num_classes)
        per_class = {
            name: {"AP": float(ap), "AP50": float(ap50), "num_true": float(n)}
            for name, ap, ap50, n in zip(
                self.truth.category_names, self.coco.class_ap, self.coco.class_ap50, num_truth, strict=True
            )
        }
        replicates = self.replicates if self.weights.shape[1] else {}
        return {"replicates": replicates, "per_class": per_class, "pr_curve": _pr_curves(self.coco), **self._extra}


def _pr_curves(coco: CocoResult) -> dict[str, FloatArray]:
    """Mean over classes with truth of COCO's interpolated precision at IoU 0.5 and 0.75; empty without truth."""
    defined = ~np.isnan(coco.precision).any((0, 1))
    if not defined.any():
        return {}
    curves = {}
    for name in ("0.5", "0.75"):
        row = coco.precision[int(np.argmin(np.abs(IOU_THRESHOLDS - float(name))))]
        curves[name] = np.stack((RECALL_POINTS, row[:, defined].mean(1)), axis=1)
    return curves


