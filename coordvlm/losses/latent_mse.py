"""Mean square of what is drawn of a frame against what its frozen encoder gives.

Shapes: F frames, C channels, h x w places.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def latent_mse(drawn_F: Tensor, true_F: Tensor) -> Tensor:
    """Mean over channels and places.

    Args:
        drawn_F, true_F: float[F, C, h, w].
    Returns:
        float32[F] (float64 for float64 latents), squared units of the encoder, unreduced.
    """
    drawn_F = upcast(drawn_F)
    return (drawn_F - true_F.to(drawn_F.dtype)).square().flatten(1).mean(1)


class LatentMSE(LossTerm):
    """Sums ``latent_mse`` over frames. The state at z_t draws frame t itself."""

    needs: ClassVar[frozenset[str]] = frozenset({"latent", "latent_true"})
    items: ClassVar[str] = "latent"

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(latent_mse(slots.latent, slots.latent_true), slots)
