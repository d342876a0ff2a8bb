"""Splits of several data sets: drawn by weight for training, one after the other for evaluation.

Shapes: S samples of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import Sample
from coordvlm.data.filtered import CountsObjects
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import Split
from coordvlm.utils.errors import DataError

#: Ids of the members are its own plus a multiple of this, so that they stay unique and can be read back.
ID_STRIDE = 10**12
#: Epochs whose draws are kept: workers begin the next one while the last batches of one are made.
_KEPT_EPOCHS = 2


@dataclass(frozen=True)
class Part:
    """A split of one member. weight: relative share of an epoch. offset: added to its ids."""

    member: str
    split: Split
    weight: float
    offset: int

    def __post_init__(self) -> None:
        ids = self.split.ids
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < ID_STRIDE:
            at = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise DataError(f"ids of a member of a mix must be in [0, {ID_STRIDE})", where=f"{self.member} ({self.split.name})", value=at)

    def sample(self, index: int, epoch: int) -> Sample:
        """With an id that is unique in the mix. The box of a phrase has its sample's id."""
        found = self.split.sample(index, epoch)
        sample_id = int(found.id) + self.offset
        objects = found.objects if found.phrase is None else tuple(replace(o, annotation_id=sample_id) for o in found.objects)
        return replace(found, id=sample_id, objects=objects, meta={**found.meta, "member": self.member, "member_id": found.id})


class MixedSplit:
    """A training split drawn from several parts. Which sample stands at a position is a function of (seed, epoch, position).

    The positions of an epoch are shared out by weight. Each part is gone through in one random order after another, and the next epoch
    goes on where this one ended: after any number of epochs two samples of a part differ by one draw at most.

    Args:
        parts: with weights that are not all 0. num_samples: positions in an epoch.
    """

    name = "train"

    def __init__(self, parts: Sequence[Part], *, num_samples: int, seed: int) -> None:
        self.parts, self._seed = tuple(parts), seed
        self.shares = shares([p.weight for p in parts], num_samples)
        self._starts = np.cumsum([0, *self.shares])
        self._draws: dict[int, list[NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64[len]: those of epoch 0. A sample that is drawn twice in an epoch stands there twice."""
        drawn = zip(self.parts, self._drawn(0), strict=True)
        return np.concatenate([part.split.ids[at] + part.offset for part, at in drawn])

    @property
    def most_objects(self) -> int:
        """Of any sample that may be drawn, in whichever epoch."""
        return max((p.split.most_objects if isinstance(p.split, CountsObjects) else 1 for p in self.parts), default=0)

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: targets per sample of epoch 0; one for parts that cannot tell, which have one thing per phrase."""
        ones = np.ones(len(self), dtype=np.int64)
        counted = [p.split.num_objects() if isinstance(p.split, CountsObjects) else None for p in self.parts]
        for start, at, counts in zip(self._starts.tolist(), self._drawn(0), counted, strict=False):
            if counts is not None:
                ones[start : start + len(at)] = counts[at]
        return ones

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"train has {len(self)} samples, asked for {index}")
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[which].sample(int(self._drawn(epoch)[which][index - self._starts[which]]), epoch)

    def _drawn(self, epoch: int) -> list[NDArray[np.int64]]:
        """Positions in each part that this epoch uses."""
        if epoch not in self._draws:
            while len(self._draws) >= _KEPT_EPOCHS:
                self._draws.pop(next(iter(self._draws)))
            self._draws[epoch] = [
                _turns(self._seed, part.member, len(part.split), epoch * share, (epoch + 1) * share)
                for part, share in zip(self.parts, self.shares, strict=True)
            ]
        return self._draws[epoch]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """``total`` shared out in proportion to ``weights``: rounded down, then one more for the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) * total / sum(weights)
    found = np.floor(exact).astype(np.int64)
    rest = np.argsort(found - exact, kind="stable")[: total - int(found.sum())]
    found[rest] += 1
    return [int(n) for n in found]


def _turns(seed: int, member: str, size: int, start: int, stop: int) -> NDArray[np.int64]:
    """Elements [start, stop) of the endless sequence of permutations of ``size`` things."""
    if stop == start:
        return np.zeros(0, dtype=np.int64)
    rounds = range(start // size, -(-stop // size))
    drawn = np.concatenate([keyed_generator(seed, "mix", member, turn).permutation(size) for turn in rounds])
    return drawn[start - rounds.start * size : stop - rounds.start * size]


class JoinedSplit:
    """All samples of several parts, one part after the other."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name, self.parts = name, tuple(parts)
        self._starts = np.cumsum([0, *(len(p.split) for p in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.concatenate([p.split.ids + p.offset for p in self.parts])

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[which].sample(index - int(self._starts[which]), epoch)
