"""Relative error of the sides of decoded boxes: 2 px matter in a box of 10 px, not in one of 300.

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


def log_wh(pred_M4: Tensor, true_M4: Tensor, *, beta: float, floor: float) -> Tensor:
    """Smooth L1 distance of ``ln max(w, floor)`` and of ``ln max(h, floor)`` between prediction and truth, summed.

    A side below ``floor``, in particular of crossed corners, has no gradient here: other terms must open the box first. Just
    above it the gradient is 1 / floor per image side, so weights are small.

    Args:
        pred_M4: float[M, 4], decoded, corners as they are. true_M4: float[M, 4].
        beta: border between square and straight line, in ln units, > 0. floor: in image sides, > 0.
    Returns:
        float32[M] (float64 for float64 boxes), ln units, >= 0, unreduced; finite for finite boxes.
    """
    pred_M2, true_M2 = ((upcast(b)[:, 2:] - upcast(b)[:, :2]).clamp(min=floor).log() for b in (pred_M4, true_M4))
    return functional.smooth_l1_loss(pred_M2, true_M2, reduction="none", beta=beta).sum(-1)


class LogWH(LossTerm):
    """Sums ``log_wh`` over boxes.

    Args:
        beta: see ``log_wh``, > 0. floor: smallest side told apart, in image sides, > 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True

    def __init__(self, *, beta: float, floor: float) -> None:
        super().__init__()
        self.beta, self.floor = positive("log_wh", "beta", beta), positive("log_wh", "floor", floor)

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(log_wh(slots.boxes, slots.true_boxes, beta=self.beta, floor=self.floor), slots)
