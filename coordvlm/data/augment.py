"""Training samples changed at random, as a wrapper of any source. Validation, test and every truth stay as they are.

What happens to a sample depends on (seed, epoch, sample id) alone: not on workers, ranks, order, or which other transforms are on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import GroundTruth, Sample
from coordvlm.data import words
from coordvlm.data.augment_points import PointAffine
from coordvlm.data.images import open_image
from coordvlm.data.paraphrase import Paraphrases
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import DataSource, Split
from coordvlm.data.transforms import BoxJitter, Colour, Crop, Flip, Open
from coordvlm.utils.errors import ConfigError

Transform = Callable[[Sample, np.random.Generator, Open], Sample]


@runtime_checkable
class ListsPhrases(Protocol):
    """A ``Split`` that knows its phrases without making samples."""

    def phrases(self) -> Sequence[str | None]:
        """The phrase of each sample, by position; None in detection."""


@dataclass(frozen=True)
class Augment:
    """Which transforms are on, in this order: paraphrase, flip, crop, affine, colour, jitter. None leaves one out.

    Args:
        seed: of every random choice.
        max_source_pixels: limit on images that are opened here, as in ``ImageReader``.
        affine: of points; runs from before there was one have none.
    """

    seed: int
    max_source_pixels: int
    paraphrase: Paraphrases | None
    flip: Flip | None
    crop: Crop | None
    colour: Colour | None
    jitter: BoxJitter | None
    affine: PointAffine | None = None

    @property
    def transforms(self) -> dict[str, Transform]:
        """Those that are on, by name, in order."""
        every: dict[str, Transform | None] = {
            "paraphrase": self.paraphrase, "flip": self.flip, "crop": self.crop, "affine": self.affine, "colour": self.colour,
            "jitter": self.jitter,
        }
        return {name: transform for name, transform in every.items() if transform is not None}

    def wrap(self, source: DataSource) -> DataSource:
        """``source`` with its training split augmented; itself when nothing is on.

        Raises:
            ConfigError: flips, and a class whose name says left or right: names of classes are not rewritten.
        """
        if not self.transforms:
            return source
        sided = [name for name in source.class_names if words.names_side(name)]
        if self.flip is not None and self.flip.share and sided:
            raise ConfigError(f"augment.flip would make the class {sided[0]!r} wrong: only phrases are rewritten; set augment.flip=null")
        return Augmented(source, self)

    def open(self, sample: Sample) -> Image.Image:
        """The displayed frame of a sample as RGB. It carries no metadata: a rotation that has been decided on must not be again.

        Raises:
            DataError: see ``open_image``.
        """
        where = sample.meta.get("where", f"image {sample.id}")
        named = f"{sample.image} ({where})" if isinstance(sample.image, Path) else where
        frame = open_image(sample.image, declared=(sample.width, sample.height), max_pixels=self.max_source_pixels, where=named)
        return Image.fromarray(np.asarray(frame))

    def __call__(self, sample: Sample, epoch: int) -> Sample:
        """The sample as it is trained in an epoch. Its id stays."""
        for name, transform in self.transforms.items():
            sample = transform(sample, keyed_generator(self.seed, "augment", name, epoch, sample.id), self.open)
        return sample

    def left_alone(self, phrases: Sequence[str | None]) -> Mapping[str, int]:
        """How many phrases keep their image as it is, by transform and reason; and paraphrases that no phrase asks for."""
        blank = Image.new("RGB", (1, 1))
        given = [p for p in phrases if p is not None]
        found: Counter[str] = Counter()
        for phrase in given:
            sample = Sample(0, blank, 1, 1, (), phrase=phrase)
            for name, rule in (("flip", self.flip), ("crop", self.crop)):
                if rule is not None and rule.share and (fault := rule.fault(sample)):
                    found[f"{name}: {fault}"] += 1
        if self.paraphrase is not None and (unknown := self.paraphrase.unknown(given)):
            found["paraphrase: unknown_phrase"] = unknown
        return dict(sorted(found.items()))


class Augmented:
    """A ``DataSource`` whose training samples are changed at random; everything else is the source's.

    ``notes`` says what is on and, where the source lists its phrases, how many of them keep their image as it is, and why.
    """

    def __init__(self, source: DataSource, augment: Augment) -> None:
        self.source, self.augment = source, augment
        train = source.split("train")
        note = f"training samples are augmented: {', '.join(augment.transforms)}"
        if isinstance(train, ListsPhrases):
            phrases = train.phrases()
            counts = augment.left_alone(phrases)
            note += "".join(f"; {name} {n} of {len(phrases)}" for name, n in counts.items())
        self.notes: tuple[str, ...] = (*getattr(source, "notes", ()), note)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def split(self, name: str) -> Split:
        split = self.source.split(name)
        return AugmentedSplit(split, self.augment) if name == "train" else split

    def truth(self, name: str) -> GroundTruth:
        return self.source.truth(name)

    def dropped(self, name: str) -> Mapping[str, int]:
        return self.source.dropped(name)

    def digests(self) -> Mapping[str, str]:
        return self.source.digests()


@dataclass(frozen=True)
class AugmentedSplit:
    """A training ``Split`` with its samples changed."""

    split: Split
    augment: Augment

    @property
    def name(self) -> str:
        return self.split.name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.split.ids

    def __len__(self) -> int:
        return len(self.split)

    def sample(self, index: int, epoch: int) -> Sample:
        plain = self.split.sample(index, epoch)
        return replace(self.augment(plain, epoch), id=plain.id)
