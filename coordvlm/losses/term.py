"""The shape of a loss term: unreduced maths that says what it reads and how many items it sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import TermOutput
from coordvlm.losses.slots import ITEMS, Slots


class LossTerm(nn.Module):
    """Base of every term. No weight, no schedule, no logging, no ``.item()``, no branch on the number of items.

    Class attributes:
        needs: names of the ``ModelOutput`` fields that ``forward`` reads.
        items: what is summed: ``text`` rows, coordinate ``slot`` s or ``box`` es.
        subset: a name when only some of those items count (then override ``count``); None when all do.
        decodes: whether ``forward`` reads ``slots.coords``, ``slots.boxes`` or ``slots.true_boxes``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    items: ClassVar[str]
    subset: ClassVar[str | None] = None
    decodes: ClassVar[bool] = False

    @property
    def group(self) -> str:
        """Default normaliser group: the term's own items. Two terms of one group count the same things."""
        return self.items if self.subset is None else f"{self.items}:{self.subset}"

    def count(self, batch: Batch) -> int:
        """How many items ``forward`` will sum, from labels alone (called before the forward, on the CPU)."""
        return int(ITEMS[self.items][0](batch))

    def forward(self, slots: Slots) -> TermOutput:
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def summed(self, loss: Tensor, slots: Slots, logs: Mapping[str, tuple[Tensor, int]] | None = None) -> TermOutput:
        """A TermOutput from the unreduced loss over *all* of the term's items, float[items].

        A term with a ``subset`` that drops rows builds its own ``TermOutput``.
        """
        return TermOutput(sum=loss.sum(), logs=logs or {}, per_item=loss.detach(), item_sample=slots.sample_of(self.items))
