"""Greedy matching of predictions to truths, identical to COCO's, for all images, areas and thresholds at once.

COCO visits the predictions of one (image, class) by descending score, and each takes the free truth it overlaps most. Only
predictions of equal rank in *different* groups are independent, so the loop here runs over ranks, not over images.

Shapes: D predictions, A annotations, P candidate pairs, R area ranges, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coordvlm.metrics.arrays import BoolArray, Detections, FloatArray, IntArray, Truths

#: Of a regular (not ignored) truth: it is preferred to any ignored one, whatever the overlap.
_REGULAR = 1 << 30
#: Candidate pairs handled at once; bounds the memory of a model that repeats itself thousands of times in an image.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Matches:
    """Args:
        truth: int32[D, R, T], index of the matched annotation or -1.
        ignored: bool[D, R, T], counts neither as right nor as wrong (matched an ignored truth, or unmatched and out of range).
    """

    truth: NDArray[np.int32]
    ignored: BoolArray

    @property
    def correct(self) -> BoolArray:
        return (self.truth >= 0) & ~self.ignored


def overlap(pred_xyxy: FloatArray, true_xyxy: FloatArray, crowd: BoolArray) -> FloatArray:
    """float64[P], IoU of paired boxes; intersection over the *prediction* for crowds. Boxes without area overlap nothing.

    Widths are rounded as in COCO's xywh form, so the result has the same bits as ``pycocotools.mask.iou``.
    """
    pred_wh, true_wh = pred_xyxy[:, 2:] - pred_xyxy[:, :2], true_xyxy[:, 2:] - true_xyxy[:, :2]
    high = np.minimum(pred_xyxy[:, :2] + pred_wh, true_xyxy[:, :2] + true_wh)
    sides = high - np.maximum(pred_xyxy[:, :2], true_xyxy[:, :2])
    inter = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    pred_area, true_area = pred_wh[:, 0] * pred_wh[:, 1], true_wh[:, 0] * true_wh[:, 1]
    union = np.where(crowd, pred_area, pred_area + true_area - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)


def rank_in_group(image: IntArray, category: IntArray, score: FloatArray) -> IntArray:
    """int64[D], position of each prediction in its (image, class) by descending score; stable, so ties keep their order."""
    order = np.lexsort((-score, category, image))
    changed = np.ones(len(order), dtype=np.bool_)
    changed[1:] = (np.diff(image[order]) != 0) | (np.diff(category[order]) != 0)
    start = np.flatnonzero(changed)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(start, np.diff(np.append(start, len(order))))
    return rank


def same_group_pairs(left_key: IntArray, right_key: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """All (left, right) index pairs of equal key, ordered by left, then right; in chunks that never split a left item."""
    right_order = np.argsort(right_key, kind="stable")
    keys = right_key[right_order]
    start = np.searchsorted(keys, left_key, "left")
    count = np.searchsorted(keys, left_key, "right") - start
    ends = np.cumsum(count)
    begin = 0
    while begin < len(left_key):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        size = count[begin:end]
        left = np.repeat(np.arange(begin, end), size)
        offset = np.arange(len(left)) - np.repeat(np.cumsum(size) - size, size)
        yield left, right_order[np.repeat(start[begin:end], size) + offset]
        begin = end


def overlapping_pairs(
    detections: Detections, truths: Truths, *, floor: float, class_agnostic: bool = False
) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs of the same image and class with overlap > 0 and >= floor.

    Returns:
        prediction int64[P], annotation int64[P], overlap float64[P]; ordered by prediction, then file order of the annotations
        (class by class when ``class_agnostic``, as COCO concatenates them).
    """
    if class_agnostic:
        left, right = detections.image, truths.image
    else:
        left = np.where(detections.category >= 0, detections.image * truths.num_classes + detections.category, -1)
        right = truths.image * truths.num_classes + truths.category
    parts = []
    for pred, ann in same_group_pairs(left, right):
        iou = overlap(detections.xyxy[pred], truths.xyxy[ann], truths.crowd[ann])
        keep = (iou >= floor) & (iou > 0)
        parts.append((pred[keep], ann[keep], iou[keep]))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    pred, ann, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    if class_agnostic:
        order = np.lexsort((ann, truths.category[ann], pred))
        pred, ann, iou = pred[order], ann[order], iou[order]
    return pred, ann, iou


def match(
    detections: Detections,
    truths: Truths,
    rank: IntArray,
    thresholds: FloatArray,
    *,
    ignore: BoolArray,
    out_of_range: BoolArray,
    class_agnostic: bool = False,
) -> Matches:
    """Greedy matching by rank.

    A prediction takes the free regular truth of highest overlap >= threshold (of equal ones the last in file order); failing
    that an ignored one. Crowds can be taken any number of times. Source: COCOeval.evaluateImg.

    Args:
        rank: int64[D], order of the predictions in their group (``rank_in_group``).
        thresholds: float64[T].
        ignore: bool[A, R], True where an annotation is ignored in an area range; crowds must be ignored in all.
        out_of_range: bool[D, R], True where an unmatched prediction is ignored.
    """
    limit = np.minimum(thresholds, 1 - 1e-10)
    num_ranges, num_thresholds = ignore.shape[1], len(limit)
    found = np.full((len(detections), num_ranges, num_thresholds), -1, dtype=np.int32)
    pred, ann, iou = overlapping_pairs(detections, truths, floor=float(limit.min()), class_agnostic=class_agnostic)
    taken = np.zeros((len(truths.image), num_ranges, num_thresholds), dtype=np.bool_)
    order = np.lexsort((iou, pred, rank[pred]))  # stable: equal overlaps stay in file order, so the last one wins
    pred, ann, iou = pred[order], ann[order], iou[order]
    for begin, end in _runs(rank[pred]):
        first = begin + np.flatnonzero(np.diff(pred[begin:end], prepend=-1))
        who, length = ann[begin:end], np.diff(np.append(first, end))
        local = np.arange(begin, end, dtype=np.int32) - np.repeat(first, length).astype(np.int32)
        free = ~taken[who] | truths.crowd[who, None, None]
        fits = free & (iou[begin:end, None, None] >= limit)
        value = local[:, None] + 1 + _REGULAR * ~ignore[who]
        best = np.maximum.reduceat(np.where(fits, value[:, :, None], 0), first - begin, axis=0)
        item, area, threshold = np.nonzero(best)
        winner = ann[first[item] + best[item, area, threshold] % _REGULAR - 1]
        found[pred[first[item]], area, threshold] = winner
        taken[winner, area, threshold] = True
    matched = found >= 0
    hidden = ignore[found, np.arange(num_ranges)[:, None]] if len(ignore) else np.zeros_like(matched)
    return Matches(found, np.where(matched, hidden, out_of_range[:, :, None]))


def _runs(values: IntArray) -> Iterator[tuple[int, int]]:
    """[begin, end) of every run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)] if len(values) else [0]
    yield from pairwise(bounds)
