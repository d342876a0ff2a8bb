"""Easy samples first: an order of training that opens up from the easiest share of the data to all of it.

Competence c(s) = start + (1 - start) s / ramp, linear in the optimiser step s; at step s only the easiest c(s) of all samples are drawn.
Source: the linear competence of Platanios et al. 2019, arXiv:1903.09848.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import PhraseTruth
from coordvlm.data import words
from coordvlm.data.augment import ListsPhrases
from coordvlm.data.filtered import CountsObjects
from coordvlm.data.loader import EpochBatches
from coordvlm.data.mixed import MixedSplit
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import DataSource
from coordvlm.utils.errors import ConfigError

#: Scores that come from the words of a phrase.
_OF_PHRASE: Mapping[str, Callable[[str], int]] = {
    "length": words.count_words, "attributes": words.count_attributes, "relations": words.count_relations,
}
MEASURES = (*_OF_PHRASE, "objects")


@runtime_checkable
class RatesDifficulty(Protocol):
    """A ``Split`` with a measure of its own."""

    def difficulty(self, by: str) -> NDArray[np.float64] | None:
        """float64[len]: higher is harder; None when it has nothing better to say than the words and the number of targets."""


@dataclass(frozen=True)
class Curriculum:
    """``data.curriculum``.

    Args:
        by: what makes a sample hard: ``length`` of the phrase in words, ``attributes`` or ``relations`` it names, or ``objects``: how many
            there are in the image, as far as the source can tell. Equal samples are in random order.
        share: of all optimiser steps, until every sample is drawn.
        start: easiest share of the samples that the first step draws from.
    """

    by: str
    share: float
    start: float

    def __post_init__(self) -> None:
        if self.by not in MEASURES:
            raise ConfigError(f"data.curriculum.by must be one of {', '.join(MEASURES)}, got {self.by!r}")
        for name, low in (("share", 0.0), ("start", None)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1 or (low is None and value == 0):
                raise ConfigError(f"data.curriculum.{name} must be in {'[0, 1]' if low is not None else '(0, 1]'}, got {value!r}")

    @classmethod
    def parse(cls, values: Mapping[str, object] | None) -> Curriculum | None:
        """From the configuration; None: samples come in any order."""
        if values is None:
            return None
        names = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ConfigError(f"data.curriculum must be null or have exactly {', '.join(names)}, got {values!r}")
        return cls(**values)  # type: ignore[arg-type]

    def scores(self, source: DataSource) -> NDArray[np.float64]:
        """float64[len(train)]: difficulty by position.

        Raises:
            ConfigError: the source has no phrases, cannot count its objects, or has other samples in every epoch.
        """
        split = source.split("train")
        if isinstance(split, MixedSplit):
            raise ConfigError("data.curriculum cannot order a mix of data: which sample stands at a position changes with the epoch")
        if isinstance(split, RatesDifficulty) and (rated := split.difficulty(self.by)) is not None:
            return np.asarray(rated, dtype=np.float64)
        if self.by in _OF_PHRASE:
            measure = _OF_PHRASE[self.by]
            return np.asarray([0 if p is None else measure(p) for p in phrases_of(source, self.by)], dtype=np.float64)
        if not isinstance(split, CountsObjects):
            raise ConfigError("data.curriculum.by=objects needs a source that counts the objects of its images; this one does not")
        return split.num_objects().astype(np.float64)

    def batches(self, source: DataSource, *, total_steps: int, accumulate: int, limit: int | None, **order: int) -> CurriculumBatches:
        """The sampler. ``order``: ``batch_size, seed, rank, world_size`` of ``EpochBatches``."""
        ramp = math.ceil(self.share * total_steps)
        return CurriculumBatches(self.scores(source), start=self.start, ramp=ramp, accumulate=accumulate, limit=limit, **order)


def phrases_of(source: DataSource, by: str) -> Sequence[str | None]:
    """Training phrases by position, from the split or else from the truth."""
    split = source.split("train")
    if isinstance(split, ListsPhrases):
        return split.phrases()
    truth = source.truth("train")
    if not isinstance(truth, PhraseTruth):
        raise ConfigError(f"data.curriculum.by={by} rates phrases, and this data has none; use by=objects, or curriculum=null")
    by_id = dict(zip(truth.image_ids.tolist(), truth.phrases, strict=True))
    return [by_id[i] for i in split.ids.tolist()]


class CurriculumBatches(EpochBatches):
    """``EpochBatches`` that draws from the easiest samples only while competence is below 1.

    An epoch then is as many draws as there are samples. Each draw is uniform over the samples open at that step that have not been drawn in
    this round; a round ends when all open ones have been drawn. So easy samples recur while hard ones are still closed, and no sample is
    drawn twice before every open one was drawn. Epochs that begin after the ramp are those of ``EpochBatches``, sample for sample.

    The order is a function of the epoch and of what is given here: stopping and resuming does not change it, and neither do ranks.

    Args:
        scores: float[num_samples], higher is harder.
        start: c(0), in (0, 1]. ramp: steps until competence is 1.
        accumulate: batches per optimiser step. limit: batches per epoch at most.
    """

    def __init__(
        self, scores: NDArray[np.float64], *, start: float, ramp: int, accumulate: int, limit: int | None, batch_size: int, seed: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:
        super().__init__(len(scores), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        if not np.isfinite(scores).all():
            raise ConfigError(f"difficulties must be finite, got {scores[~np.isfinite(scores)][:3].tolist()}")
        self.start_share, self.ramp, self.accumulate = start, ramp, accumulate
        self._batches = len(self) if limit is None else min(len(self), limit)
        tie_break = keyed_generator(seed, "curriculum", "ties").random(len(scores))
        self._by_difficulty = np.lexsort((tie_break, scores))

    def meaning(self, epoch: int) -> dict[str, int]:
        """The base's, and while the ramp lasts what the draws depend on."""
        if self.competence(epoch, 0) >= 1.0:
            return super().meaning(epoch)
        digest = hashlib.sha256(self._by_difficulty.astype("<i8").tobytes() + repr(self.start_share).encode()).digest()
        return {
            **super().meaning(epoch), "curriculum": int.from_bytes(digest[:4], "little"), "curriculum_steps": self.ramp,
            "batches_per_epoch": self._batches, "accumulate": self.accumulate,
        }

    def competence(self, epoch: int, batch: int) -> float:
        """c at the optimiser step that a batch of an epoch belongs to."""
        step = epoch * -(-self._batches // self.accumulate) + batch // self.accumulate
        return 1.0 if step >= self.ramp else self.start_share + (1 - self.start_share) * step / self.ramp

    def num_open(self, epoch: int, batch: int) -> int:
        """How many samples can be drawn; at least a whole batch of all ranks, if there are as many."""
        together = min(self.num_samples, self.batch_size * self.world_size)
        return max(together, math.ceil(self.competence(epoch, batch) * self.num_samples - 1e-9))

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """int64: positions drawn in an epoch by all ranks together, in order."""
        if self.competence(epoch, 0) >= 1.0:
            return super().permutation(epoch)
        together = self.batch_size * self.world_size
        draws = min(self.num_samples, self._batches * together)
        chance = keyed_generator(self.seed, "curriculum", epoch).random(draws)
        by_difficulty = self._by_difficulty.tolist()
        pool: list[int] = []
        drawn: list[int] = []
        opened = 0
        for at, u in enumerate(chance.tolist()):
            if at % together == 0 and (now := self.num_open(epoch, at // together)) > opened:
                pool += by_difficulty[opened:now]
                opened = now
            if not pool:
                pool = by_difficulty[:opened]
            index = int(u * len(pool))
            pool[index], pool[-1] = pool[-1], pool[index]
            drawn.append(pool.pop())
        return np.asarray(drawn, dtype=np.int64)
