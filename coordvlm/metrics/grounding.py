"""The protocol of referring grounding as one metric: answers to phrases in, an ``Evaluation`` out.

Acc@t is the share of phrases *with a target* whose answered box reaches IoU >= t. A phrase without an answer, with one that cannot
be read, or answered by "none" stays in the denominator as a miss: leaving failures out is what makes many published numbers
incomparable. Phrases without a target enter ``reject_*`` only.

Shapes: I phrases, S source images, B replicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import DROP_REASONS, KEPT, Prediction
from coordvlm.contracts.sample import GroundTruth, PhraseTruth
from coordvlm.metrics.arrays import FloatArray
from coordvlm.metrics.bootstrap import intervals, weighted_quantiles, weighted_ratio
from coordvlm.metrics.coco import IOU_THRESHOLDS
from coordvlm.metrics.collecting import CollectingMetric
from coordvlm.metrics.matching import ImageSums, answer_sums
from coordvlm.metrics.phrases import ACCURACIES, Outcomes, outcomes, phrase_weights, require_phrases
from coordvlm.metrics.pixels import PixelErrors

#: Those of ``acc_mean``: 0.50 to 0.95 in steps of 0.05.
MEAN_THRESHOLDS = np.round(IOU_THRESHOLDS, 2)


class GroundingMetric(CollectingMetric):
    """Accuracy of answered boxes at original resolution, with bootstrap intervals over source images.

    Args:
        num_replicates: bootstrap replicates; 0 gives values without intervals. So does a truth with a single source image.
        seed: of the weights. Runs on the same phrases and seed have paired replicates.
        truth: a ``PhraseTruth``, or later by ``set_truth``.
    """

    unit = "phrase"

    def __init__(self, *, num_replicates: int, seed: int, truth: GroundTruth | None = None) -> None:
        super().__init__(num_replicates=num_replicates, seed=seed)
        if truth is not None:
            self.set_truth(truth)

    def check_truth(self, truth: GroundTruth) -> None:
        """Anything but consistent phrases is a ``ValueError``."""
        require_phrases(truth)

    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all phrases of the truth."""
        truth = require_phrases(self.truth)
        found = outcomes(truth, predictions)
        pairs = found.pairs()
        pixels = PixelErrors(truth, pairs, found.has_target.astype(np.float64))
        sums = accuracy_sums(found) | answer_sums(truth, predictions) | pixels.sums()
        sums["parse_rate"] = (found.readable.astype(np.float64), np.ones(len(found)))
        values = _under(np.ones((len(found), 1)), sums, found, pixels)
        weights = phrase_weights(truth, self.num_replicates, self.seed)
        replicates = _under(weights, sums, found, pixels) if weights.shape[1] else {}
        scalars = {name: float(row[0]) for name, row in values.items()}
        counts = _counts(truth, predictions, found) | {"sampler_duplicates": sampler_duplicates} | pixels.counts(scalars)
        return Evaluation(
            metrics=intervals(scalars, replicates), counts=counts, replicates=replicates, pairs=pairs,
            best_iou=found.iou[found.has_target], px_error=pixels.error, px_error_xy=pixels.error_xy,
        )


def accuracy_sums(found: Outcomes) -> ImageSums:
    """Every rate and mean as (numerator, denominator) per phrase: float64[I] each.

    ``acc_*, acc_mean, iou_mean_all, iou_mean_parsed, detection_rate, point_in_box, center_error_mean`` over phrases with a target
    (``*_parsed`` and the distance: those of them answered by a box), ``none_rate`` and ``extra_box_rate`` over all,
    ``reject_precision, reject_recall, reject_f1`` for "none", undefined without negatives. When something was asked again:
    ``first_try_detection_rate`` and ``first_try_acc_50``, in which a first attempt that had to be repeated failed.
    """
    target, negative = found.has_target.astype(np.float64), ~found.has_target
    located, everything = found.located.astype(np.float64), np.ones(len(found))
    iou, distance = np.where(found.located, (found.iou, found.center_error()), 0.0)

    def share(of: np.ndarray, among: FloatArray) -> tuple[FloatArray, FloatArray]:
        return of.astype(np.float64), among

    sums = {name: share(found.hit(threshold), target) for name, threshold in ACCURACIES.items()}
    sums |= {
        "acc_mean": (np.mean([found.hit(t) for t in MEAN_THRESHOLDS.tolist()], axis=0), target),
        "iou_mean_all": (iou, target),
        "iou_mean_parsed": (iou * located, located),
        "detection_rate": share(found.located, target),
        "point_in_box": share(found.center_inside(), target),
        "center_error_mean": (distance, located),
        "none_rate": share(found.says_none, everything),
        "extra_box_rate": share(found.extra > 0, everything),
    }
    said, right = found.says_none.astype(np.float64), (found.says_none & negative).astype(np.float64)
    defined = float(negative.any())
    sums |= {
        "reject_precision": (right, said * defined),
        "reject_recall": (right, negative.astype(np.float64)),
        "reject_f1": (2 * right, (said + negative) * defined),
    }
    if (found.attempts > 1).any():
        first = found.attempts == 1
        sums |= {
            "first_try_detection_rate": share(found.located & first, target),
            "first_try_acc_50": share(found.hit(0.5) & first, target),
        }
    return sums


def _under(weights: FloatArray, sums: ImageSums, found: Outcomes, pixels: PixelErrors) -> dict[str, FloatArray]:
    """Every metric under each column of weights float64[I, b]: float64[b] each."""
    numerator, denominator = (np.stack([pair[side] for pair in sums.values()]) for side in (0, 1))
    values = dict(zip(sums, weighted_ratio(numerator, denominator, weights), strict=True))
    distance, rows = found.center_error(), np.arange(len(found))
    medians = {
        "iou_median_all": (found.iou, found.has_target),
        "iou_median_parsed": (found.iou, found.located),
        "center_error_median": (distance, found.located),
    }
    for name, (value, among) in medians.items():
        values[name] = weighted_quantiles(value[among], rows[among], weights, np.array([0.5]))[0]
    return values | pixels.quantiles(weights)


def _counts(truth: PhraseTruth, predictions: Mapping[int, Prediction], found: Outcomes) -> dict[str, int]:
    """How many phrases, images, answers of each kind, records of each status and flagged answers there were."""
    status = Counter(r.status for p in predictions.values() for r in p.records)
    flags = Counter(f for p in predictions.values() for f in p.flags)
    boxes = np.asarray([i in predictions and bool(predictions[i].kept) for i in found.ids.tolist()], dtype=np.bool_)
    return {
        "phrases": len(found),
        "images": len(np.unique(truth.source_image)),
        "phrases_with_target": int(found.has_target.sum()),
        "phrases_without_target": int((~found.has_target).sum()),
        "phrases_without_prediction": len(found) - len(predictions),
        "answered_box": int(found.parsed.sum()),
        "answered_none": int(found.says_none.sum()),
        "answered_none_and_box": int((found.says_none & boxes).sum()),
        "unparsed": int((~found.parsed & ~found.says_none).sum()),
        "extra_boxes": int(found.extra.sum()),
        "asked_again": int((found.attempts > 1).sum()),
        "records": status.total(),
        **{f"phrases_{name}": flags[name] for name in sorted({"truncated", "no_output", "stray_text"} | set(flags))},
        **{f"status_{name}": status[name] for name in (*KEPT, *DROP_REASONS, *sorted(set(status) - {*KEPT, *DROP_REASONS}))},
    }
