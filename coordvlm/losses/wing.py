"""Wing loss of a point: steep for small errors, so that they still count beside large ones.

Shapes: A questions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coordvlm.coords.readout import upcast


def wing(error: Tensor, *, width: float, epsilon: float) -> Tensor:
    """``w ln(1 + abs(e) / epsilon)`` for ``abs(e) < w``, else ``abs(e) - C``, where C makes the two meet.

    The slope is ``w / (epsilon + abs(e))`` inside and 1 outside. At an error of 0 it jumps in sign like that of ``l1``, but ``w / epsilon``
    times as far.

    Args:
        error: float[...]. width: w > 0. epsilon: > 0. All in one unit.
    Returns:
        float32[...] (float64 for float64 errors), in that unit, >= 0, unreduced.
    Source: Feng et al. 2018, arXiv:1711.06753.
    """
    size = upcast(error).abs()
    gap = width - width * math.log1p(width / epsilon)
    return torch.where(size < width, width * torch.log1p(size / epsilon), size - gap)
