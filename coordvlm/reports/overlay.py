"""True and predicted boxes drawn on an image, sharp enough to judge single pixels.

A small image is enlarged by a whole factor without interpolation, so that a pixel of the source stays a square. The true box is
a wide green line and the prediction a narrow red one on top: where they agree, red runs inside green.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from coordvlm.reports.page import visible

GREEN = (0, 190, 90)
RED = (235, 30, 40)
_TRUE_WIDTH, _PRED_WIDTH = 6, 2

Rect = tuple[int, int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Box:
    """A box to draw. ``xyxy_px``: source pixels, any corner order; one that is not finite is left out. ``text``: its label."""

    xyxy_px: tuple[float, float, float, float]
    text: str = ""


def draw_overlay(
    image: Image.Image,
    truth: Sequence[Box],
    predicted: Sequence[Box],
    *,
    size: tuple[float, float] | None = None,
    side: int = 384,
    max_side: int = 640,
    max_labels: int = 12,
) -> Image.Image:
    """The image with true boxes in green and predicted ones in red.

    Args:
        truth, predicted: in the order of drawing; labels of the first ``max_labels`` of each are shown.
        size: (width, height) of the frame the boxes refer to; the image's own size by default.
        side: a longer side below this is enlarged by a whole factor to about this length.
        max_side: a longer side above this is reduced to it.
    """
    canvas = scaled(image, side, max_side)
    frame = size or image.size
    sx, sy = canvas.width / frame[0], canvas.height / frame[1]
    true = [(_rect(b, sx, sy), b.text) for b in truth if _finite(b)]
    pred = [(_rect(b, sx, sy), b.text) for b in predicted if _finite(b)]

    draw = ImageDraw.Draw(canvas)
    for group, width, colour in ((true, _TRUE_WIDTH, GREEN), (pred, _PRED_WIDTH, RED)):
        for rect, _ in group:
            _outline(draw, rect, colour, width)

    font = font_of(canvas.size)
    taken: list[Rect] = []
    for group, colour, above in ((pred, RED, True), (true, GREEN, False)):
        for rect, text in group[:max_labels]:
            if text:
                taken.append(_label(draw, canvas.size, rect, text, colour, font, taken, above))
    return canvas


def font_of(size: tuple[int, int]) -> Font:
    """For labels on a picture of ``size``."""
    return ImageFont.load_default(size=max(11, round(12.5 * max(size) / 384)))


def writable(text: str, font: Font) -> str:
    """``text`` as the font can write it: a PIL without FreeType has a Latin-1 font only."""
    try:
        font.getbbox(text)
    except UnicodeEncodeError:
        return text.encode("ascii", "replace").decode("ascii")
    return text


def scaled(image: Image.Image, side: int, max_side: int) -> Image.Image:
    """An RGB copy, enlarged by a whole factor to a longer side of about ``side``, or reduced to ``max_side``."""
    longest = max(image.size)
    factor = round(side / longest) if longest < side else 1
    if factor > 1:
        return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest > max_side:
        shrunk = (max(1, round(image.width * max_side / longest)), max(1, round(image.height * max_side / longest)))
        return image.convert("RGB").resize(shrunk, Image.Resampling.LANCZOS)
    return image.convert("RGB").copy()


def _finite(box: Box) -> bool:
    return all(math.isfinite(v) for v in box.xyxy_px)


def _rect(box: Box, sx: float, sy: float) -> Rect:
    x1, y1, x2, y2 = (max(-1e5, min(1e5, v)) for v in box.xyxy_px)
    return (round(min(x1, x2) * sx), round(min(y1, y2) * sy), round(max(x1, x2) * sx), round(max(y1, y2) * sy))


def _outline(draw: ImageDraw.ImageDraw, rect: Rect, colour: tuple[int, int, int], width: int) -> None:
    """A line of ``width`` (even) centred on the rectangle's edge."""
    half = width // 2
    draw.rectangle((rect[0] - half, rect[1] - half, rect[2] + half - 1, rect[3] + half - 1), outline=colour, width=width)


def _label(
    draw: ImageDraw.ImageDraw, canvas: tuple[int, int], rect: Rect, text: str, colour: tuple[int, int, int], font: Font,
    taken: Sequence[Rect], above: bool,
) -> Rect:
    """Write a label at the place around its box that hides the fewest other labels; returns where."""
    words = " ".join(visible(text).split())
    words = writable(words if len(words) <= 44 else words[:43] + "…", font)
    left, top, right, bottom = draw.textbbox((0, 0), words, font=font)
    width, height = math.ceil(right - left) + 6, math.ceil(bottom - top) + 5
    x, gap = rect[0] - 3, 4
    over, under = (x, rect[1] - height - gap), (x, rect[3] + gap)
    inside_top, inside_bottom = (rect[0] + gap, rect[1] + gap), (rect[0] + gap, rect[3] - height - gap)
    places = [over, inside_top, under, inside_bottom] if above else [under, inside_bottom, over, inside_top]
    spots = []
    for px, py in places:
        px, py = round(max(0, min(px, canvas[0] - width))), round(max(0, min(py, canvas[1] - height)))
        spots.append((px, py, px + width, py + height))
    best = min(spots, key=lambda spot: sum(_shared(spot, other) for other in taken))
    draw.rectangle((best[0], best[1], best[2] - 1, best[3] - 1), fill=colour)
    draw.text((best[0] + 3 - left, best[1] + 2 - top), words, fill="white", font=font)
    return best


def _shared(a: Rect, b: Rect) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
