"""The answer to one request as a picture: the boxes on the image, and above it what was asked and what came back."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from coordvlm.reports.overlay import Box, Font, draw_overlay, font_of, writable
from coordvlm.reports.page import visible

_INK, _PAPER, _GAP = (40, 40, 40), (245, 245, 245), 6
#: Lines of text above the image; a longer phrase ends in an ellipsis.
_LINES = 3


def draw_answer(image: Image.Image, boxes: Sequence[Box], *, asked: str, found: str, side: int = 384, max_side: int = 1024) -> Image.Image:
    """The image with its boxes under a caption.

    Args:
        image: RGB, the displayed frame. boxes: in its pixels.
        asked: the phrase, "" in detection. found: what came of it, in a few words.
        side, max_side: see ``draw_overlay``.
    """
    picture = draw_overlay(image, (), boxes, side=side, max_side=max_side)
    font = font_of(picture.size)
    lines = [*_wrapped(asked, font, picture.width - 2 * _GAP), *_wrapped(found, font, picture.width - 2 * _GAP)]
    height = round(1.3 * font.getbbox("Ag")[3])
    canvas = Image.new("RGB", (picture.width, picture.height + height * len(lines) + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((_GAP, _GAP + row * height), line, fill=_INK, font=font)
    canvas.paste(picture, (0, canvas.height - picture.height))
    return canvas


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than ``width`` px; a word that is wider by itself is broken."""
    left = writable(" ".join(visible(text).split()), font)
    lines: list[str] = []
    while left:
        end = _fitting(left, font, width)
        if len(lines) == _LINES - 1 and end < len(left):
            return [*lines, left[: _fitting(left, font, width - round(font.getlength("...")))].rstrip() + "..."]
        space = left.rfind(" ", 1, end + 1) if end < len(left) else -1
        cut = space if space > 0 else end
        lines.append(left[:cut].rstrip())
        left = left[cut:].lstrip()
    return lines


def _fitting(text: str, font: Font, width: int) -> int:
    """How many characters of ``text`` fit, at least one."""
    low, high = 1, min(len(text), 2000)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low
