"""Error of points that coordinate tokens write, for recipes that train them by bin.

Shapes: N supervised coordinate slots, in pairs: x and y of a question.
"""

from __future__ import annotations

from coordvlm.contracts.output import TermOutput
from coordvlm.losses.coord_error import CoordError
from coordvlm.losses.slots import Slots
from coordvlm.losses.three_stage import point_distance


class PointError(CoordError):
    """As ``CoordError``; logs ``point_px384``, too, by the name and in the unit of the terms on points. For counting alone: there, slots
    are x and y by turns."""

    def forward(self, slots: Slots) -> TermOutput:
        out = super().forward(slots)
        found_A2, true_A2 = slots.coords.detach().view(-1, 2), slots.slot_value.view(-1, 2)
        px_A = point_distance(found_A2, true_A2, side=384.0, norm="l2")
        return TermOutput(out.sum, {**out.logs, "point_px384": (px_A.sum(), len(px_A))}, out.per_item, out.item_sample)
