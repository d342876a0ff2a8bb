"""What AP does not say: F1 at fixed thresholds, duplicates, absent classes, the pairs behind pixel errors.

Every rate is kept as a pair of per-image sums (numerator, denominator), so its bootstrap is two matrix products.

Shapes: I images, A annotations, D kept predictions, T IoU thresholds, Q matched pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.evaluation import MatchedPairs
from coordvlm.contracts.prediction import DROP_REASONS, KEPT, Prediction
from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import BoolArray, Detections, FloatArray, Truths
from coordvlm.metrics.coco import IOU_THRESHOLDS
from coordvlm.metrics.greedy import Matches, match, overlap, overlapping_pairs, rank_in_group, same_group_pairs

#: Overlap from which a second prediction of a class counts as a repetition of the first.
DUPLICATE_IOU = 0.9

#: name -> (numerator float64[I], denominator float64[I]).
ImageSums = dict[str, tuple[FloatArray, FloatArray]]


def per_image(image: np.ndarray, num_images: int, value: FloatArray | BoolArray | None = None) -> FloatArray:
    """float64[I], sum of ``value`` (default 1) over the items of each image."""
    return np.bincount(image, weights=value, minlength=num_images).astype(np.float64)


def match_classes(truths: Truths, detections: Detections) -> Matches:
    """Class-aware matches at IoU 0.5:0.05:0.95, greedy by score then emission order, without COCO's limit of 100.

    A prediction that finds no free truth but overlaps a crowd of its class is ignored. Unknown descriptions match nothing.
    """
    rank = rank_in_group(detections.image, detections.category, detections.score)
    inside = np.zeros((len(detections), 1), dtype=np.bool_)
    return match(detections, truths, rank, IOU_THRESHOLDS, ignore=truths.crowd[:, None], out_of_range=inside)


def f1_sums(truths: Truths, detections: Detections, matches: Matches) -> tuple[FloatArray, FloatArray]:
    """2 TP and 2 TP + FP + FN = TP + FP + truths per image: float64[T, I] each. Crowds are not truths."""
    num_truth = per_image(truths.image[~truths.crowd], truths.num_images)
    correct, counted = matches.correct[:, 0], ~matches.ignored[:, 0]
    twice = [2 * per_image(detections.image, truths.num_images, c) for c in correct.T]
    total = [per_image(detections.image, truths.num_images, c) + num_truth for c in counted.T]
    return np.stack(twice), np.stack(total)


def best_f1_threshold(truths: Truths, detections: Detections, matches: Matches) -> tuple[float, float]:
    """(score threshold, F1) of the best F1 at IoU 0.5 when predictions below the threshold are left out.

    Of equally good thresholds the highest one; NaN without truths or predictions. Exact, because a greedy match by score does not
    change when lower scores are removed.
    """
    num_truth = int((~truths.crowd).sum())
    if not num_truth or not len(detections):
        return float("nan"), float("nan")
    order = np.argsort(-detections.score, kind="stable")
    score = detections.score[order]
    true_positives = np.cumsum(matches.correct[order, 0, 0])
    f1 = 2 * true_positives / (np.cumsum(~matches.ignored[order, 0, 0]) + num_truth)
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    best = last[np.argmax(f1[last])]
    return float(score[best]), float(f1[best])


def duplicates(detections: Detections) -> BoolArray:
    """bool[D], an earlier prediction of the image has the same class (or unknown description) and IoU >= 0.9."""
    result = np.zeros(len(detections), dtype=np.bool_)
    if not len(detections):
        return result
    span = int(np.ptp(detections.category)) + 1
    key = detections.image * span + detections.category - detections.category.min()
    for later, earlier in same_group_pairs(key, key):
        before = earlier < later
        later, earlier = later[before], earlier[before]
        iou = overlap(detections.xyxy[later], detections.xyxy[earlier], np.zeros(len(later), dtype=np.bool_))
        result[later[iou >= DUPLICATE_IOU]] = True
    return result


def absent_classes(truths: Truths, detections: Detections) -> BoolArray:
    """bool[D], no annotation of the class (crowds included) is in the image; unknown descriptions are never there."""
    present = np.zeros((truths.num_images, truths.num_classes + 1), dtype=np.bool_)
    present[truths.image, truths.category] = True
    return ~present[detections.image, np.maximum(detections.category, -1)]  # column -1: unknown


def best_ious(truths: Truths, detections: Detections) -> FloatArray:
    """Best IoU of each true box that is no crowd with a prediction of its class, in file order; 0 when missed."""
    best = np.zeros(len(truths.image))
    _, ann, iou = overlapping_pairs(detections, truths, floor=0.0)
    np.maximum.at(best, ann, iou)
    return best[~truths.crowd]


def matched_pairs(truth: GroundTruth, truths: Truths, detections: Detections, matches: Matches) -> MatchedPairs:
    """The true positives at IoU >= 0.5, in image order, then emission order."""
    index = np.flatnonzero(matches.correct[:, 0, 0])
    ann = matches.truth[index, 0, 0]
    pred_box, true_box = detections.xyxy[index], truths.xyxy[ann]
    return MatchedPairs(
        image_id=truth.image_ids[detections.image[index]],
        pred_index=detections.emission[index],
        ann_id=truth.ann_ids[ann],
        iou=overlap(pred_box, true_box, np.zeros(len(index), dtype=np.bool_)),
        pred_xyxy_px=pred_box,
        true_xyxy_px=true_box,
    )


def prediction_sums(truths: Truths, detections: Detections) -> ImageSums:
    """``duplicate_rate`` and ``absent_class_rate``: shares of all kept predictions."""
    total = per_image(detections.image, truths.num_images)
    flags = {"duplicate_rate": duplicates(detections), "absent_class_rate": absent_classes(truths, detections)}
    return {name: (per_image(detections.image, truths.num_images, flag), total) for name, flag in flags.items()}


def answer_sums(truth: GroundTruth, predictions: Mapping[int, Prediction]) -> ImageSums:
    """``parse_rate`` and ``truncation_rate`` over all images of the truth, tokens and seconds over those that report them.

    An image is parsed when all its records are ``ok`` or ``repaired`` and it is not flagged ``no_output``; without a prediction
    it is not parsed. A legitimate empty answer is parsed (the parser does not flag it).
    """
    answers = [predictions.get(image_id) for image_id in truth.image_ids.tolist()]
    everything = np.ones(len(answers))
    parsed = [p is not None and "no_output" not in p.flags and all(r.kept for r in p.records) for p in answers]
    truncated = [p is not None and "truncated" in p.flags for p in answers]
    tokens = [len(p.token_ids) if p is not None else 0 for p in answers]
    seconds = [p.timing.get("seconds", np.nan) if p is not None else np.nan for p in answers]
    timed = ~np.isnan(seconds)
    return {
        "parse_rate": (np.asarray(parsed, dtype=np.float64), everything),
        "truncation_rate": (np.asarray(truncated, dtype=np.float64), everything),
        "tokens_per_image": (np.asarray(tokens, dtype=np.float64), np.asarray(tokens, dtype=np.float64).astype(bool) * 1.0),
        "seconds_per_image": (np.where(timed, seconds, 0.0), timed.astype(np.float64)),
    }


def answer_counts(truth: GroundTruth, predictions: Mapping[int, Prediction], detections: Detections) -> dict[str, int]:
    """How many images, truths, predictions, records of each status and flagged answers there were."""
    status = Counter(r.status for p in predictions.values() for r in p.records)
    flags = Counter(f for p in predictions.values() for f in p.flags)
    unknown = detections.category[detections.category < 0]
    return {
        "images": len(truth.image_ids),
        "images_without_prediction": len(truth.image_ids) - len(predictions),
        "truths": int((~truth.ann_iscrowd).sum()),
        "crowds": int(truth.ann_iscrowd.sum()),
        "records": status.total(),
        "predictions": len(detections),
        "unknown_descriptions": len(unknown),
        "distinct_unknown_descriptions": len(np.unique(unknown)),
        **{f"images_{name}": flags[name] for name in sorted({"truncated", "no_output", "stray_text"} | set(flags))},
        **{f"status_{name}": status[name] for name in (*KEPT, *DROP_REASONS, *sorted(set(status) - {*KEPT, *DROP_REASONS}))},
    }
