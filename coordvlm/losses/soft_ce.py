"""Cross-entropy against a Gaussian around the target bin: a neighbouring bin is nearly right.

Shapes: N supervised coordinate slots, K coordinate bins.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, at_least, positive


def gaussian_target(target_N: Tensor, num_bins: int, *, sigma: float, radius: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``q_k`` proportional to ``exp(-(k - y)^2 / 2 sigma^2)`` for ``abs(k - y) <= radius``, 0 beyond; each row adds up to 1.

    At the edges of the image the part outside [0, K) is missing and the rest renormalised, so the mean moves inwards there.

    Args:
        target_N: long[N] in [0, K). sigma: bins, > 0. radius: bins, >= 0.
    Returns:
        ``dtype``[N, K], no gradient.
    """
    gap_NK = (torch.arange(num_bins, device=target_N.device) - target_N[:, None]).to(dtype)
    q_NK = (-0.5 * (gap_NK / sigma).square()).exp().masked_fill(gap_NK.abs() > radius, 0.0)
    return q_NK / q_NK.sum(-1, keepdim=True)


def soft_ce(logits_NK: Tensor, q_NK: Tensor, *, temperature: float) -> Tensor:
    """``-sum_k q_k log softmax(s / T)_k``. Smallest, at the entropy of q, when softmax(s / T) = q.

    Args:
        logits_NK: float[N, K], s, scores over the coordinate bins only.
        q_NK: float[N, K], the target distribution.
        temperature: T > 0.
    Returns:
        float32[N] (float64 for float64 logits), nats, unreduced.
    Source: label smoothing (Szegedy et al. 2015, arXiv:1512.00567) that follows distance, as for ages in Gao et al. 2016,
        arXiv:1611.01731.
    """
    log_p_NK = (upcast(logits_NK) / temperature).log_softmax(-1)
    return -(q_NK.to(log_p_NK.dtype) * log_p_NK).sum(-1)


class SoftCE(LossTerm):
    """Sums ``soft_ce`` against a Gaussian over slots.

    Args:
        sigma: standard deviation in bins, > 0; towards 0 the term becomes ``coord_ce_slice``.
        radius: bins each side that the Gaussian reaches, >= 0.
        temperature: T > 0; T < 1 flattens the distribution that is deployed at T = 1.
    Raises:
        ConfigError: a value out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "slot"

    def __init__(self, *, sigma: float, radius: int, temperature: float) -> None:
        super().__init__()
        self.sigma, self.temperature = positive("soft_ce", "sigma", sigma), positive("soft_ce", "temperature", temperature)
        self.radius = at_least("soft_ce", "radius", radius, 0)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, radius={self.radius}, temperature={self.temperature}"

    def forward(self, slots: Slots) -> TermOutput:
        s_NK = upcast(slots.slot_logits)
        q_NK = gaussian_target(slots.slot_bin, s_NK.shape[-1], sigma=self.sigma, radius=self.radius, dtype=s_NK.dtype)
        return self.summed(soft_ce(s_NK, q_NK, temperature=self.temperature), slots)
