"""Distances of the point that the heads at ``<x>`` and ``<y>`` give from the next object.

Points are in [-1, 1] across the image, so 1 is half a side, and 192 px of 384. Every term is a loss per question of ``ask_has_xy``,
0 for the others, and logs ``point_px384``: the mean Euclidean distance in pixels of an image of 384 x 384.

Shapes: A questions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.one_knot import one_knot
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, one_of, positive
from coordvlm.losses.three_stage import NORMS, UNITS, ThreeStage, point_distance
from coordvlm.losses.wing import wing

#: Pixels of 384 that 1 on the [-1, 1] scale makes up.
_HALF_SIDE = UNITS["px384"]


class PointTerm(LossTerm):
    """Base of the terms on points: ``distance`` is all they differ in."""

    needs: ClassVar[frozenset[str]] = frozenset({"point_xy"})
    items: ClassVar[str] = "point"
    decodes: ClassVar[bool] = False

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        """float[A], unreduced, of all questions. Points are at least float32, in [-1, 1] across the image; predicted ones not bounded."""
        raise NotImplementedError(f"{type(self).__name__}.distance")

    def forward(self, slots: Slots) -> TermOutput:
        batch, found_A2 = slots.batch, upcast(slots.point_xy)
        true_A2 = batch.ask_xy.to(found_A2.dtype)
        loss_A = torch.where(batch.ask_has_xy, self.distance(found_A2, true_A2, slots), 0.0)
        px_A = torch.where(batch.ask_has_xy, point_distance(found_A2.detach(), true_A2, side=_HALF_SIDE, norm="l2"), 0.0)
        return self.summed(loss_A, slots, {"point_px384": (px_A.sum(), slots.number_of("point"))})


class PointL1(PointTerm):
    """Sums ``abs(dx) + abs(dy)``."""

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return point_distance(found_A2, true_A2, side=1.0, norm="l1")


class PointL2(PointTerm):
    """Sums ``dx^2 + dy^2``: the squared distance, as "L2" is meant where losses are compared with it (the mean squared error)."""

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return (found_A2 - true_A2).square().sum(-1)


class PointSmoothL1(PointTerm):
    """Sums over x and y ``e^2 / 2 beta`` for ``e < beta``, else ``e - beta / 2``, on the [-1, 1] scale.

    Args:
        beta: border between square and straight line, px of 384, > 0.
    Source: Girshick 2015, arXiv:1504.08083, with the border at beta instead of 1.
    """

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("point_smooth_l1", "beta", beta)

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return functional.smooth_l1_loss(found_A2, true_A2, reduction="none", beta=self.beta / _HALF_SIDE).sum(-1)


class PointWing(PointTerm):
    """Sums ``wing`` over x and y; of errors in px of 384, and divided by 192, so that far away it is ``l1`` less a constant.

    Args:
        width, epsilon: px of 384, > 0.
    """

    def __init__(self, *, width: float, epsilon: float) -> None:
        super().__init__()
        self.width, self.epsilon = positive("point_wing", "width", width), positive("point_wing", "epsilon", epsilon)

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return wing((found_A2 - true_A2) * _HALF_SIDE, width=self.width, epsilon=self.epsilon).sum(-1) / _HALF_SIDE


class PointOneKnot(PointTerm):
    """Sums ``one_knot`` of the distance on the [-1, 1] scale.

    Args:
        knot: > 0. a, m: slopes, > 0. norm: ``l1``, ``abs(dx) + abs(dy)``, or ``l2``.
    """

    def __init__(self, *, knot: float, a: float, m: float, norm: str) -> None:
        super().__init__()
        self.knot, self.a, self.m = (positive("point_one_knot", n, v) for n, v in (("knot", knot), ("a", a), ("m", m)))
        self.norm = one_of("point_one_knot", "norm", norm, NORMS)

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return one_knot(point_distance(found_A2, true_A2, side=1.0, norm=self.norm), knot=self.knot, a=self.a, m=self.m)


class PointThreeStage(PointTerm, ThreeStage):
    """Sums ``three_stage`` of the distance; settings, units and refusals are those of ``ThreeStage``, which is on corners of boxes."""

    who: ClassVar[str] = "point_three_stage"

    def distance(self, found_A2: Tensor, true_A2: Tensor, slots: Slots) -> Tensor:
        return self.curve((found_A2 + 1) / 2, (true_A2 + 1) / 2, slots.batch, slots.batch.ask_sample)
