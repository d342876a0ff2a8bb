"""The shape of a loss term: unreduced maths that says what it reads and how many items it sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import TermOutput
from coordvlm.losses.slots import ITEMS, Slots
from coordvlm.utils.errors import ConfigError

#: Fields of ``ModelOutput`` that come from coordinate tokens or their columns.
COORDINATE_FIELDS = frozenset({"slot_logits", "slot_lse", "text_coord_lse"})


class LossTerm(nn.Module):
    """Base of every term. No weight, no schedule, no logging, no ``.item()``, no branch on the number of items.

    Class attributes:
        needs: names of the ``ModelOutput`` fields that ``forward`` reads.
        items: what is summed: ``text`` rows, coordinate ``slot`` s, ``box`` es, or ``query`` s: samples with exactly one box, whatever
            the format. Of questions: the next ``point``, whether all is ``done``, every ``image_token``, or those with an unmarked
            object, ``hit``. Of clips: every ``frame``, or those with a ``latent``.
        subset: a name when only some of those items count (then override ``count``); None when all do.
        decodes: whether ``forward`` reads ``slots.coords``, ``slots.boxes`` or ``slots.true_boxes``.
        token_ce: whether it is the cross-entropy of tokens over the whole vocabulary and nothing else. Such terms are one loss
            whatever the tokens stand for, so it survives where coordinates are ordinary text (``WeightedSum.without_slots``).
        arms: of videos, passes that it trains, ``coarse`` and ``fine``; None: all that train. It is logged for all.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    items: ClassVar[str]
    subset: ClassVar[str | None] = None
    decodes: ClassVar[bool] = False
    token_ce: ClassVar[bool] = False
    arms: tuple[str, ...] | None = None

    @property
    def reads_coordinates(self) -> bool:
        """Whether it reads coordinate tokens, which formats in digits do not have."""
        return self.items in ("slot", "box") or self.decodes or bool(self.needs & COORDINATE_FIELDS)

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


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def positive(term: str, name: str, value: float) -> float:
    """``value`` if it is a finite number above 0, else a ``ConfigError`` that names the term's setting."""
    if not _number(value) or value <= 0:
        raise ConfigError(f"loss term {term}: {name} must be a finite number above 0, got {value!r}")
    return float(value)


def at_least(term: str, name: str, value: int, low: int) -> int:
    """``value`` if it is an integer >= ``low``, else a ``ConfigError``."""
    if not _number(value) or not isinstance(value, int) or value < low:
        raise ConfigError(f"loss term {term}: {name} must be an integer of at least {low}, got {value!r}")
    return value


def one_of(term: str, name: str, value: str, choices: Iterable[str]) -> str:
    """``value`` if it is one of ``choices``, else a ``ConfigError``."""
    if value not in choices:
        raise ConfigError(f"loss term {term}: {name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def arms_of(term: str, given: Sequence[str]) -> tuple[str, ...]:
    """``LossTerm.arms`` from a setting, else a ``ConfigError``."""
    names = tuple(given)
    if isinstance(given, str) or not names or len(set(names)) < len(names) or set(names) - {"coarse", "fine"}:
        raise ConfigError(f"loss term {term}: arms must be a list of coarse, fine or both, got {given!r}")
    return names
