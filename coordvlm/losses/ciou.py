"""Complete IoU of decoded boxes.

Shapes: M boxes, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords import boxes
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def ciou_loss(pred_M4: Tensor, true_M4: Tensor) -> Tensor:
    """``1 - CIoU(b_hat, b)``: overlap, distance of the centres and aspect ratio, whose weight alpha gets no gradient.

    Args:
        pred_M4: float[M, 4], decoded; any order of corners (they are ordered first), may be degenerate.
        true_M4: float[M, 4] with x1 <= x2, y1 <= y2.
    Returns:
        float32[M] (float64 for float64 boxes), range [0, 3], unreduced; never NaN for finite boxes.
    Source: Zheng et al. 2019, arXiv:1911.08287.
    """
    return 1.0 - boxes.ciou(boxes.order_corners(pred_M4), true_M4)


class CIoU(LossTerm):
    """Sums ``ciou_loss`` over boxes; logs ``iou``, the mean IoU of the decoded boxes."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        pred_M4, true_M4 = slots.boxes, slots.true_boxes
        iou_M = boxes.iou(boxes.order_corners(pred_M4.detach()), true_M4)
        return self.summed(ciou_loss(pred_M4, true_M4), slots, {"iou": (iou_M.sum(), len(iou_M))})
