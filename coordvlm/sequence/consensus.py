"""One answer out of several to the same phrase: a vote between a box and ``none``, then the box that the others agree with most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coordvlm.contracts import Alternative, Prediction
from coordvlm.coords.boxes import pairwise_iou

#: Sums of IoU nearer than this are a tie.
_ROUNDING = 1e-9


def is_answered(prediction: Prediction) -> bool:
    """Whether an answer gives a box, or says that there is none."""
    return bool(prediction.kept) or "says_none" in prediction.flags


def consensus(answers: Sequence[Prediction]) -> int:
    """Index of the answer to keep.

    Answers that give neither a box nor ``none`` have no vote; if all are such, the first one is kept. ``none`` wins with more votes than
    boxes have; at a tie the side that spoke first wins. Among boxes (the first kept record of each answer) the one with the highest sum
    of IoU to the others wins, the earlier one at a tie.
    """
    boxes = [i for i, a in enumerate(answers) if a.kept]
    nones = [i for i, a in enumerate(answers) if not a.kept and is_answered(a)]
    if not boxes and not nones:
        return 0
    if (len(nones), -min(nones, default=0)) > (len(boxes), -min(boxes, default=0)):
        return nones[0]
    xyxy = torch.tensor([answers[i].kept[0].box_xyxy_px for i in boxes], dtype=torch.float64)
    agreement = pairwise_iou(xyxy, xyxy).fill_diagonal_(0).sum(1)
    nearly_best = float(agreement.max()) - _ROUNDING
    return next(i for i, total in zip(boxes, agreement.tolist(), strict=True) if total >= nearly_best)


def alternative(prediction: Prediction) -> Alternative:
    """What is kept of an answer that stands beside others."""
    if not prediction.kept:
        return Alternative(None, 0.0, "says_none" in prediction.flags)
    first = prediction.kept[0]
    return Alternative(first.box_xyxy_px, first.score, False)
