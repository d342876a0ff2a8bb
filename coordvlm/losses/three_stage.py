"""Three-stage distance: steep close to the target, then gentle, then a straight line.

Shapes: P points, M boxes, B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, one_of, positive
from coordvlm.utils.errors import ConfigError

FORMS = ("continuous", "document")
NORMS = ("l1", "l2")
#: Unit -> how many of it make up 1 on the [-1, 1] scale, on which the curve is defined. Half a side of 384 px is 192 px.
UNITS = {"norm": 1.0, "px384": 192.0, "px": 192.0}
_DOCUMENT_OFFSET = 0.01


def three_stage(d: Tensor, *, t1: float, t2: float, a: float, b: float, m: float, form: str) -> Tensor:
    """The curve alone, of any distances.

    | | d < t1 | t1 <= d < t2 | t2 <= d |
    |---|---|---|---|
    | ``continuous`` | ``a d^2`` | ``b d^2 + c1`` | ``m d + c2`` |
    | ``document`` | ``a d^2`` | ``b d^2`` | ``m d + 0.01`` |

    with ``c1 = (a - b) t1^2`` and ``c2 = b t2^2 + c1 - m t2``. Both have the same slope everywhere and hence train alike. With
    the usual 0.05, 0.1, 10, 1, 0.2 the ``document`` form falls by 0.0225 at t1 and rises by 0.02 at t2, so its *value* is
    smaller for an error of 9.7 px (of 384) than of 9.0 px.

    Args:
        d: float[...] >= 0. t1, t2: in the unit of d, 0 < t1 < t2. a, b, m: > 0.
    Returns:
        float32[...] (float64 for float64 d).
    """
    d = upcast(d)
    c1 = (a - b) * t1 * t1
    c2 = b * t2 * t2 + c1 - m * t2
    if one_of("three_stage", "form", form, FORMS) == "document":
        c1, c2 = 0.0, _DOCUMENT_OFFSET
    return torch.where(d < t1, a * d * d, torch.where(d < t2, b * d * d + c1, m * d + c2))


def point_distance(pred_P2: Tensor, true_P2: Tensor, *, side: float | Tensor, norm: str) -> Tensor:
    """Distance of points in [0, 1] after scaling by ``side``; the gradient at distance 0 is 0.

    Args:
        pred_P2, true_P2: float[..., 2] (x, y). side: what 1 is worth per axis, broadcastable to them: 2 for the [-1, 1] scale,
            (width, height) for pixels. norm: ``l1`` = ``abs(dx) + abs(dy)``, or ``l2``.
    Returns:
        float32[...] (float64 for float64 points).
    """
    apart = (upcast(pred_P2) - upcast(true_P2)) * side
    if one_of("three_stage", "norm", norm, NORMS) == "l2":
        length: Tensor = torch.linalg.vector_norm(apart, dim=-1)
        return length
    return apart.abs().sum(-1)


class ThreeStage(LossTerm):
    """Sums over boxes the mean of ``three_stage`` over the two decoded corners; logs ``corner_px384``, their mean distance.

    Corners are (x1, y1) and (x2, y2) as decoded: crossed ones are not ordered, so each is pulled to its own target.

    ``unit`` says in what the distance is measured: ``norm``, both sides of the image span [-1, 1]; ``px384``, both sides span
    384 px, the same distance under other numbers; ``px``, pixels of the source image, so 10 px weigh the same in a small and in
    a large image, and x and y alike in an oblong one. ``a``, ``b``, ``m`` always belong to the [-1, 1] scale: pixels are
    divided by 192 first. So the value does not depend on the unit for an image of 384 x 384, and one weight suits all.

    Args:
        unit, norm, form: see above, ``point_distance`` and ``three_stage``.
        t1, t2: borders of the stages, 0 < t1 < t2, in ``unit``: one number, or a mapping with a number per unit.
        a, b, m: see ``three_stage``, > 0.
    Raises:
        ConfigError: an unknown choice, a threshold that is missing for the unit, out of order or out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "box"
    decodes: ClassVar[bool] = True
    who: ClassVar[str] = "three_stage"

    def __init__(
        self,
        *,
        unit: str,
        norm: str,
        form: str,
        t1: float | Mapping[str, float],
        t2: float | Mapping[str, float],
        a: float,
        b: float,
        m: float,
    ) -> None:
        super().__init__()
        who = self.who
        self.unit, self.norm = one_of(who, "unit", unit, UNITS), one_of(who, "norm", norm, NORMS)
        self.form = one_of(who, "form", form, FORMS)
        self.t1, self.t2 = self._threshold("t1", t1), self._threshold("t2", t2)
        if self.t1 >= self.t2:
            raise ConfigError(f"loss term {who}: t1 must lie below t2, got {self.t1:g} and {self.t2:g} (unit {unit})")
        self.a, self.b, self.m = (positive(who, name, value) for name, value in (("a", a), ("b", b), ("m", m)))

    def _threshold(self, name: str, value: float | Mapping[str, float]) -> float:
        if isinstance(value, Mapping):
            if self.unit not in value:
                raise ConfigError(f"loss term {self.who}: {name} has no value for unit {self.unit}, only for {', '.join(value)}")
            value = value[self.unit]
        return positive(self.who, name, value)

    def extra_repr(self) -> str:
        return f"{self.form}, {self.norm}, t1={self.t1:g} {self.unit}, t2={self.t2:g} {self.unit}, a={self.a:g}, b={self.b:g}, m={self.m:g}"

    def curve(self, pred_P2: Tensor, true_P2: Tensor, batch: Batch, sample_P: Tensor) -> Tensor:
        """float[P, ...], the loss of points.

        Args:
            pred_P2, true_P2: float[P, ..., 2] in [0, 1] of the image. sample_P: long[P], the sample of the batch each belongs to.
        """
        side: float | Tensor = 2.0 if self.unit == "norm" else 384.0
        if self.unit == "px":
            sizes_B2 = torch.tensor(batch.sizes, dtype=pred_P2.dtype).to(pred_P2.device, non_blocking=True)
            side = sizes_B2[sample_P].view(-1, *[1] * (pred_P2.ndim - 2), 2)
        one = UNITS[self.unit]
        d = point_distance(pred_P2, true_P2, side=side, norm=self.norm) / one
        return three_stage(d, t1=self.t1 / one, t2=self.t2 / one, a=self.a, b=self.b, m=self.m, form=self.form)

    def forward(self, slots: Slots) -> TermOutput:
        pred_M22, true_M22 = slots.boxes.view(-1, 2, 2), slots.true_boxes.view(-1, 2, 2)
        curve_M2 = self.curve(pred_M22, true_M22, slots.batch, slots.batch.box_sample)
        px384_M2 = point_distance(pred_M22.detach(), true_M22, side=384.0, norm="l2")
        return self.summed(curve_M2.mean(-1), slots, {"corner_px384": (px384_M2.sum(), px384_M2.numel())})
