"""Checks of boxes: what a training target must keep, and what a wrong convention or a careless hand leaves behind.

Shapes: A annotations.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coordvlm.analysis.checks import CheckSettings, Tally, percent, stated
from coordvlm.analysis.checks_view import SplitView
from coordvlm.contracts import ResizeRule
from coordvlm.data.checks import CLIP_PX, NOISE_PX, RULES, UNREADABLE, Fault, clip_boxes
from coordvlm.data.images import target_size
from coordvlm.reports.audit_data import Finding, Histogram, Level
from coordvlm.utils.errors import DataError

#: Always shown, found or not; other faults only where there are any.
_USUAL = (Fault.ZERO_AREA, Fault.INVERTED, Fault.OUT_OF_FRAME)
#: What readers count and nobody refuses.
_HARMLESS = {
    "no_label_file": "images without a label file: taken for images without objects",
    "polygon_to_box": "polygons that were read as the boxes around them",
}
_TINY_PX = 2.0
_WHOLE = 0.99
#: Boxes from which on it says something that none of them does a thing.
_ENOUGH = 50
#: Boxes at an edge from which on a habit of the tool that wrote them shows.
_HABIT = 3
_REACH = 0.9
_BUCKETS = (32.0**2, 96.0**2)


def check_boxes(view: SplitView, settings: CheckSettings) -> list[Finding]:
    """All checks of the boxes of a split."""
    tally = Tally(topic="boxes", split=view.name, settings=settings, of=len(view.xyxy), place=view.ann_place, value=view.ann_value)
    found = [*_faults(view, tally), *_left_out(view), _clipped(view, tally)]
    if view.phrases is None:
        found += _duplicates(view, tally)
    found += [*_sizes(view, tally), *_convention(view)]
    return found if view.phrases is not None else [*found, *_per_image(view, settings)]


def _faults(view: SplitView, tally: Tally) -> list[Finding]:
    out = []
    for fault in Fault:
        hits = np.flatnonzero(view.faults == fault)
        if fault is Fault.NONE or not (hits.size or fault in _USUAL):
            continue
        details: dict[str, object] = {}
        rule = view.rule(int(hits[0])) if hits.size else RULES[fault]
        if fault is Fault.OUT_OF_FRAME and hits.size:
            excess = _excess(view, hits)
            hits = hits[np.argsort(-excess, kind="stable")]
            details["largest_excess_px"] = float(excess.max())
            rule += f"; the farthest lies {excess.max():.4g} px outside"
        refused = (fault in UNREADABLE) or view.strict
        rule += "" if not hits.size else "; training is refused" if refused else "; left out of the targets"
        level = Level.FAIL if refused else Level.WARN
        out.append(tally(fault.key, hits, rule, level, worse=(0.1, Level.FAIL), details=details))
    return out


def _excess(view: SplitView, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64: px by which boxes stick out."""
    xyxy, wh = view.xyxy[at], view.image_wh[view.ann_image[at]]
    return np.asarray(np.maximum(-xyxy.min(1, initial=0.0), (xyxy - np.tile(wh, 2)).max(1, initial=0.0)), dtype=np.float64)


def _left_out(view: SplitView) -> list[Finding]:
    refused = Level.FAIL if view.strict else Level.WARN
    found = []
    for key, number in sorted(view.left_out.items()):
        rule = _HARMLESS.get(key, "left out by the reader; training is refused unless data.on_error=skip leaves it out")
        if number:
            found.append(Finding("boxes", key, view.name, Level.NOTE if key in _HARMLESS else refused, number, f"{number:,}", rule))
    return found


def _clipped(view: SplitView, tally: Tally) -> Finding:
    good = np.flatnonzero(view.good & (view.faults == Fault.NONE))
    excess = _excess(view, good)
    hits = good[(excess > NOISE_PX) & (excess <= CLIP_PX)]
    return tally("clipped", hits, f"boxes that leave the image by up to {CLIP_PX:g} px are clipped", Level.NOTE)


