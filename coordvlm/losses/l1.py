"""Absolute error of decoded boxes.

Shapes: M boxes, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def l1(pred_M4: Tensor, true_M4: Tensor) -> Tensor:
    """Sum of ``abs(b_hat - b)`` over the four coordinates.

    On raw values: crossed corners are not ordered first, so that each slot is pulled to its own target.

    Args:
        pred_M4: float[M, 4], decoded. true_M4: float[M, 4] in [0, 1], not quantised.
    Returns:
        float32[M] (float64 for float64 boxes), in units of the image side, range [0, 4] for pred in [0, 1], unreduced.
    Source: the L1 part of DETR's box loss, Carion et al. 2020, arXiv:2005.12872 (there in cxcywh).
    """
    return (upcast(pred_M4) - upcast(true_M4)).abs().sum(-1)


class L1(LossTerm):
    """Sums ``l1`` over boxes."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(l1(slots.boxes, slots.true_boxes), slots)
