"""What a data set must offer. One source per file; ``CoordDataModule`` and evaluation know only this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import GroundTruth, Sample

#: The splits every source names. A source without its own test images says what ``test`` stands for.
SPLITS = ("train", "val", "test")


@runtime_checkable
class Split(Protocol):
    """The images of one split, by position. Picklable: worker processes get a copy."""

    @property
    def name(self) -> str:
        """The split the images come from (``val`` when it stands in for a missing ``test``)."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64[len]: sample id by position, known without opening an image."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample at a position in [0, len). Deterministic in (source, split, index, epoch); objects are valid targets.

        Raises:
            DataError: the sample cannot be told from the files (its image may still prove unreadable when opened).
        """


@runtime_checkable
class DataSource(Protocol):
    """A data set. Names other than those of ``SPLITS`` are a ``ConfigError``."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, in the order of their ids."""

    def split(self, name: str) -> Split: ...

    def truth(self, name: str) -> GroundTruth:
        """The untouched truth of a split: crowds and zero-area boxes included."""

    def dropped(self, name: str) -> Mapping[str, int]:
        """How many annotations were left out of (or clipped in) the targets of a split, by reason; no entry is zero."""

    def digests(self) -> Mapping[str, str]:
        """Split -> 12 hex digits that change with its annotations; for the run's record."""
