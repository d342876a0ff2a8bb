"""Controls of grounding: the same samples with each other's phrases, or with blank images. A model that reads both must do worse.

The truth is not touched: what is measured is how often a model is right that cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Sample
from coordvlm.data.images import open_image
from coordvlm.data.phrase_checks import normalise
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import Split
from coordvlm.utils.errors import DataError


def choose(ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` of these ids, spread evenly, ascending."""
    ordered = np.sort(ids)
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, min(most, len(ordered))).astype(np.int64))]


def derangement(phrases: Sequence[str], seed: int) -> NDArray[np.int64]:
    """int64[n]: whose phrase each sample gets: a permutation in which nobody keeps its own, whatever the case and the spacing.

    Samples are laid out by phrase, in random order, and turned by the size of the largest group of equal phrases: then each gets one
    from another group. Where more than half of the phrases are equal that cannot be, and some of these keep theirs.
    """
    names = [normalise(p) for p in phrases]
    if not names:
        return np.zeros(0, dtype=np.int64)
    generator = keyed_generator(seed, "phrase_shuffle")
    distinct = sorted(set(names))  # not np.unique, which takes NULs off the ends of texts
    order = {distinct[at]: i for i, at in enumerate(generator.permutation(len(distinct)).tolist())}
    group = np.asarray([order[name] for name in names])
    rows = generator.permutation(len(names))
    laid = rows[np.argsort(group[rows], kind="stable")]
    given = np.empty(len(names), dtype=np.int64)
    given[laid] = np.roll(laid, -int(np.bincount(group).max()))
    return given


class SelectedSplit:
    """A ``Split`` of chosen samples in a chosen order, as they are: what the controls are compared on.

    Args:
        ids: sample ids; unknown ones are a ``DataError``.
    """

    def __init__(self, split: Split, ids: NDArray[np.int64]) -> None:
        self._split, self._ids = split, np.asarray(ids, dtype=np.int64)
        position = {int(i): n for n, i in enumerate(split.ids)}
        if missing := [int(i) for i in self._ids if int(i) not in position]:
            raise DataError("the samples of a control must be in the split", where=f"split {split.name}", value=missing[:5])
        self._positions = [position[int(i)] for i in self._ids]

    @property
    def name(self) -> str:
        return self._split.name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        return self._split.sample(self._positions[index], epoch)


class ShuffledPhrases(SelectedSplit):
    """Chosen samples, each with the phrase of another one.

    Args:
        phrases: of these samples, in their order. seed: of the permutation.
    """

    def __init__(self, split: Split, ids: NDArray[np.int64], phrases: Sequence[str], seed: int) -> None:
        super().__init__(split, ids)
        if len(phrases) != len(self):
            raise ValueError(f"{len(self)} samples need as many phrases, got {len(phrases)}")
        self._phrases = tuple(phrases[i] for i in derangement(phrases, seed).tolist())

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases that are given, by position."""
        return self._phrases

    def sample(self, index: int, epoch: int) -> Sample:
        sample = super().sample(index, epoch)
        return replace(sample, phrase=self._phrases[index])


class BlankImages(SelectedSplit):
    """Chosen samples, each with an image of its own size and mean colour in place of the picture.

    Args:
        max_pixels: a larger source image is refused, as for the real ones.
    """

    def __init__(self, split: Split, ids: NDArray[np.int64], max_pixels: int) -> None:
        super().__init__(split, ids)
        self._max_pixels = max_pixels

    def sample(self, index: int, epoch: int) -> Sample:
        sample = super().sample(index, epoch)
        frame = open_image(
            sample.image, declared=(sample.width, sample.height), max_pixels=self._max_pixels, where=f"sample {sample.id}"
        )
        red, green, blue = np.asarray(frame).reshape(-1, 3).mean(0).round().astype(int).tolist()
        return replace(sample, image=Image.new("RGB", frame.size, (red, green, blue)))
