"""Cross-entropy of coordinate tokens among the coordinate bins: which bin, given that it is a bin.

Shapes: N supervised coordinate slots, K coordinate bins.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def coord_ce_slice(logits_NK: Tensor, target_N: Tensor) -> Tensor:
    """``lse(s) - s_y``. With ``gate`` it adds up to ``coord_ce``, exactly.

    Args:
        logits_NK: float[N, K], s, scores over the coordinate bins only.
        target_N: long[N] in [0, K); range is checked on the CPU by the collator.
    Returns:
        float32[N] (float64 for float64 logits), nats, >= 0, unreduced.
    """
    s_NK = upcast(logits_NK)
    return s_NK.logsumexp(-1) - s_NK.gather(-1, target_N[:, None]).squeeze(-1)


class CoordCESlice(LossTerm):
    """Sums ``coord_ce_slice`` over slots."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "slot"

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(coord_ce_slice(slots.slot_logits, slots.slot_bin), slots)
