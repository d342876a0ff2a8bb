"""The earlier forms of the three-stage distance: a curve with one knot."""

from __future__ import annotations

import torch
from torch import Tensor

from coordvlm.coords.readout import upcast


def one_knot(d: Tensor, *, knot: float, a: float, m: float) -> Tensor:
    """``a d^2`` for d < knot, else the straight line ``m d + c``, where c makes the two meet.

    The source names the knots, 0.3 and then 0.1, and nothing else: that the curve is a square and a line, that it has no jump, and which
    slopes it has, is our reading. The settings shipped take ``a`` and ``m`` of the three-stage distance.

    Args:
        d: float[...] >= 0. knot: in the unit of d. a, m: > 0.
    Returns:
        float32[...] (float64 for float64 d).
    """
    d = upcast(d)
    return torch.where(d < knot, a * d * d, m * d + (a * knot * knot - m * knot))
