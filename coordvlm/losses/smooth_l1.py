"""Absolute error of decoded boxes, quadratic where it is small.

Shapes: M boxes, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, positive


def smooth_l1(pred_M4: Tensor, true_M4: Tensor, *, beta: float) -> Tensor:
    """Sum over the four coordinates of ``e^2 / 2 beta`` for ``e = abs(b_hat - b) < beta``, else ``e - beta / 2``.

    Unlike ``l1``, the pull fades within ``beta`` of the target. On raw values, like ``l1``: corners are not ordered first.

    Args:
        pred_M4: float[M, 4], decoded. true_M4: float[M, 4] in [0, 1], not quantised. beta: > 0, in image sides.
    Returns:
        float32[M] (float64 for float64 boxes), in image sides, range [0, 4) for pred in [0, 1], unreduced.
    Source: Girshick 2015, arXiv:1504.08083, with the border at beta instead of 1.
    """
    return functional.smooth_l1_loss(upcast(pred_M4), upcast(true_M4), reduction="none", beta=beta).sum(-1)


class SmoothL1(LossTerm):
    """Sums ``smooth_l1`` over boxes.

    Args:
        beta: border between square and straight line, in image sides, > 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("smooth_l1", "beta", beta)

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(smooth_l1(slots.boxes, slots.true_boxes, beta=self.beta), slots)
