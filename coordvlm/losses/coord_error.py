"""Absolute error of decoded coordinates, for recipes that decode without training on it.

Shapes: N supervised coordinate slots.
"""

from __future__ import annotations

from typing import ClassVar

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.grid import Grid
from coordvlm.losses.l1 import l1
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


class CoordError(LossTerm):
    """Sums ``abs(c_hat - c)`` over slots; logs its mean as ``coordexp_l1`` (image sides) and ``coordexp_l1_bins``.

    Args:
        grid: gives the width of a bin.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slot_logits"})
    items: ClassVar[str] = "slot"
    decodes: ClassVar[bool] = True

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.scale = grid.scale

    def forward(self, slots: Slots) -> TermOutput:
        error_N = l1(slots.coords[:, None], slots.slot_value[:, None])
        total, count = error_N.detach().sum(), len(error_N)
        return self.summed(error_N, slots, {"coordexp_l1": (total, count), "coordexp_l1_bins": (total * self.scale, count)})
