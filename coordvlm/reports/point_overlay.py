"""Points of counting drawn on an image: one single step with its error, or a whole count.

Green is the truth and red the prediction, as in ``overlay``. A truth is a cross, so that the pixel it names stays visible; a
prediction is a filled dot. Small images are enlarged by a whole factor without interpolation.

Shapes: N true objects, P answered points, M marked objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from coordvlm.contracts import Asked
from coordvlm.reports.overlay import GREEN, RED, Font, font_of, scaled, writable
from coordvlm.reports.page import visible

FloatArray = NDArray[np.float64]
Point = tuple[float, float]
Colour = tuple[int, int, int]

YELLOW, GREY, WHITE = (255, 214, 10), (150, 156, 164), (255, 255, 255)
_INK, _PAPER = (40, 40, 40), (245, 245, 245)
#: A rim around lines and dots, so that they are seen on any ground.
_EDGE = (0, 0, 0)
_GAP = 6


class Canvas:
    """An image to draw on in source pixels, with a strip of text above.

    Args:
        size: (width, height) of the frame that points refer to. title: the line in the strip, cut where it does not fit.
    """

    def __init__(self, image: Image.Image, size: tuple[float, float] | None, title: str, *, side: int, max_side: int) -> None:
        frame = size or image.size
        picture = scaled(image, side, max_side)
        self.font: Font = font_of(picture.size)
        self.top = round(1.3 * self.font.getbbox("Ag")[3]) + _GAP if title else 0
        self.image = Image.new("RGB", (picture.width, picture.height + self.top), _PAPER)
        self.image.paste(picture, (0, self.top))
        self._draw = ImageDraw.Draw(self.image)
        self._scale = (picture.width / frame[0], picture.height / frame[1])
        self.unit = max(picture.size) / 384  # line widths and radii grow with the picture
        if title:
            self._draw.text((_GAP, _GAP // 2), fitting(title, self.font, picture.width - 2 * _GAP), fill=_INK, font=self.font)

    def place(self, point: Point) -> Point:
        """Where a source point lies on the canvas: the centre of its first pixel is (0, 0). What is far outside is cut."""
        x, y = (max(-1e5, min(1e5, v * s - 0.5)) for v, s in zip(point, self._scale, strict=True))
        return x, y + self.top

    def dot(self, point: Point, colour: Colour, radius: float) -> None:
        """A filled disc with a white and a dark rim; radius in 1/384 of the longer side."""
        x, y = self.place(point)
        for r, fill in ((radius * self.unit + 2, _EDGE), (radius * self.unit + 1, WHITE), (radius * self.unit, colour)):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def ring(self, point: Point, colour: Colour, radius: float, width: int = 2) -> None:
        x, y = self.place(point)
        r = radius * self.unit
        self._draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=width)

    def cross(self, point: Point, colour: Colour, radius: float, width: int = 2) -> None:
        """Four arms that leave the point itself free."""
        x, y = self.place(point)
        inner, outer = 0.35 * radius * self.unit, radius * self.unit
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            arm = (x + dx * inner, y + dy * inner, x + dx * outer, y + dy * outer)
            self._draw.line(arm, fill=_EDGE, width=width + 2)
            self._draw.line(arm, fill=colour, width=width)

    def line(self, start: Point, end: Point, colour: Colour, width: int = 2) -> None:
        self._draw.line((*self.place(start), *self.place(end)), fill=colour, width=width)

    def text(self, point: Point, words: str, colour: Colour, *, offset: float = 6.0, font: Font | None = None) -> None:
        """Beside a point, inside the picture, with a dark rim."""
        font = font or self.font
        x, y = self.place(point)
        left, top, right, bottom = (round(v) for v in self._draw.textbbox((0, 0), words, font=font, stroke_width=2))
        width, height, away = right - left, bottom - top, offset * self.unit
        px = x + away if x + away + width <= self.image.width else x - away - width
        py = y - away - height if y - away - height >= self.top else y + away
        px, py = max(0, min(px, self.image.width - width)), max(self.top, min(py, self.image.height - height))
        self._draw.text((px - left, py - top), words, fill=colour, font=font, stroke_width=2, stroke_fill=_EDGE)


def fitting(text: str, font: Font, width: int) -> str:
    """One line of plain text no wider than ``width`` px; a longer one ends in an ellipsis."""
    words = writable(" ".join(visible(text).split()), font)[:400]
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "...") > width:
        words = words[:-1]
    return words.rstrip() + "..."


def draw_step(
    image: Image.Image,
    asked: Asked,
    *,
    category: str,
    marked_px: FloatArray | None = None,
    size: tuple[float, float] | None = None,
    side: int = 384,
    max_side: int = 640,
) -> Image.Image:
    """One single step: the target in green, the answer in red, a yellow line between them labelled with its length.

    Where everything is marked there is no target; the answered point is then drawn only if the model wants to go on.

    Args:
        image: the image with its marks as the model saw it, or the clean one. category: what is counted.
        marked_px: float64[M, 2], objects to ring in grey as already counted; for a clean image.
        size: (width, height) of the frame that points refer to; the image's own by default.
        side, max_side: as in ``overlay.draw_overlay``.
    """
    title = f"{asked.k}/{asked.num} {_short(category)} · pred_done={asked.done:.2f}"
    canvas = Canvas(image, size, title if asked.target_px is not None else f"{title} · all marked", side=side, max_side=max_side)
    for _, point in _points(marked_px):
        canvas.ring(point, GREY, 7)
    for _, point in _points(asked.unmarked_px):
        if asked.target_px is None or not np.allclose(point, asked.target_px):
            canvas.ring(point, GREEN, 4, width=1)
    known = all(map(math.isfinite, asked.point_px))
    if asked.target_px is None:
        if known and asked.done <= 0.5:
            canvas.dot(asked.point_px, RED, 2.5)
        return canvas.image
    if known:
        canvas.line(asked.target_px, asked.point_px, YELLOW)
    canvas.cross(asked.target_px, GREEN, 10, width=3)
    if known:
        canvas.dot(asked.point_px, RED, 2.5)
        error = math.dist(asked.target_px, asked.point_px)
        middle = ((asked.target_px[0] + asked.point_px[0]) / 2, (asked.target_px[1] + asked.point_px[1]) / 2)
        canvas.text(middle, f"err={pixels(error)}", YELLOW, offset=8)
    return canvas.image


def pixels(error: float) -> str:
    """``0.8px``, ``12px``."""
    return f"{error:.1f}px" if error < 10 else f"{error:.0f}px"


def draw_count(
    image: Image.Image,
    true_px: FloatArray,
    points_px: FloatArray,
    pairs: Sequence[tuple[int, int]],
    *,
    category: str,
    ended: str = "",
    size: tuple[float, float] | None = None,
    side: int = 384,
    max_side: int = 640,
    max_numbers: int = 80,
) -> Image.Image:
    """A counted image: numbered red points in the order of counting, green truths, and what does not fit.

    A true object without a point (missed) has a green circle; a point without an object (extra) a red one.

    Args:
        true_px: float64[N, 2]. points_px: float64[P, 2], in order. pairs: (index of a point, index of a truth), each at most once.
        ended: how the loop ended, for the title. max_numbers: more points than this are drawn without numbers, which would hide them.
        size, side, max_side: as in ``draw_step``.
    Raises:
        ValueError: a pair that names no point or truth, or one of them twice.
    """
    found, hit = [p for p, _ in pairs], [t for _, t in pairs]
    for what, index, count in (("point", found, len(points_px)), ("truth", hit, len(true_px))):
        if len(set(index)) != len(index) or not all(0 <= i < count for i in index):
            raise ValueError(f"pairs must name each {what} at most once and below {count}, got {index}")
    wrong = [f"{n} {word}" for n, word in ((len(true_px) - len(hit), "missed"), (len(points_px) - len(found), "extra")) if n]
    title = " · ".join([f"{len(points_px)} counted, {len(true_px)} true", _short(category), *wrong, *filter(None, [ended])])
    canvas = Canvas(image, size, title, side=side, max_side=max_side)
    dense = max(len(points_px), len(true_px)) > max_numbers
    radius, arm = (1.0, 3.5) if dense else (2.5, 8.0)
    for i, point in _points(true_px):
        canvas.cross(point, GREEN, arm, width=1 if dense else 2)
        if i not in hit:
            canvas.ring(point, GREEN, 1.5 * arm)
    for i, point in _points(points_px):
        canvas.dot(point, RED, radius)
        if i not in found:
            canvas.ring(point, RED, 1.5 * arm)
    if not dense:
        font = font_of((round(0.8 * max(canvas.image.size)),) * 2)
        for i, point in _points(points_px):
            canvas.text(point, str(i + 1), WHITE, offset=3, font=font)
    return canvas.image


def _points(points_px: FloatArray | None) -> list[tuple[int, Point]]:
    """Those that are finite, with their index: others have no place."""
    listed = [] if points_px is None else np.asarray(points_px, dtype=np.float64).reshape(-1, 2).tolist()
    return [(i, (x, y)) for i, (x, y) in enumerate(listed) if math.isfinite(x) and math.isfinite(y)]


def _short(category: str) -> str:
    shown = " ".join(visible(category).split())
    return shown if len(shown) <= 32 else f"{shown[:31]}…"
