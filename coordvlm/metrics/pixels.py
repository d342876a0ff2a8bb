"""Localisation error in pixels: Euclidean distance of predicted and true points.

A box counts as two points, its top-left and its bottom-right corner. "Within k px" includes k.

Shapes: I images, Q matched pairs, N = 2Q corners (top-left and bottom-right of pair 0, of pair 1, ...).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.evaluation import MatchedPairs
from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import FloatArray, IntArray
from coordvlm.metrics.bootstrap import weighted_quantiles
from coordvlm.metrics.matching import ImageSums, per_image

#: PCK radii in px.
RADII = (2, 5, 8, 10, 15)
#: Side to which both axes are scaled for the ``px384`` figures, which make image sizes comparable.
COMMON_SIDE = 384.0
#: Edges of the coarse histogram: 0-2, 2-5, 5-10, > 10 px, upper edges included.
COARSE_EDGES = (2.0, 5.0, 10.0)
#: tier -> (share, radius in px, mean in px): at least this share within the radius, and the mean below.
TIERS = {"minimum": (0.90, 8, 6.0), "target": (0.90, 5, 4.0), "stretch": (0.95, 5, 3.0)}
_QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95}


def corner_errors(pairs: MatchedPairs) -> FloatArray:
    """float64[N, 2], signed (x, y), predicted minus true, source px."""
    return (pairs.pred_xyxy_px - pairs.true_xyxy_px).reshape(-1, 2)


def euclidean(error_xy: FloatArray) -> FloatArray:
    """float64[N]."""
    return np.hypot(error_xy[:, 0], error_xy[:, 1])


def pixel_histogram(error_px: FloatArray, edges: tuple[float, ...] = COARSE_EDGES) -> IntArray:
    """int64[len(edges) + 1], errors in [0, e0], (e0, e1] .. and above the last edge; signs are ignored."""
    return np.bincount(np.searchsorted(edges, np.abs(error_px), "left"), minlength=len(edges) + 1).astype(np.int64)


class PixelErrors:
    """Pixel metrics of matched pairs.

    Args:
        image: index of each pair's image, int64[Q]. num_truth: float64[I], true boxes (no crowds) of each image.
    """

    def __init__(self, truth: GroundTruth, pairs: MatchedPairs, num_truth: FloatArray) -> None:
        index = np.searchsorted(truth.image_ids, pairs.image_id)
        self.error_xy = corner_errors(pairs)
        self.error = euclidean(self.error_xy)
        self._image = np.repeat(index, 2)
        self._num_truth = num_truth
        self._errors = {"px": self.error, "px384": euclidean(self.error_xy * (COMMON_SIDE / truth.image_wh[self._image]))}

    def sums(self) -> ImageSums:
        """``px_mean, px384_mean, pck_*`` (of matched corners) and ``pck_all_*`` (of all true corners)."""
        num_images = len(self._num_truth)
        matched = per_image(self._image, num_images)
        result = {f"{name}_mean": (per_image(self._image, num_images, e), matched) for name, e in self._errors.items()}
        for radius in RADII:
            within = per_image(self._image, num_images, self.error <= radius)
            result[f"pck_{radius}"] = (within, matched)
            result[f"pck_all_{radius}"] = (within, 2 * self._num_truth)
        return result

    def quantiles(self, weights: FloatArray) -> dict[str, FloatArray]:
        """``px_median, px_p90, px_p95`` and their ``px384`` forms for each column of weights float64[I, B]."""
        levels = np.array(list(_QUANTILES.values()))
        return {
            f"{name}_{label}": row
            for name, e in self._errors.items()
            for label, row in zip(_QUANTILES, weighted_quantiles(e, self._image, weights, levels), strict=True)
        }

    def counts(self, values: Mapping[str, float]) -> dict[str, int]:
        """Coarse histograms (Euclidean, |x|, |y|) and tiers reached (1 or 0), from the metric ``values``."""
        bins = ("0_2", "2_5", "5_10", "above_10")
        result = {"matched_pairs": len(self.error) // 2}
        for label, error in (("px", self.error), ("px_x", self.error_xy[:, 0]), ("px_y", self.error_xy[:, 1])):
            result |= {f"{label}_{name}": int(n) for name, n in zip(bins, pixel_histogram(error), strict=True)}
        for tier, (share, radius, mean) in TIERS.items():
            result[f"tier_{tier}"] = int(values[f"pck_{radius}"] >= share and values["px_mean"] < mean)
        return result
