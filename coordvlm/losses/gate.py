"""How much probability a coordinate slot leaves to tokens that are no coordinates.

Shapes: N supervised coordinate slots, K coordinate bins.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def gate(logits_NK: Tensor, lse_N: Tensor) -> Tensor:
    """``lse(z) - lse(s)`` = -log of the probability mass on coordinates.

    A loss on the shape of softmax(s) says nothing about the other tokens; without this one, text can win the argmax inside
    a box and greedy decoding breaks there.

    Args:
        logits_NK: float[N, K], s, the coordinate columns of z.
        lse_N: float[N], logsumexp of z over all live columns.
    Returns:
        float32[N] (float64 for float64 logits), nats, >= 0 up to rounding, unreduced. 0: all mass on coordinates.
    """
    return upcast(lse_N) - upcast(logits_NK).logsumexp(-1)


class Gate(LossTerm):
    """Sums ``gate`` over slots; logs ``coord_mass``, the mean probability mass on coordinates."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits", "slot_lse"})
    items: ClassVar[str] = "slot"

    def forward(self, slots: Slots) -> TermOutput:
        loss_N = gate(slots.slot_logits, slots.slot_lse)
        mass_N = (-loss_N.detach()).exp()
        return self.summed(loss_N, slots, {"coord_mass": (mass_N.sum(), len(mass_N))})
