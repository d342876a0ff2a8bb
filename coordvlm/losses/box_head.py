"""Losses of the box that a regression head reads off one state of the answer, beside the tokens that write it.

Shapes: Q samples with exactly one target box, normalised xyxy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from coordvlm.contracts.output import TermOutput
from coordvlm.coords import boxes
from coordvlm.losses.giou import giou_loss
from coordvlm.losses.l1 import l1
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, one_of

STATES = ("end", "start")


class _BoxHeadTerm(LossTerm):
    """Args:
        at: the state the head reads. ``end`` predicts the end of turn, so in training it has seen the *true* coordinates as tokens: the
            head learns to read them, and its error there says little about finding things. ``start`` predicts the first token of the
            answer and has seen image and phrase only.
    """

    items: ClassVar[str] = "query"

    def __init__(self, *, at: str) -> None:
        super().__init__()
        self.at = one_of("box_head", "at", at, STATES)
        self.needs = frozenset({f"box_head_{at}"})  # type: ignore[misc]

    def boxes(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """float[Q, 4] predicted and true."""
        found_Q4 = slots.box_head(self.at)
        return found_Q4, slots.batch.query_box.to(found_Q4.dtype)


class HeadL1(_BoxHeadTerm):
    """Sums the absolute error over the four coordinates, as ``l1``."""

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(l1(*self.boxes(slots)), slots)


class HeadGIoU(_BoxHeadTerm):
    """Sums ``1 - GIoU``; logs ``head_iou``, the mean IoU of the head's boxes (teacher-forced: see ``at``)."""

    def forward(self, slots: Slots) -> TermOutput:
        found_Q4, true_Q4 = self.boxes(slots)
        iou_Q = boxes.iou(found_Q4.detach(), true_Q4)
        return self.summed(giou_loss(found_Q4, true_Q4), slots, {"head_iou": (iou_Q.sum(), len(iou_Q))})
