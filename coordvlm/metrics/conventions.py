"""Wrong readings of a box, as maps of the *true* box to what would be predicted under them.

Shapes: n phrases. Boxes are float64[n, 4], xyxy as fractions of the source image; sizes float64[n, 2] in px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from coordvlm.metrics.arrays import FloatArray


@dataclass(frozen=True)
class Frame:
    """Sizes of each phrase's image in px. source, model: float64[n, 2], (width, height) of the file and as the model sees it."""

    source: FloatArray
    model: FloatArray


Convention = Callable[[FloatArray, Frame], FloatArray]


def _scaled(by: Callable[[Frame], FloatArray]) -> Convention:
    """Both corners times a factor float64[n, 2] (or [1, 2]) per axis."""
    return lambda box, frame: box * np.tile(by(frame), 2)


def _swapped(box: FloatArray, frame: Frame) -> FloatArray:
    return box[:, [1, 0, 3, 2]]


def _swapped_px(box: FloatArray, frame: Frame) -> FloatArray:
    px = box * np.tile(frame.source, 2)
    return px[:, [1, 0, 3, 2]] / np.tile(frame.source, 2)


def _margin(frame: Frame, centred: bool) -> tuple[FloatArray, FloatArray]:
    """Side of the padded square and the margin before the image, both float64[n, 2] as fractions of the image's sides."""
    side = frame.source.max(1, keepdims=True) / frame.source
    return side, (side - 1) / 2 if centred else np.zeros_like(side)


def _padded(centred: bool) -> Convention:
    def convention(box: FloatArray, frame: Frame) -> FloatArray:
        side, before = _margin(frame, centred)
        return (box + np.tile(before, 2)) / np.tile(side, 2)

    return convention


def _padding_undone(centred: bool) -> Convention:
    def convention(box: FloatArray, frame: Frame) -> FloatArray:
        side, before = _margin(frame, centred)
        return box * np.tile(side, 2) - np.tile(before, 2)

    return convention


def _xywh(box: FloatArray, frame: Frame) -> FloatArray:
    return np.concatenate((box[:, :2], box[:, 2:] - box[:, :2]), axis=1)


def _xyxy_as_xywh(box: FloatArray, frame: Frame) -> FloatArray:
    return np.concatenate((box[:, :2], box[:, 2:] + box[:, :2]), axis=1)


def _cxcywh(box: FloatArray, frame: Frame) -> FloatArray:
    return np.concatenate(((box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]), axis=1)


#: In words -> the map. Each of them would be read off a model that writes one convention under a contract that says another.
CONVENTIONS: Mapping[str, Convention] = {
    "x and y are swapped": _swapped,
    "x and y are swapped in pixels, before dividing by the sides": _swapped_px,
    "pixels of the resized image are read as thousandths": _scaled(lambda f: f.model / 1000),
    "thousandths are read as pixels of the resized image": _scaled(lambda f: 1000 / f.model),
    "pixels of the source image are read as thousandths": _scaled(lambda f: f.source / 1000),
    "thousandths are read as pixels of the source image": _scaled(lambda f: 1000 / f.source),
    "pixels of the source image are read as pixels of the resized one": _scaled(lambda f: f.source / f.model),
    "pixels of the resized image are read as pixels of the source one": _scaled(lambda f: f.model / f.source),
    "fractions of the image are read as hundredths": _scaled(lambda f: np.full((1, 2), 0.01)),
    "hundredths of the image are read as thousandths": _scaled(lambda f: np.full((1, 2), 0.1)),
    "boxes of the image padded to a square, image centred, are read without the padding": _padded(True),
    "boxes of the image padded to a square, image top left, are read without the padding": _padded(False),
    "padding to a square is taken off boxes that have none, image centred": _padding_undone(True),
    "padding to a square is taken off boxes that have none, image top left": _padding_undone(False),
    "x, y, width, height is read as two corners": _xywh,
    "two corners are read as x, y, width, height": _xyxy_as_xywh,
    "centre, width, height is read as two corners": _cxcywh,
}
