"""The localisation floor of a run's data and model, and the words and marks it gets in a histogram of pixel errors."""

from __future__ import annotations

import numpy as np

from coordvlm.contracts import Contract, GroundTruth
from coordvlm.data.images import target_size
from coordvlm.metrics.floor import Floor, localisation_floor


def floor_of(truth: GroundTruth, contract: Contract) -> Floor:
    """``localisation_floor`` with model sizes by the contract's resize rule, whose errors it raises."""
    sizes = [target_size(contract.resize, round(w), round(h)) for w, h in truth.image_wh.tolist()]
    return localisation_floor(truth, contract, np.asarray(sizes, dtype=np.float64).reshape(-1, 2))


def floor_span(floor: Floor | None) -> tuple[float, float] | None:
    """Median and 95th percentile of the oracle's corner error in px, the shade of a histogram; None without boxes."""
    return None if floor is None or not len(floor.error_px) else (floor.error_quantile(0.5), floor.error_quantile(0.95))


def floor_words(floor: Floor) -> str:
    """What the shade and the dotted line mean, in one line."""
    return (
        f"Shaded: floor of the coordinates, corner error of true boxes written and read back (median {floor.error_quantile(0.5):.2f} px, "
        f"95 % below {floor.error_quantile(0.95):.2f} px, mean IoU {floor.iou.mean():.3f}). Half a step {floor.half_step:.2f} px; "
        f"dotted: half a merged patch, {floor.half_patch:.1f} px."
    )
