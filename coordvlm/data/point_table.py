"""Points to count as arrays, exactly as written, with every broken one marked instead of repaired.

Shapes: S samples (an image and a category each), P points, I images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import CLIP_PX, NOISE_PX, RULES, UNREADABLE, Fault

#: What ``checks.RULES`` say of boxes, said of points.
POINT_RULES: Mapping[Fault, str] = {
    Fault.NOT_FINITE: "a point must be finite, not NaN or infinite",
    Fault.OUT_OF_FRAME: f"a point must lie inside the image (an excess of up to {CLIP_PX:g} px is clipped)",
}


@dataclass(frozen=True, kw_only=True)
class PointTable:
    """What a reader of a format hands to ``point_source.PointSplit``: one row per sample, and one per point.

    Args:
        path: what messages about the whole split name.
        ids: int64[S], unique. categories: S. image: int64[S], position of the image. places: S, where each sample stands.
        file_names: I, relative to the image folder. image_ids: int64[I], unique. image_wh: float64[I, 2], the displayed frame.
        sample: int64[P] ascending, position of the sample. xy: float64[P, 2] in source px; NaN where it is not 2 numbers.
        faults: uint8[P], see ``checks.Fault``.
        values: what the file says, by point, where the arrays cannot tell.
        counts: what the reader left out or changed, by reason. notes: what should be known about the file as a whole.
        rules: what a fault breaks in this format's words, where they differ.
    """

    path: Path
    ids: NDArray[np.int64]
    categories: Sequence[str]
    image: NDArray[np.int64]
    places: Sequence[str]
    file_names: Sequence[str]
    image_ids: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    sample: NDArray[np.int64]
    xy: NDArray[np.float64]
    faults: NDArray[np.uint8]
    values: Mapping[int, object] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rules: Mapping[Fault, str] = field(default_factory=lambda: POINT_RULES)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """bool[P]: nobody knows where these are, so how many there are to count is not known either."""
        return np.isin(self.faults, list(UNREADABLE))

    def sample_place(self, at: int) -> str:
        """Where a sample stands, for messages."""
        return self.places[at]

    def place(self, at: int) -> str:
        """Where a point stands: ``train.jsonl:7: points[3] (a.jpg, 640 x 480 px)``."""
        sample = int(self.sample[at])
        number = at - int(np.searchsorted(self.sample, sample))
        return f"{self.sample_place(sample)}: points[{number}] ({self.size_text(sample)})"

    def size_text(self, sample: int) -> str:
        """``a.jpg, 640 x 480 px``."""
        image = int(self.image[sample])
        width, height = self.image_wh[image].astype(int).tolist()
        return f"{self.file_names[image]}, {width} x {height} px"

    def rule(self, at: int) -> str:
        """The rule that a broken point breaks."""
        fault = Fault(int(self.faults[at]))
        return self.rules.get(fault, RULES[fault])

    def value(self, at: int) -> object:
        """The value that breaks it."""
        return self.values.get(at, self.xy[at].tolist())


def point_faults(xy_P2: NDArray[np.float64], wh_P2: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8[P]: NOT_FINITE, OUT_OF_FRAME or NONE.

    Args:
        xy_P2: float64[P, 2] in source px. wh_P2: float64[P, 2], (width, height) of each point's image.
    """
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(xy_P2).all(axis=1))
    xy = np.where(finite[:, None], xy_P2, 0.0)
    outside = (np.maximum(-xy, xy - wh_P2) > CLIP_PX).any(axis=1)
    return np.where(finite, np.where(outside, Fault.OUT_OF_FRAME, Fault.NONE), Fault.NOT_FINITE).astype(np.uint8)


def clip_points(xy_P2: NDArray[np.float64], wh_P2: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[P, 2] inside [0, W] x [0, H]."""
    return np.clip(xy_P2, 0.0, wh_P2)


def is_moved(xy_P2: NDArray[np.float64], wh_P2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool[P]: clipping moves a point by more than rounding noise."""
    moved: NDArray[np.bool_] = np.asarray((np.abs(clip_points(xy_P2, wh_P2) - xy_P2) > NOISE_PX).any(axis=1))
    return moved


def repeated(sample_P: NDArray[np.int64], xy_P2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool[P]: the same coordinates as an earlier point of the sample; NaN is equal to nothing."""
    order = np.lexsort((np.arange(len(sample_P)), xy_P2[:, 1], xy_P2[:, 0], sample_P))
    equal = (xy_P2[order[1:]] == xy_P2[order[:-1]]).all(axis=1) & (sample_P[order[1:]] == sample_P[order[:-1]])
    found = np.zeros(len(sample_P), dtype=np.bool_)
    found[order[1:]] = equal
    return found
