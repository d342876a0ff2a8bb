"""A penalty on queries that look everywhere: entropy of attention above a threshold.

Shapes: F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, arms_of
from coordvlm.utils.errors import ConfigError


def entropy_hinge(entropy_F: Tensor, threshold: float) -> Tensor:
    """``max(0, H - threshold)``: no gradient once a query is sharp enough.

    Args:
        entropy_F: float[F], over ln N, so in [0, 1]: 1 is uniform, 0 a single patch. threshold: in the same units.
    Returns:
        float32[F] (float64 for float64 entropies), unreduced.
    """
    return (upcast(entropy_F) - threshold).clamp_min(0.0)


class EntropyHinge(LossTerm):
    """Sums ``entropy_hinge`` over frames; logs ``entropy``, the mean of H.

    It makes sense of the fine pass. The coarse pass's one static query has to see whole frames, and making it sharp makes the coarse pass
    worse, which is an advantage of the fine pass that looking has not earned. The model computes attention maps for this, in every pass.

    Args:
        threshold: in [0, 1). arms: passes that it trains.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"frame_entropy"})
    items: ClassVar[str] = "frame"

    def __init__(self, *, threshold: float, arms: Sequence[str]) -> None:
        super().__init__()
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ConfigError(f"loss term entropy_hinge: threshold must lie in [0, 1), got {threshold!r}")
        self.threshold, self.arms = float(threshold), arms_of("entropy_hinge", arms)

    def forward(self, slots: Slots) -> TermOutput:
        found = slots.frame_entropy
        entropy = (upcast(found.detach()).sum(), slots.number_of("frame"))
        return self.summed(entropy_hinge(found, self.threshold), slots, {"entropy": entropy})
