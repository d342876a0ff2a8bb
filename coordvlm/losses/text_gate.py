"""How much probability a text token leaves to coordinates: ``gate`` the other way round.

Shapes: R supervised non-coordinate tokens.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for float x < 0, without cancellation at either end; value and gradient finite.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))", the R package Rmpfr.
    """
    near_zero = x > -math.log(2.0)
    inside = torch.full_like(x, -math.log(2.0))  # the branch not taken must not make a NaN of its zero gradient
    small = (-torch.expm1(torch.where(near_zero, x, inside))).log()
    large = torch.log1p(-torch.where(near_zero, inside, x).exp())
    return torch.where(near_zero, small, large)


def text_gate(lse_R: Tensor, coord_lse_R: Tensor) -> Tensor:
    """``-log(1 - exp(lse(s) - lse(z)))`` = -log of the probability mass that is *not* on coordinates.

    ``text_ce`` holds all of it already for the token that is right; this term adds weight to the border between words and
    coordinates. Both logsumexps are rounded, so a mass of text below one rounding of ``lse`` cannot be told from 0: the value
    stops there (12.5 nats at lse = 30 in float32) and has no gradient; that of ``text_ce`` is at its largest then.

    Args:
        lse_R: float[R], logsumexp of z over all live columns. coord_lse_R: float[R], over the coordinate columns only.
    Returns:
        float32[R] (float64 for float64 input), nats, >= 0, finite, unreduced.
    """
    lse_R, coord_lse_R = upcast(lse_R), upcast(coord_lse_R)
    resolution_R = torch.finfo(lse_R.dtype).eps * lse_R.detach().abs().clamp(min=1.0)
    return -log1mexp(torch.minimum(coord_lse_R - lse_R, -resolution_R))


class TextGate(LossTerm):
    """Sums ``text_gate`` over text tokens. The end of turn is left out: what it competes with is the start of another object."""

    needs: ClassVar[frozenset[str]] = frozenset({"text_lse", "text_coord_lse"})
    items: ClassVar[str] = "text"
    subset: ClassVar[str | None] = "not_end"

    def count(self, batch: Batch) -> int:
        return int((~batch.text_is_end).sum())

    def forward(self, slots: Slots) -> TermOutput:
        end_R = slots.batch.text_is_end
        # The end of turn counts as 0 rather than being picked out: an index of unknown length would wait for the device.
        loss_R = text_gate(slots.text_lse, slots.text_coord_lse).masked_fill(end_R, 0.0)
        return self.summed(loss_R, slots)
