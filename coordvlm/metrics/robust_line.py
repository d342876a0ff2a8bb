"""A line through points of which up to nearly half lie anywhere: scale and shift of predicted against true coordinates.

Least median of squares over random pairs of points finds where to start; Tukey's biweight refines it. Standard errors allow for
points of one cluster that err together.

Shapes: N points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coordvlm.metrics.arrays import FloatArray, IntArray

#: Of the biweight, in units of the residuals' scale: 95 % efficient on clean normal data.
_TUNING = 4.685
#: Median absolute deviation -> standard deviation of a normal distribution.
_MAD = 1.4826
_PAIRS, _SAMPLE, _STEPS = 500, 1500, 50


@dataclass(frozen=True)
class Line:
    """``predicted = scale * true + shift``. se: standard errors of scale and shift. spread: of the inliers' residuals, robust.

    inliers: share of the points that took part.
    """

    scale: float
    shift: float
    scale_se: float
    shift_se: float
    spread: float
    inliers: float


def robust_line(true: FloatArray, predicted: FloatArray, cluster: IntArray, *, floor: float) -> Line:
    """Fit float64[N] against float64[N].

    Args:
        cluster: int64[N], points of one cluster err together. floor: the spread is never taken to be smaller than this (rounding).
    Raises:
        ValueError: fewer than three points, or all at one place: no line is determined.
    """
    if len(true) < 3 or np.ptp(true) == 0:
        raise ValueError(f"a line needs three points at different places, got {len(true)}")
    scale, shift = _start(true, predicted)
    design = np.stack((true, np.ones_like(true)), axis=1)
    spread = 0.0
    for _ in range(_STEPS):
        residual = predicted - scale * true - shift
        spread = max(_MAD * float(np.median(np.abs(residual))), floor)
        weight = _biweight(residual / (_TUNING * spread))
        found = np.linalg.lstsq(design * np.sqrt(weight)[:, None], predicted * np.sqrt(weight), rcond=None)[0]
        moved = abs(found[0] - scale) + abs(found[1] - shift)
        scale, shift = float(found[0]), float(found[1])
        if moved < 1e-10 * (1 + abs(scale) + abs(shift)):
            break
    residual = predicted - scale * true - shift
    se = _standard_errors(design, residual, spread, cluster)
    return Line(scale, shift, se[0], se[1], spread, float((np.abs(residual) < _TUNING * spread).mean()))


def _start(true: FloatArray, predicted: FloatArray) -> tuple[float, float]:
    """Of many lines through two points, the one with the least median of squared residuals. Source: Rousseeuw 1984."""
    generator = np.random.Generator(np.random.PCG64(0))
    first, second = generator.integers(0, len(true), (2, _PAIRS))
    apart = np.abs(true[first] - true[second]) > 0.05 * np.ptp(true)
    first, second = first[apart], second[apart]
    scale = (predicted[first] - predicted[second]) / (true[first] - true[second])
    scale, shift = np.append(scale, 1.0), np.append(predicted[first] - scale * true[first], 0.0)  # no error is one of the candidates
    seen = generator.permutation(len(true))[:_SAMPLE]
    residual = np.abs(predicted[seen] - scale[:, None] * true[seen] - shift[:, None])
    best = int(np.argmin(np.median(residual, axis=1)))
    return float(scale[best]), float(shift[best])


def _biweight(scaled: FloatArray) -> FloatArray:
    return np.where(np.abs(scaled) < 1, (1 - scaled**2) ** 2, 0.0)


def _standard_errors(design: FloatArray, residual: FloatArray, spread: float, cluster: IntArray) -> tuple[float, float]:
    """The sandwich: score sums per cluster around the curvature. NaN where it is singular, or for a single cluster."""
    scaled = residual / (_TUNING * spread)
    slope = np.where(np.abs(scaled) < 1, (1 - scaled**2) * (1 - 5 * scaled**2), 0.0)
    curvature = (design * slope[:, None]).T @ design
    distinct, group = np.unique(cluster, return_inverse=True)
    score = design * (_biweight(scaled) * residual)[:, None]
    sums = np.stack([np.bincount(group.reshape(-1), weights=column, minlength=len(distinct)) for column in score.T], axis=1)
    if len(distinct) < 2 or abs(np.linalg.det(curvature)) < 1e-12 * max(1.0, float(np.abs(curvature).max()) ** 2):
        return math.nan, math.nan
    inverse = np.linalg.inv(curvature)
    variance = inverse @ (sums.T @ sums) @ inverse * len(distinct) / (len(distinct) - 1)
    return float(np.sqrt(variance[0, 0])), float(np.sqrt(variance[1, 1]))
