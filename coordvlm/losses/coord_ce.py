"""Cross-entropy of coordinate tokens over the full vocabulary (phase 1, groups A and C).

Shapes: N supervised coordinate slots, K coordinate bins.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def coord_ce(logits_NK: Tensor, lse_N: Tensor, target_N: Tensor) -> Tensor:
    """``lse(z) - z_y``, the negative log-likelihood of the target bin among all tokens.

    Equals the cross-entropy over the K bins plus ``gate``: which bin, and that it is a bin at all.

    Args:
        logits_NK: float[N, K], the coordinate columns of z in bin order.
        lse_N: float[N], logsumexp of z over all live columns, so ``lse_N >= logsumexp(logits_NK)``.
        target_N: long[N] in [0, K); range is checked on the CPU by the collator.
    Returns:
        float32[N] (float64 for float64 logits), nats, >= 0, unreduced.
    """
    target_logit_N = upcast(logits_NK).gather(-1, target_N[:, None]).squeeze(-1)
    return upcast(lse_N) - target_logit_N


class CoordCE(LossTerm):
    """Sums ``coord_ce`` over slots."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits", "slot_lse"})
    items: ClassVar[str] = "slot"
    token_ce: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(coord_ce(slots.slot_logits, slots.slot_lse, slots.slot_bin), slots)
