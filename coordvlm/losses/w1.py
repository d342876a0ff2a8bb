"""Wasserstein-1 distance between the predicted and the target distribution over bins.

Shapes: N supervised coordinate slots, K coordinate bins.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.soft_ce import gaussian_target
from coordvlm.losses.term import LossTerm, at_least, one_of, positive


def w1(p_NK: Tensor, q_NK: Tensor) -> Tensor:
    """How far, in bins, probability must travel to turn p into q: ``sum_k abs(CDF_p(k) - CDF_q(k))``.

    A peak one bin off costs 1 and ten bins off costs 10. Against a delta at y it is ``sum_k p_k abs(k - y)``, so it is never
    below the error of the expectation.

    Args:
        p_NK, q_NK: float[N, K], each row adds up to 1.
    Returns:
        float32[N] (float64 for float64 p), unit bins, range [0, K - 1], unreduced.
    Source: Ramdas et al. 2015, arXiv:1509.02237; as a loss on ordered classes: Hou et al. 2016, arXiv:1611.05916.
    """
    p_NK = upcast(p_NK)
    apart_NK = (p_NK - q_NK.to(p_NK.dtype)).cumsum(-1)
    return apart_NK[:, :-1].abs().sum(-1)  # both CDFs end at 1


class W1(LossTerm):
    """Sums ``w1`` over slots, from softmax(s / T).

    Args:
        target: ``delta``, all mass on the target bin; or ``gaussian``, as in ``soft_ce``.
        sigma, radius: of the Gaussian, in bins; read by ``gaussian`` only.
        temperature: T > 0.
    Raises:
        ConfigError: a value out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "slot"

    def __init__(self, *, target: str, sigma: float, radius: int, temperature: float) -> None:
        super().__init__()
        self.target = one_of("w1", "target", target, ("delta", "gaussian"))
        self.sigma, self.temperature = positive("w1", "sigma", sigma), positive("w1", "temperature", temperature)
        self.radius = at_least("w1", "radius", radius, 0)

    def extra_repr(self) -> str:
        return f"target={self.target}, sigma={self.sigma}, radius={self.radius}, temperature={self.temperature}"

    def forward(self, slots: Slots) -> TermOutput:
        p_NK = (upcast(slots.slot_logits) / self.temperature).softmax(-1)
        if self.target == "delta":
            q_NK = torch.nn.functional.one_hot(slots.slot_bin, p_NK.shape[-1]).to(p_NK.dtype)
        else:
            q_NK = gaussian_target(slots.slot_bin, p_NK.shape[-1], sigma=self.sigma, radius=self.radius, dtype=p_NK.dtype)
        return self.summed(w1(p_NK, q_NK), slots)
