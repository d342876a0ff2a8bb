"""What was counted in an image of which nothing else is known: numbered points, and those that lay on a mark already."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from coordvlm.reports.overlay import RED, font_of
from coordvlm.reports.point_overlay import GREY, WHITE, Canvas, Point

#: More points than this are drawn small and without numbers, which would hide them.
MAX_NUMBERS = 80


def draw_counted(
    image: Image.Image, points: Sequence[Point], repeated: Sequence[Point], *, category: str, ended: str, side: int = 384,
    max_side: int = 1024,
) -> Image.Image:
    """Red points numbered in the order of counting, grey rings around repeated ones.

    Args:
        image: RGB, the displayed frame. points, repeated: (x, y) in its pixels.
        category: what was counted. ended: how the loop ended, in words.
        side, max_side: as in ``overlay.draw_overlay``.
    """
    title = " · ".join([f"{len(points)} counted", ended, category])
    canvas = Canvas(image, None, title, side=side, max_side=max_side)
    dense = len(points) > MAX_NUMBERS
    for point in points:
        canvas.dot(point, RED, 1.0 if dense else 2.5)
    for point in repeated:
        canvas.ring(point, GREY, 4 if dense else 7)
    if not dense:
        font = font_of((round(0.8 * max(canvas.image.size)),) * 2)
        for at, point in enumerate(points, start=1):
            canvas.text(point, str(at), WHITE, offset=3, font=font)
    return canvas.image
