"""Soft and hard maxima over ragged groups of a flat vector, without a loop and without asking the device for a number.

Shapes: V values, S segments. A segment's values need not stand together.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _highest(values_V: Tensor, segment_V: Tensor, num: int) -> Tensor:
    low = torch.full((num,), -torch.inf, dtype=values_V.dtype, device=values_V.device)
    return low.scatter_reduce(0, segment_V, values_V.detach(), "amax")


def logsumexp(values_V: Tensor, segment_V: Tensor, num: int, *, empty: float) -> Tensor:
    """float[S], ``log sum exp`` of the values of each segment, with gradient.

    Args:
        values_V: float[V]; -inf takes a value out. segment_V: long[V] in [0, S). num: S.
        empty: of a segment without a value, or with none but -inf.
    """
    high_S = _highest(values_V, segment_V, num)
    shift_S = torch.where(high_S.isfinite(), high_S, 0.0)
    sum_S = torch.zeros_like(shift_S).index_add(0, segment_V, (values_V - shift_S[segment_V]).exp())
    none_S = high_S.isneginf()
    return torch.where(none_S, empty, torch.where(none_S, 1.0, sum_S).log() + shift_S)


def argmax(values_V: Tensor, segment_V: Tensor, num: int) -> Tensor:
    """long[S]: where in V the highest value of each segment stands, the first of equals; V for a segment without values."""
    high_S = _highest(values_V, segment_V, num)
    at_V = torch.arange(len(values_V), device=values_V.device)
    candidate_V = torch.where(values_V >= high_S[segment_V], at_V, len(values_V))
    return torch.full((num,), len(values_V), device=values_V.device).scatter_reduce(0, segment_V, candidate_V, "amin")
