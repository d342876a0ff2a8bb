"""Generalised IoU of decoded boxes.

Shapes: M boxes, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords import boxes
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def giou_loss(pred_M4: Tensor, true_M4: Tensor) -> Tensor:
    """``1 - GIoU(b_hat, b)``.

    The corners of the prediction are ordered first: early in training they cross, and a box of negative extent has no
    area. The truth is left as it is; data checks have refused crossed boxes.

    Args:
        pred_M4: float[M, 4], decoded; any order of corners, may be degenerate.
        true_M4: float[M, 4] with x1 <= x2, y1 <= y2.
    Returns:
        float32[M] (float64 for float64 boxes), range [0, 2], unreduced; never NaN for finite boxes.
    Source: Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    return 1.0 - boxes.giou(boxes.order_corners(pred_M4), true_M4)


class GIoU(LossTerm):
    """Sums ``giou_loss`` over boxes; logs ``iou``, the mean IoU of the decoded boxes."""

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        pred_M4, true_M4 = slots.boxes, slots.true_boxes
        iou_M = boxes.iou(boxes.order_corners(pred_M4.detach()), true_M4)
        return self.summed(giou_loss(pred_M4, true_M4), slots, {"iou": (iou_M.sum(), len(iou_M))})
