"""Distance IoU of decoded boxes.

Shapes: M boxes, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords import boxes
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def diou_loss(pred_M4: Tensor, true_M4: Tensor) -> Tensor:
    """``1 - DIoU(b_hat, b)``: pulls centres together also where boxes do not touch.

    Args:
        pred_M4: float[M, 4], decoded; any order of corners (they are ordered first), may be degenerate.
        true_M4: float[M, 4] with x1 <= x2, y1 <= y2.
    Returns:
        float32[M] (float64 for float64 boxes), range [0, 2], unreduced; never NaN for finite boxes.
    Source: Zheng et al. 2019, arXiv:1911.08287.
    """
    return 1.0 - boxes.diou(boxes.order_corners(pred_M4), true_M4)


class DIoU(LossTerm):
    """Sums ``diou_loss`` over boxes."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(diou_loss(slots.boxes, slots.true_boxes), slots)