def pairs_of_one_class(view: SplitView) -> NDArray[np.int64]:
    """int64[n, 2]: all pairs of boxes of one class in one image, without crowds and broken boxes; the earlier one first."""
    good = np.flatnonzero(view.good)
    order = good[np.lexsort((good, view.ann_category[good], view.ann_image[good]))]
    key = np.stack([view.ann_image[order], view.ann_category[order]], 1)
    found, left = [], np.arange(len(order))
    for step in range(1, len(order)):
        left = left[left + step < len(order)]
        left = left[(key[left] == key[left + step]).all(1)]
        if not left.size:
            break
        found.append(np.stack([order[left], order[left + step]], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)


def pair_iou(a_N4: NDArray[np.float64], b_N4: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[N]: IoU of boxes with an area, row by row."""
    corner = np.minimum(a_N4[:, 2:], b_N4[:, 2:]) - np.maximum(a_N4[:, :2], b_N4[:, :2])
    inter = corner.clip(0).prod(1)
    return np.asarray(inter / (_area(a_N4) + _area(b_N4) - inter), dtype=np.float64)


def _area(xyxy_N4: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((xyxy_N4[:, 2:] - xyxy_N4[:, :2]).prod(axis=1), dtype=np.float64)


def _duplicates(view: SplitView, tally: Tally) -> list[Finding]:
    pairs = pairs_of_one_class(view)
    iou = pair_iou(view.xyxy[pairs[:, 0]], view.xyxy[pairs[:, 1]])
    limit = tally.settings.near_duplicate_iou
    close = np.flatnonzero(iou >= limit)
    close = close[np.argsort(iou[close], kind="stable")]  # of several twins the closest one is named
    by_later = {b: (a, v) for (a, b), v in zip(pairs[close].tolist(), iou[close].tolist(), strict=True)}
    same = [b for b, (_, v) in by_later.items() if v == 1.0]
    near = sorted((b for b, (_, v) in by_later.items() if v < 1.0), key=lambda b: -by_later[b][1])

    def twin(at: int) -> object:
        other, value = by_later[at]
        return f"IoU {value:.3f} with {view.xyxy[other].tolist()} of the same class"

    rule = "an object should be annotated once: "
    return [
        tally("identical", same, f"{rule}the same box and class again", Level.WARN, value=twin),
        tally("near_duplicate", near, f"{rule}IoU of at least {limit:g} with another box of its class", Level.NOTE,
              worse=(0.01, Level.WARN), value=twin),
    ]


def _sizes(view: SplitView, tally: Tally) -> list[Finding]:
    good = np.flatnonzero(view.good)
    inside = clip_boxes(view.xyxy[good], view.image_wh[view.ann_image[good]])
    sides, area = inside[:, 2:] - inside[:, :2], _area(inside)
    share = area / view.image_wh[view.ann_image[good]].prod(1)
    bins = np.bincount(np.digitize(area, _BUCKETS), minlength=3)
    text = "/".join(f"{100 * k / max(len(good), 1):.0f}" for k in bins.tolist()) + " %"
    small, medium, large = bins.tolist()
    found = [
        stated("boxes", "size", view.name, float(np.median(area)) if len(area) else 0.0, text,
               "COCO's small (< 32² px), medium and large (> 96² px); the value is the median area in px²",
               small=small, medium=medium, large=large),
        tally("tiny", good[(sides < _TINY_PX).any(1)], f"a side below {_TINY_PX:g} px teaches nothing", Level.NOTE,
              worse=(0.01, Level.WARN)),
        tally("whole_image", good[share >= _WHOLE], f"a box over {percent(_WHOLE)} of the image says nothing of where", Level.NOTE,
              worse=(0.2, Level.WARN)),
    ]
    if (resize := tally.settings.resize) is not None:
        half = resize.factor / 2
        hidden = good[(sides * _scales(view, resize)[view.ann_image[good]] < half).any(1)]
        rule = f"a side below {half:g} px as the model sees it, half of what one image token covers"
        found.append(tally("below_half_token", hidden, rule, Level.NOTE, worse=(0.5, Level.WARN)))
    return found


def _scales(view: SplitView, resize: ResizeRule) -> NDArray[np.float64]:
    """float64[I, 2]: model px per source px; an image too elongated for the rule counts as it is."""
    sizes, image = np.unique(view.image_wh, axis=0, return_inverse=True)
    scale = np.ones_like(sizes)
    for i, (width, height) in enumerate(sizes.tolist()):
        try:
            scale[i] = np.asarray(target_size(resize, int(width), int(height))) / sizes[i]
        except DataError:
            continue
    return np.asarray(scale[image.reshape(-1)])


def _convention(view: SplitView) -> list[Finding]:
    """Signs that the numbers mean something else than they were read as."""
    good = np.flatnonzero(view.good)
    if len(good) < _ENOUGH or view.generated:
        return []
    xyxy, wh = view.xyxy[good], view.image_wh[view.ann_image[good]]
    whole = bool((np.abs(xyxy - xyxy.round()) < 1e-6).all())
    first = [int((np.abs(xyxy[:, :2] - edge) < 1e-6).sum()) for edge in (0.0, 1.0)]
    last = [int((np.abs(xyxy[:, 2:] - (wh - edge)) < 1e-6).sum()) for edge in (0.0, 1.0)]
    one_based = whole and not first[0] and first[1] >= _HABIT and not (xyxy[:, :2] < 1).any()
    inclusive = whole and not last[0] and last[1] >= _HABIT and first[0] >= _HABIT and not (xyxy[:, 2:] > wh - 1).any()
    reach = (xyxy[:, 2:] / wh).max(0)
    short = reach < _REACH
    edges = {"at_0": first[0], "at_1": first[1], "at_size": last[0], "at_size_minus_1": last[1]}
    return [
        stated("boxes", "whole_numbers", view.name, whole, "yes" if whole else "no", "whether all coordinates are whole pixels", **edges),
        Finding(
            "boxes", "one_based", view.name, Level.WARN if one_based else Level.OK, float(one_based), "yes" if one_based else "no",
            f"pixels seem to be counted from 1: {first[1]:,} edges at 1 and none at 0, so boxes may be a pixel off" if one_based
            else "no sign that pixels are counted from 1", details=edges),
        Finding(
            "boxes", "last_pixel", view.name, Level.WARN if inclusive else Level.OK, float(inclusive), "yes" if inclusive else "no",
            f"the last pixel seems to be part of a box: {last[1]:,} edges at size - 1 and none at the size, so boxes may be a pixel short"
            if inclusive else "no sign that the last pixel is left out", details=edges),
        Finding(
            "boxes", "reach", view.name, Level.WARN if short.any() else Level.OK, float(reach.min()),
            " x ".join(f"{100 * r:.0f}" for r in reach.tolist()) + " %",
            "how far boxes reach to the right and down; " + (
                "none comes near the edge: of a smaller version of the image, or another unit?" if short.any() else "they reach the edges"),
        ),
    ]


def _per_image(view: SplitView, settings: CheckSettings) -> list[Finding]:
    known = view.ann_image >= 0
    number = np.bincount(view.ann_image[known & ~view.crowd], minlength=len(view.image_ids))
    tally = Tally(topic="boxes", split=view.name, settings=settings, of=len(number), place=view.image_place)
    shown = f"{np.median(number):.0f}, most {number.max()}" if len(number) else "none"
    found = [
        stated("boxes", "per_image", view.name, float(number.mean()) if len(number) else 0.0, shown,
               "boxes per image: the median and the most, crowds apart; the value is the mean"),
        tally("images_without", np.flatnonzero(number == 0), "images without a box are kept: their answer is empty", Level.NOTE,
              worse=(0.5, Level.WARN)),
    ]
    if settings.max_objects is not None and view.trains:
        many = np.flatnonzero(number > settings.max_objects)
        many = many[np.argsort(-number[many], kind="stable")]
        rule = f"images with more than {settings.max_objects} boxes (sequence.max_objects) are dropped or cut in training"
        found.append(tally("many_objects", many, rule, Level.NOTE, worse=(0.2, Level.WARN), value=lambda i: int(number[i])))
    crowds = int(view.crowd.sum())
    return [*found, stated("boxes", "crowds", view.name, crowds, f"{crowds:,}", "crowds are never targets; evaluation ignores them")]


def size_histogram(view: SplitView) -> Histogram:
    """Of box sides: root of the area as a share of the image's."""
    good = view.good
    share = np.sqrt(_area(view.xyxy[good]) / view.image_wh[view.ann_image[good]].prod(1)).clip(0, 1)
    counts, edges = np.histogram(share, bins=10, range=(0, 1))
    labels = tuple(f"{100 * a:.0f}-{100 * b:.0f} %" for a, b in pairwise(edges.tolist()))
    return Histogram("Box side, as a share of the image's", view.name, labels, tuple(counts.tolist()))
