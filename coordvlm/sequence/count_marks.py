"""Marks on the objects that are counted already. They are part of what the model reads, so how they look is part of the contract.

Shapes: k marks, (H, W) of the frame they are drawn on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from coordvlm.utils.errors import ConfigError

STYLES = ("numbered", "disc", "dot", "heatmap", "none")
#: Size of a ``dot`` in radii; strength of a ``heatmap`` at its centre, and how far it reaches, in radii.
DOT, HEAT, REACH = 0.4, 0.7, 3.0
#: Height of the digits in radii, by their number.
DIGIT_HEIGHT = {1: 1.5, 2: 1.25, 3: 0.9}
#: Side to which jitter refers, as the ``px384`` figures of the metrics do: both axes are scaled to it.
COMMON_SIDE = 384.0


@dataclass(frozen=True)
class Marks:
    """How objects are marked, and how far training marks are off: at inference marks are predictions.

    | style | what is drawn |
    |---|---|
    | ``numbered`` | a disc with its number in white, counted from 1 |
    | ``disc`` | a disc |
    | ``dot`` | a disc of 0.4 of the radius |
    | ``heatmap`` | a Gaussian veil with the radius as its sigma; veils do not add up |
    | ``none`` | nothing: only the text says how many are marked |

    Edges are antialiased, so a mark lies where it is said to be to a fraction of a pixel.

    Args:
        style: see the table.
        radius: as a share of the image's longer side.
        colour: red, green, blue in 0 .. 255.
        jitter: standard deviation of a training mark, px on a side of 384, each axis by itself.
        drop: share of the training marks that are not drawn; the text and the other numbers count them nevertheless.
    """

    style: str
    radius: float
    colour: Sequence[int]
    jitter: float
    drop: float

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(f"sequence.marks.style must be one of {', '.join(STYLES)}, got {self.style!r}")
        for name, low, high in (("radius", 1e-4, 0.5), ("jitter", 0.0, COMMON_SIDE), ("drop", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"sequence.marks.{name} must be a number in [{low:g}, {high:g}], got {value!r}")
        colour = list(self.colour)
        if len(colour) != 3 or any(isinstance(c, bool) or not isinstance(c, int) or not 0 <= c <= 255 for c in colour):
            raise ConfigError(f"sequence.marks.colour must be three integers in [0, 255], got {colour!r}")

    def noisy(
        self, points_px: NDArray[np.float64], size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Where training marks come to lie, inside the image, and which of them are drawn: float64[k, 2], bool[k]."""
        wh = np.asarray(size, dtype=np.float64)
        error = rng.normal(0.0, 1.0, points_px.shape) * (self.jitter * wh / COMMON_SIDE)
        drawn: NDArray[np.bool_] = rng.random(len(points_px)) >= self.drop
        return np.clip(points_px + error, 0, wh), drawn

    def draw(self, frame: Image.Image, points_px: NDArray[np.float64], drawn: NDArray[np.bool_] | None = None) -> Image.Image:
        """A copy of the frame with its marks; the frame itself where there is nothing to draw.

        Args:
            frame: RGB. points_px: float64[k, 2], (x, y) in px of the frame, in the order of counting; may lie outside.
            drawn: bool[k], the marks to draw; None: all.
        Raises:
            ValueError: a point that is not finite, a frame that is not RGB.
        """
        points = np.asarray(points_px, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError(f"marks must be finite points, got {points[~np.isfinite(points).all(1)][:2].tolist()}")
        if frame.mode != "RGB":
            raise ValueError(f"marks are drawn on RGB frames, got mode {frame.mode}")
        chosen = range(len(points)) if drawn is None else np.flatnonzero(drawn).tolist()
        if self.style == "none" or not chosen:
            return frame
        marked = frame.copy()
        radius = self.radius * max(frame.size)
        if self.style == "heatmap":
            self._veil(marked, points[chosen], radius)
        else:
            for i in chosen:
                self._disc(marked, points[i], radius * (DOT if self.style == "dot" else 1.0))
                if self.style == "numbered":
                    _number(marked, points[i], radius, str(i + 1))
        return marked

    def _disc(self, marked: Image.Image, centre: NDArray[np.float64], radius: float) -> None:
        columns, rows = _window(centre, radius + 1, marked.size)
        distance = np.hypot(*_from(centre, columns, rows))
        _lay(marked, columns.start, rows.start, np.clip(radius + 0.5 - distance, 0, 1), self.colour)

    def _veil(self, marked: Image.Image, points: NDArray[np.float64], sigma: float) -> None:
        alpha = np.zeros((marked.height, marked.width), dtype=np.float32)
        for centre in points:
            columns, rows = _window(centre, REACH * sigma, marked.size)
            gauss = [np.exp(-0.5 * (d / sigma) ** 2) for d in _from(centre, columns, rows)]
            part = alpha[rows, columns]
            np.maximum(part, HEAT * gauss[0] * gauss[1], out=part, casting="same_kind")
        _lay(marked, 0, 0, alpha, self.colour)


def _window(centre: NDArray[np.float64], reach: float, size: tuple[int, int]) -> tuple[slice, slice]:
    """Columns and rows within reach of a point, inside the image; empty where there are none."""

    def span(at: float, length: int) -> slice:
        low = min(max(math.floor(at - reach), 0), length)
        return slice(low, max(min(math.ceil(at + reach), length), low))

    return span(float(centre[0]), size[0]), span(float(centre[1]), size[1])


def _from(centre: NDArray[np.float64], columns: slice, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(dx, dy) from a point to the centres of pixels, float64[1, columns] and [rows, 1]."""
    dx = np.arange(columns.start, columns.stop) + 0.5 - centre[0]
    dy = np.arange(rows.start, rows.stop) + 0.5 - centre[1]
    return dx[None], dy[:, None]


def _lay(marked: Image.Image, left: int, top: int, alpha: NDArray[np.floating], colour: Sequence[int]) -> None:
    """Lay a colour over a part of the image, in place; alpha [h, w] in [0, 1]. What lies outside the image is cut off."""
    if alpha.size:
        mask = Image.fromarray((alpha * 255 + 0.5).astype(np.uint8))
        marked.paste(tuple(colour), (left, top, left + mask.width, top + mask.height), mask)


def _number(marked: Image.Image, centre: NDArray[np.float64], radius: float, text: str) -> None:
    """White digits in the middle of a disc, to the nearest pixel."""
    digits = _digits(text, max(4, round(radius * DIGIT_HEIGHT.get(len(text), 0.75))))
    left, top = round(float(centre[0]) - digits.width / 2), round(float(centre[1]) - digits.height / 2)
    marked.paste((255, 255, 255), (left, top, left + digits.width, top + digits.height), digits)


@lru_cache(maxsize=4096)
def _digits(text: str, height: int) -> Image.Image:
    """The ink of a text, 8-bit, cut to its bounding box."""
    font = ImageFont.load_default(size=height)
    left, top, right, bottom = (round(x) for x in font.getbbox(text))
    layer = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(layer).text((-left, -top), text, fill=255, font=font)
    return layer
