"""The rules that a training target must keep, as vectorised functions. Sources add what only they can check.

Shapes: A annotations. A fault is a small integer per annotation; 0 is none. The first broken rule counts.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

#: Largest excess over the image's edge, in px, that is clipped (and counted) instead of refused.
CLIP_PX = 1.0
#: Excess that is rounding (of x + w, or of shares written with six decimals): clipped, not counted.
NOISE_PX = 0.01


class Fault(IntEnum):
    """Why an annotation cannot be a training target. The lower-case name is the key of every count."""

    NONE = 0
    DUPLICATE_ANNOTATION_ID = 1
    UNKNOWN_IMAGE = 2
    UNKNOWN_CATEGORY = 3
    BAD_BBOX = 4
    NOT_FINITE = 5
    INVERTED = 6
    ZERO_AREA = 7
    OUT_OF_FRAME = 8
    EMPTY_DESCRIPTION = 9
    BAD_AREA = 10
    BAD_OBJECT = 11
    BAD_PHRASE = 12
    EMPTY_PHRASE = 13
    NO_BOX = 14
    UNKNOWN_ANNOTATION = 15
    DUPLICATE_SENTENCE_ID = 16
    BAD_POINT = 17
    DUPLICATE_POINT = 18

    @property
    def key(self) -> str:
        return self.name.lower()


RULES: dict[Fault, str] = {
    Fault.DUPLICATE_ANNOTATION_ID: "an annotation id must be unique in its file",
    Fault.UNKNOWN_IMAGE: "an annotation's image_id must be one of the file's images",
    Fault.UNKNOWN_CATEGORY: "an annotation's category_id must be one of the file's categories",
    Fault.BAD_BBOX: "bbox must be 4 numbers: x, y, width, height",
    Fault.NOT_FINITE: "bbox must be finite, not NaN or infinite",
    Fault.INVERTED: "bbox must not be inverted: width and height must be positive",
    Fault.ZERO_AREA: "bbox must not have zero area",
    Fault.OUT_OF_FRAME: f"bbox must lie inside the image (an excess of up to {CLIP_PX:g} px is clipped)",
    Fault.EMPTY_DESCRIPTION: "a description must not be empty",
    Fault.BAD_AREA: "area must be a finite number",
    Fault.BAD_OBJECT: "an object must have a description and a box",
    Fault.BAD_PHRASE: "a phrase must be text",
    Fault.EMPTY_PHRASE: "a phrase must not be blank",
    Fault.NO_BOX: "a phrase must have a box (data.source.negatives=allow makes it one that names nothing in the image)",
    Fault.UNKNOWN_ANNOTATION: "a referring expression's ann_id must be one of the instances file's annotations, on the same image",
    Fault.DUPLICATE_SENTENCE_ID: "a sentence id must be unique in its file",
    Fault.BAD_POINT: "a point must be 2 numbers: x, y",
    Fault.DUPLICATE_POINT: "a point must be unique in its image and category: one of two could never be counted",
}
#: Faults after which the truth of an image (or phrase) is unknown, so that evaluation cannot read the file either.
UNREADABLE = frozenset({
    Fault.DUPLICATE_ANNOTATION_ID, Fault.UNKNOWN_IMAGE, Fault.UNKNOWN_CATEGORY, Fault.BAD_BBOX, Fault.NOT_FINITE, Fault.BAD_AREA,
    Fault.BAD_OBJECT, Fault.BAD_PHRASE, Fault.EMPTY_PHRASE, Fault.NO_BOX, Fault.UNKNOWN_ANNOTATION, Fault.DUPLICATE_SENTENCE_ID,
    Fault.BAD_POINT,
})


def box_faults(xyxy_A4: NDArray[np.float64], wh_A2: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8[A]: NOT_FINITE, INVERTED, ZERO_AREA, OUT_OF_FRAME or NONE.

    Args:
        xyxy_A4: float64[A, 4] in source px.
        wh_A2: float64[A, 2], (width, height) of each box's image.
    """
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(xyxy_A4).all(axis=1))
    box = np.where(finite[:, None], xyxy_A4, 0.0)
    sides = box[:, 2:] - box[:, :2]
    excess = np.maximum(-box.min(1, initial=0.0), (box[:, 2:] - wh_A2).max(1, initial=0.0))
    inside = clip_boxes(box, wh_A2)
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    faults = np.where((excess > CLIP_PX) | ~kept, Fault.OUT_OF_FRAME, Fault.NONE)
    faults = np.where((sides == 0).any(1), Fault.ZERO_AREA, faults)
    faults = np.where((sides < 0).any(1), Fault.INVERTED, faults)
    return np.where(finite, faults, Fault.NOT_FINITE).astype(np.uint8)


def clip_boxes(xyxy_A4: NDArray[np.float64], wh_A2: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[A, 4] inside [0, W] x [0, H]."""
    return np.clip(xyxy_A4, 0.0, np.tile(wh_A2, 2))


def is_clipped(xyxy_A4: NDArray[np.float64], wh_A2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool[A]: clipping moves an edge by more than rounding noise."""
    moved: NDArray[np.bool_] = np.asarray((np.abs(clip_boxes(xyxy_A4, wh_A2) - xyxy_A4) > NOISE_PX).any(axis=1))
    return moved


def first_of_each(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[A]: True where a value occurs for the first time."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def count_faults(faults: NDArray[np.uint8]) -> dict[str, int]:
    """Reason -> count, without NONE and without zeros."""
    codes, counts = np.unique(faults[faults > 0], return_counts=True)
    return {Fault(int(code)).key: int(count) for code, count in zip(codes, counts, strict=True)}
