"""Cross-entropy of "everything is marked", from the head at ``<done>``.

Shapes: A questions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def done_bce(logit_A: Tensor, done_A: Tensor) -> Tensor:
    """``-log p`` of what is true, p = sigmoid of the logit or one minus it.

    Args:
        logit_A: float[A]. done_A: float[A], 0 or 1.
    Returns:
        float32[A] (float64 for float64 logits), nats, >= 0, unreduced.
    """
    logit_A = upcast(logit_A)
    return functional.binary_cross_entropy_with_logits(logit_A, done_A.to(logit_A.dtype), reduction="none")


class DoneBCE(LossTerm):
    """Sums ``done_bce`` over the questions of ``ask_has_done``; logs ``done_acc``, the share answered right at p = 0.5."""

    needs: ClassVar[frozenset[str]] = frozenset({"done_logit"})
    items: ClassVar[str] = "done"

    def forward(self, slots: Slots) -> TermOutput:
        batch = slots.batch
        loss_A = torch.where(batch.ask_has_done, done_bce(slots.done_logit, batch.ask_done), 0.0)
        right_A = ((slots.done_logit > 0) == (batch.ask_done > 0.5)) & batch.ask_has_done
        return self.summed(loss_A, slots, {"done_acc": (right_A.sum().to(loss_A.dtype), slots.number_of("done"))})
