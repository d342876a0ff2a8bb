"""Cross-entropy of supervised tokens that are not coordinates: descriptions, markers, end of turn.

Shapes: R supervised non-coordinate tokens.
"""

from __future__ import annotations

from typing import ClassVar

from coordvlm.contracts.output import TermOutput
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm


class TextCE(LossTerm):
    """``lse(z) - z_y`` over all live columns, in nats. The backbone computes it in vocabulary chunks (``text_nll``)."""

    needs: ClassVar[frozenset[str]] = frozenset({"text_nll"})
    items: ClassVar[str] = "text"
    token_ce: ClassVar[bool] = True

    def forward(self, slots: Slots) -> TermOutput:
        return self.summed(upcast(slots.text_nll), slots)
