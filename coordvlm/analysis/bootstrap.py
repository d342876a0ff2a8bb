"""Comparing two runs on the same images: replicates are paired, so their difference has its own, narrower interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordvlm.contracts.evaluation import Evaluation, Interval
from coordvlm.metrics.arrays import FloatArray
from coordvlm.metrics.bootstrap import image_weights, percentile_interval
from coordvlm.utils.errors import DataError

__all__ = ["PairedDifference", "image_weights", "load_replicates", "paired_difference", "percentile_interval", "save_replicates"]


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


def save_replicates(path: Path, evaluation: Evaluation, *, image_ids: np.ndarray, seed: int) -> None:
    """Write bootstrap.npz: every replicate vector, and what makes it comparable (image ids, seed)."""
    vectors = {f"metric/{name}": vector for name, vector in evaluation.replicates.items()}
    with path.open("wb") as file:  # numpy appends .npz to names, never to files
        np.savez_compressed(file, image_ids=np.asarray(image_ids, dtype=np.int64), seed=np.int64(seed), **vectors)  # type: ignore[arg-type]


def load_replicates(first: Path, second: Path) -> Mapping[str, tuple[FloatArray, FloatArray]]:
    """name -> both runs' replicates, for the metrics that both have.

    Raises:
        DataError: other images or another seed: the replicates would not be paired and the interval of a difference wrong.
    """
    with np.load(first, allow_pickle=False) as a, np.load(second, allow_pickle=False) as b:
        for path, data in ((first, a), (second, b)):
            if "image_ids" not in data or "seed" not in data:
                raise DataError("must be a bootstrap file with image_ids and seed", where=path, value=sorted(data)[:5])
        if not np.array_equal(a["image_ids"], b["image_ids"]):
            raise DataError(f"must be evaluated on the same images as {first}", where=second, value=f"{len(b['image_ids'])} images")
        if int(a["seed"]) != int(b["seed"]):
            raise DataError(f"must use the same bootstrap seed as {first}", where=second, value=int(b["seed"]))
        shared = [key for key in a.files if key.startswith("metric/") and key in b.files]
        return {key.removeprefix("metric/"): (a[key], b[key]) for key in shared}
