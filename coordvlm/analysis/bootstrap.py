"""Comparing two runs on the same images: replicates are paired, so their difference has its own, narrower interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordvlm.contracts.evaluation import Interval
from coordvlm.metrics.arrays import FloatArray
from coordvlm.metrics.bootstrap import percentile_interval


@dataclass(frozen=True)
class PairedDifference:
    """First minus second run.

    Args:
        difference: value and 95 % interval.
        p_value: two-sided, of "no difference": twice the smaller share of replicates on one side of zero, counting the observed
            sample as one of them (so never 0). Source: Davison & Hinkley 1997, section 4.4.
        num_replicates: those in which both runs' metric is defined.
    """

    difference: Interval
    p_value: float
    num_replicates: int


def paired_difference(
    first: float, second: float, first_replicates: FloatArray, second_replicates: FloatArray
) -> PairedDifference:
    """Compare one metric of two runs.

    Args:
        first, second: values on the full set.
        first_replicates, second_replicates: float64[B], made with the same image weights (same images, same seed).
    Raises:
        ValueError: vectors of different length, which cannot have the same weights.
    """
    if first_replicates.shape != second_replicates.shape or first_replicates.ndim != 1:
        raise ValueError(
            f"replicates of shapes {first_replicates.shape} and {second_replicates.shape} are not paired; evaluate both runs with "
            "the same number of replicates"
        )
    delta = first_replicates - second_replicates
    delta = delta[~np.isnan(delta)]
    if not delta.size:
        return PairedDifference(Interval(first - second), float("nan"), 0)
    below, above = (1 + int((side <= 0).sum()) for side in (delta, -delta))
    p_value = min(1.0, 2 * min(below, above) / (len(delta) + 1))
    return PairedDifference(percentile_interval(first - second, delta), p_value, len(delta))
