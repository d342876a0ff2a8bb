"""Counting step by step as an animated GIF: what is marked, and where the next point goes.

All frames share one palette and are drawn without dithering, so that a frame stores only what changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.reports.overlay import GREEN, RED, font_of
from coordvlm.reports.point_overlay import GREY, YELLOW, Canvas
from coordvlm.utils.errors import ConfigError

FloatArray = NDArray[np.float64]

_STEP_MS, _LAST_MS = 450, 2500
#: One of 256 is left for pixels that a frame does not change.
_COLOURS = 255
#: What every palette holds, whatever the image looks like.
_OWN = (GREEN, RED, GREY, YELLOW, (0, 0, 0), (255, 255, 255), (40, 40, 40), (245, 245, 245))
#: Below this longer side numbers can no longer be read: then frames are left out instead.
_LEAST_SIDE = 192


def count_gif(
    image: Image.Image,
    points_px: FloatArray,
    done: Sequence[float],
    *,
    category: str,
    ended: str,
    max_frames: int,
    true_px: FloatArray | None = None,
    size: tuple[float, float] | None = None,
    max_side: int = 512,
    max_bytes: int = 2_000_000,
) -> bytes:
    """The loop as a GIF: one frame per step, and a last one with all points and how it ended.

    With more steps than frames, frames are spread evenly over the steps; the last frame says how many are not shown. A GIF above
    ``max_bytes`` is made again, first smaller and then with fewer frames.

    Args:
        points_px: float64[P, 2], in the order of counting. done: P probabilities, at each point's step, that everything was marked.
        category: what is counted. ended: how the loop ended, e.g. ``finished``.
        max_frames: the last frame included, at least 2.
        true_px: float64[N, 2], drawn as green crosses in the last frame.
        size: (width, height) of the frame that points refer to; the image's own by default.
        max_side: the longer side in px at most.
    Raises:
        ConfigError: limits that no GIF can meet. ValueError: not as many probabilities as points.
    """
    if max_frames < 2 or max_side < 32 or max_bytes < 1000:
        raise ConfigError(f"a GIF needs 2 frames, 32 px and 1000 bytes at least, got {max_frames}, {max_side} and {max_bytes}")
    points = np.asarray(points_px, dtype=np.float64).reshape(-1, 2)
    if len(done) != len(points):
        raise ValueError(f"every point needs its p_done, got {len(done)} for {len(points)} points")
    truth = np.zeros((0, 2)) if true_px is None else np.asarray(true_px, dtype=np.float64).reshape(-1, 2)
    frame = size or image.size
    side, frames = max_side, max_frames
    while True:
        data = _encode(_frames(image, points, done, truth, frame, category, ended, side, frames))
        if len(data) <= max_bytes:
            return data
        if side * 3 // 4 >= _LEAST_SIDE:
            side = side * 3 // 4
        elif frames > 2:
            frames = max(2, frames // 2)
        elif side > 32:
            side = max(32, side // 2)
        else:
            raise ConfigError(f"max_bytes={max_bytes} holds no GIF of this image: the smallest one has {len(data)}")


def shown_steps(num: int, count: int) -> list[int]:
    """At most ``count`` of the steps 0 .. num - 1, spread evenly, the first and the last included where there is room."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(count, num)).tolist()}) if num else []


def _frames(
    image: Image.Image, points: FloatArray, done: Sequence[float], truth: FloatArray, size: tuple[float, float], category: str, ended: str,
    side: int, max_frames: int,
) -> list[Image.Image]:
    steps = shown_steps(len(points), max_frames - 1)
    out = []
    for step in steps:
        canvas = Canvas(image, size, f"{step} marked · {category} · pred_done={done[step]:.2f}", side=side // 2, max_side=side)
        _marks(canvas, points[:step])
        if np.isfinite(points[step]).all():
            canvas.dot((float(points[step, 0]), float(points[step, 1])), RED, 4)
        out.append(canvas.image)
    skipped = len(points) - len(steps)
    title = f"{len(points)} counted · {category} · {ended}" + (f" · {skipped} of {len(points)} steps not shown" if skipped else "")
    canvas = Canvas(image, size, title, side=side // 2, max_side=side)
    for x, y in truth.tolist():
        canvas.cross((x, y), GREEN, 7)
    _marks(canvas, points)
    return [*out, canvas.image]


def _marks(canvas: Canvas, points: FloatArray) -> None:
    """Yellow dots, the latest few with their number: as many as can be read."""
    font = font_of((round(0.8 * max(canvas.image.size)),) * 2)
    for i, (x, y) in enumerate(points.tolist()):
        if math.isfinite(x) and math.isfinite(y):
            canvas.dot((x, y), YELLOW, 2.5)
            if len(points) - i <= 40:
                canvas.text((x, y), str(i + 1), YELLOW, offset=2.5, font=font)


def _encode(frames: Sequence[Image.Image]) -> bytes:
    palette = _palette(frames[-1])
    indexed = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    times = [_STEP_MS] * (len(frames) - 1) + [_LAST_MS]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, format="GIF", save_all=True, append_images=indexed[1:], duration=times, loop=0, disposal=1, optimize=True
    )
    return buffer.getvalue()


def _palette(frame: Image.Image) -> Image.Image:
    """Colours that cover those of a frame, rare ones too, and the drawing's own."""
    found = frame.quantize(colors=_COLOURS - len(_OWN), method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours = (found.getpalette() or [])[: 3 * (_COLOURS - len(_OWN))]
    colours += [0] * (3 * (_COLOURS - len(_OWN)) - len(colours)) + [v for c in _OWN for v in c]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette
