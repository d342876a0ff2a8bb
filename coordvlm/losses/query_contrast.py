"""What a query sees should tell its clip from the others: InfoNCE (arXiv:1807.03748) between neighbouring frames.

Shapes: B clips, T frames each, F = B * T frames, clip by clip, D width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, arms_of, positive
from coordvlm.utils.errors import ContractError


def query_contrast(features_BTD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``-log softmax_c(cos(f[b, t], f[c, t']) / temperature)`` at c = b, t' the next frame, of the last frame the one before.

    The positive is the neighbouring frame of the same clip; the negatives are that frame of the other clips. Frames of one clip are no
    negatives of each other: what is looked for may look alike in all of them. One clip alone has nothing to be told from: its loss is 0.

    Args:
        features_BTD: float[B, T, D], T at least 2.
    Returns:
        float32[B, T] (float64 for float64 features), nats, unreduced; and bool[B, T], no other clip's frame is as close as the right one.
    """
    unit = functional.normalize(upcast(features_BTD), dim=-1)
    partner = torch.cat((unit[:, 1:], unit[:, -2:-1]), 1)
    logits_TBC = torch.einsum("btd,ctd->tbc", unit, partner) / temperature
    right_TB = logits_TBC.diagonal(dim1=1, dim2=2)
    best = logits_TBC.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), float("-inf"))
    others_TB = torch.cat((best, best.new_full((*best.shape[:2], 1), float("-inf"))), -1).amax(-1)  # of one clip there are none
    return (logits_TBC.logsumexp(-1) - right_TB).T, (right_TB > others_TB).T


class QueryContrast(LossTerm):
    """Sums ``query_contrast`` over frames; logs ``contrast_acc``, the share of frames that are closest to their own clip's.

    It suits clips in which what the question asks for stays alike over frames, as a ball does; in frames that are drawn anew nothing does.
    It trains what a query picks, so it makes sense of the fine pass; the coarse pass asks the same of all clips.

    Args:
        temperature: above 0. arms: passes that it trains.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"frame_features"})
    items: ClassVar[str] = "frame"

    def __init__(self, *, temperature: float, arms: Sequence[str]) -> None:
        super().__init__()
        self.temperature = positive("query_contrast", "temperature", temperature)
        self.arms = arms_of("query_contrast", arms)

    def forward(self, slots: Slots) -> TermOutput:
        """Raises:
            ContractError: clips of a single frame, which have no neighbour.
        """
        features, clips = slots.frame_features, slots.batch.input_ids.shape[0]
        frames = len(features) // clips
        if frames < 2:
            raise ContractError(f"loss term query_contrast compares neighbouring frames: clips need at least 2 of them, got {frames}")
        loss, right = query_contrast(features.view(clips, frames, -1), self.temperature)
        acc = (right.sum().to(loss.dtype), slots.number_of("frame"))
        return self.summed(loss.flatten(), slots, {"contrast_acc": acc})
