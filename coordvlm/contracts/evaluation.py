"""What a metric hands to records and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A metric's value on the full set and its 95 % bootstrap interval over images. NaN: undefined on this data."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class MatchedPairs:
    """Class-aware pairs of a kept prediction and a true box at IoU >= 0.5 (greedy by score), Q pairs.

    ``pred_index`` counts the kept records of the image in emission order; ``ann_id`` is the true annotation's id.
    """

    image_id: NDArray[np.int64]
    pred_index: NDArray[np.int64]
    ann_id: NDArray[np.int64]
    iou: NDArray[np.float64]
    pred_xyxy_px: NDArray[np.float64]
    true_xyxy_px: NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation found.

    Args:
        metrics: name -> value and interval; the names of SPEC section 5.
        counts: images, predictions, drop reasons, unknown descriptions ...
        replicates: name -> float64[1000] bootstrap replicates, image weights from (seed, sorted image ids).
        per_class: class name -> {"AP": .., "AP50": .., "num_true": ..}.
        pairs: matched pairs at IoU >= 0.5.
        best_iou: float64[truths without crowds], best same-class IoU of each true box (0 when missed), for histograms.
        px_error: float64[2Q], Euclidean corner errors in source px of the matched pairs (top-left, bottom-right).
        px_error_xy: float64[2Q, 2], the same, split into signed x and y.
        pr_curve: threshold name ("0.5", "0.75") -> float64[101, 2] of (recall, precision), mean over classes.
        best_threshold: F1-optimal score threshold at IoU 0.5.
    """

    metrics: Mapping[str, Interval]
    counts: Mapping[str, int]
    replicates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pairs: MatchedPairs | None = None
    best_iou: NDArray[np.float64] | None = None
    px_error: NDArray[np.float64] | None = None
    px_error_xy: NDArray[np.float64] | None = None
    pr_curve: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    best_threshold: float = float("nan")
