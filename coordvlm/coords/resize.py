"""The ``smart`` resize rule of the Qwen vision-language models: which model size an image gets."""

from __future__ import annotations

import math

from coordvlm.utils.errors import DataError

#: Images more elongated than this are refused, as the Qwen processors do.
MAX_ASPECT = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Sides that are multiples of ``factor``, near the image's own, with an area within the limits.

    Sides are rounded to the nearest multiple (half to even). If their product leaves ``[min_pixels, max_pixels]``, both sides
    are scaled by the root of the area ratio, rounded down (too large, never below one ``factor``) or up (too small).

    Args:
        height, width: source size in px.
        factor: patch size times merge factor.
        min_pixels, max_pixels: limits on height x width in px.
    Returns:
        (height, width) in px. A very thin image may exceed ``max_pixels``, because a side never falls below ``factor``.
    Raises:
        DataError: an empty image, or one side more than 200 times the other.
    Source: the image processor of Qwen2-VL in transformers 5; equal to it by test.
    """
    if height <= 0 or width <= 0:
        raise DataError("an image has at least one pixel", where=f"image of {width} x {height} px")
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        where = f"image of {width} x {height} px"
        raise DataError(f"the longer side is at most {MAX_ASPECT} times the shorter one", where=where, value=aspect)
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor
