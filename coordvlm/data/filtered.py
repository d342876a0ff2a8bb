"""Images with too many objects leave training; validation, test and every truth stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import GroundTruth, Sample
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError


@runtime_checkable
class CountsObjects(Protocol):
    """A ``Split`` that knows its targets per image without making samples."""

    @property
    def most_objects(self) -> int:
        """No image has more targets; known for free."""

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: targets per image, by position."""


class FewerObjects:
    """A ``DataSource`` whose training split is limited; everything else is the source's.

    Args:
        drop: True leaves out images with more than ``max_objects`` targets and counts them as ``too_many_objects``; False keeps
            them, for a target that is cut there, and counts the objects beyond as ``truncated_objects``.
    Raises:
        DataError: no training image is left.
    """

    def __init__(self, source: DataSource, *, max_objects: int, drop: bool) -> None:
        self.source = source
        split = source.split("train")
        counts = split.num_objects() if isinstance(split, CountsObjects) else _counted(split)
        self._train: Split = split
        self._dropped = dict(source.dropped("train"))
        over = counts > max_objects
        if drop and over.all():
            raise DataError(
                f"no training image has at most {max_objects} objects (sequence.max_objects); with sequence.on_too_many=truncate "
                "their first ones are trained",
                where="train split", value=int(counts.min()),
            )
        if drop and over.any():
            self._train = SomeImages(split, np.flatnonzero(~over))
            self._dropped["too_many_objects"] = int(over.sum())
        elif over.any():
            self._dropped["truncated_objects"] = int((counts - max_objects)[over].sum())
        self.notes: tuple[str, ...] = tuple(getattr(source, "notes", ()))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def split(self, name: str) -> Split:
        return self._train if name == "train" else self.source.split(name)

    def truth(self, name: str) -> GroundTruth:
        return self.source.truth(name)

    def dropped(self, name: str) -> Mapping[str, int]:
        return self._dropped if name == "train" else self.source.dropped(name)

    def digests(self) -> Mapping[str, str]:
        return self.source.digests()


class SomeImages:
    """A ``Split`` of some positions of another one."""

    def __init__(self, split: Split, positions: NDArray[np.int64]) -> None:
        self.split, self._positions = split, positions

    @property
    def name(self) -> str:
        return self.split.name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.split.ids[self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def most_objects(self) -> int:
        return int(self.num_objects().max(initial=0))

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: targets per image; quick if the other split knows them."""
        counts = self.split.num_objects() if isinstance(self.split, CountsObjects) else _counted(self.split)
        return counts[self._positions]

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        return self.split.sample(int(self._positions[index]), epoch)


def limit_objects(source: DataSource, *, max_objects: int, on_too_many: str) -> DataSource:
    """``source`` with ``sequence.on_too_many`` applied to its training split; itself when no image has too many objects."""
    if on_too_many not in ("drop", "truncate"):
        raise ConfigError(f"sequence.on_too_many must be drop or truncate, got {on_too_many!r}")
    split = source.split("train")
    if isinstance(split, CountsObjects) and split.most_objects <= max_objects:
        return source
    return FewerObjects(source, max_objects=max_objects, drop=on_too_many == "drop")


def _counted(split: Split) -> NDArray[np.int64]:
    return np.asarray([len(split.sample(i, 0).objects) for i in range(len(split))], dtype=np.int64)
