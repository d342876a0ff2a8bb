"""Where queries look, drawn over the frames: a picture of all frames, and a GIF that runs through them.

Coarse and fine share one colour scale, so that a pale map *is* flatter than a bright one. Patches are drawn as they are: one weight each.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from coordvlm.metrics.looking import SeenClip
from coordvlm.reports.overlay import GREEN, font_of, writable
from coordvlm.utils.errors import ConfigError

FloatArray = NDArray[np.float64]
Rgb = tuple[int, int, int]

#: Colours from no weight to the largest; and of less, equal and more in the fine pass.
_HEAT = ((12, 8, 38), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_LESS_MORE = ((33, 102, 172), (146, 197, 222), (245, 245, 245), (244, 165, 130), (178, 24, 43))
_BACK, _INK, _DIM = (250, 250, 251), (28, 36, 48), (91, 102, 117)
#: How much of a patch is its colour: at no weight, and at the largest.
_ALPHA = (0.35, 0.85)
_GAP, _HEAD, _SIDE_LABEL, _BAR = 6, 20, 64, 30
#: More frames are not drawn side by side.
_MAX_FRAMES = 8
_WIDTH = 1080
_FRAME_MS, _LAST_MS = 800, 1600
_ARMS = ("coarse", "fine")


def colours(values: FloatArray, stops: Sequence[Rgb] = _HEAT) -> NDArray[np.uint8]:
    """[...] in [0, 1] -> uint8[..., 3]."""
    at = np.clip(values, 0, 1) * (len(stops) - 1)
    table = np.asarray(stops, dtype=np.float64)
    rgb = [np.interp(at, np.arange(len(stops)), table[:, i]) for i in range(3)]
    return np.asarray(np.round(np.stack(rgb, -1)), dtype=np.uint8)


def heat_map(frame: NDArray[np.uint8], weights: NDArray[np.float32], top: float, side: int) -> Image.Image:
    """Weights [rows, columns] over a frame in grey; ``top`` is the end of the scale."""
    share = np.clip(weights.astype(np.float64) / top, 0, 1) if top > 0 else np.zeros(weights.shape)
    return _blend(frame, colours(share), _ALPHA[0] + (_ALPHA[1] - _ALPHA[0]) * share, side)


def difference_map(frame: NDArray[np.uint8], weights: NDArray[np.float32], top: float, side: int) -> Image.Image:
    """Signed weights over a frame: blue is below zero, red above; the scale goes from -``top`` to ``top``."""
    share = np.clip(weights.astype(np.float64) / top, -1, 1) if top > 0 else np.zeros(weights.shape)
    return _blend(frame, colours((share + 1) / 2, _LESS_MORE), 0.45 + 0.45 * np.abs(share), side)


def _blend(frame: NDArray[np.uint8], colour: NDArray[np.uint8], alpha: FloatArray, side: int) -> Image.Image:
    grey = np.asarray(_sized(frame, side).convert("L"), dtype=np.float64)[..., None]
    size = (side, side)
    paint = np.asarray(Image.fromarray(colour).resize(size, Image.Resampling.NEAREST), dtype=np.float64)
    much = np.asarray(Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.NEAREST), dtype=np.float64)[..., None]
    return Image.fromarray(np.round(grey * (1 - much) + paint * much).astype(np.uint8))


def _sized(frame: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((side, side), Image.Resampling.NEAREST if side >= 2 * image.width else Image.Resampling.LANCZOS)


def shown_frames(num: int, most: int = _MAX_FRAMES) -> list[int]:
    """At most ``most`` of ``num`` frames, spread evenly, first and last included."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(most, num)).tolist()})


def look_picture(clip: SeenClip) -> Image.Image:
    """All frames in a row (some, of many); below them each arm's map of each, and the colour scale. Green: the true place's patch."""
    at, arms = shown_frames(len(clip.frames)), list(clip.maps)
    side = max(96, min(190, (_WIDTH - _SIDE_LABEL) // len(at) - _GAP))
    rows = 1 + len(arms)
    width = max(_SIDE_LABEL + len(at) * (side + _GAP), _SIDE_LABEL + 300)
    canvas = Image.new("RGB", (width, _HEAD + rows * (side + _GAP) + _BAR), _BACK)
    pen = ImageDraw.Draw(canvas)
    for row, name in enumerate(("frame", *arms)):
        y = _HEAD + row * (side + _GAP)
        _text(pen, (2, y + side // 2 - 7), name, _INK)
        for column, t in enumerate(at):
            x = _SIDE_LABEL + column * (side + _GAP)
            if not row:
                _text(pen, (x, 3), f"frame {t}", _DIM)
            panel = _sized(clip.frames[t], side) if not row else heat_map(clip.frames[t], clip.maps[name][t], clip.top, side)
            canvas.paste(_marked(panel, clip, t), (x, y))
    _scale(canvas, pen, clip)
    return canvas


def _marked(panel: Image.Image, clip: SeenClip, t: int) -> Image.Image:
    """With the patch that holds the true place in a green frame."""
    x, y = (float(v) for v in clip.evidence[t])
    if not (math.isfinite(x) and math.isfinite(y)) or not clip.maps:
        return panel
    rows, columns = next(iter(clip.maps.values())).shape[1:]
    column, row = min(int(x * columns), columns - 1), min(int(y * rows), rows - 1)
    w, h = panel.width / columns, panel.height / rows
    box = (round(column * w), round(row * h), round((column + 1) * w) - 1, round((row + 1) * h) - 1)
    ImageDraw.Draw(panel).rectangle(box, outline=GREEN, width=max(2, panel.width // 80))
    return panel


def _scale(canvas: Image.Image, pen: ImageDraw.ImageDraw, clip: SeenClip) -> None:
    """The colour bar with 0, the weight of a uniform map, and the largest weight."""
    if not clip.maps:
        return
    y, x, width = canvas.height - _BAR + 4, _SIDE_LABEL, 200
    canvas.paste(Image.fromarray(np.repeat(colours(np.linspace(0, 1, width))[None], 9, 0)), (x, y))
    cells = math.prod(next(iter(clip.maps.values())).shape[1:])
    if clip.top > 0:
        tick = x + round(width * min(1 / cells / clip.top, 1.0))
        pen.line((tick, y - 2, tick, y + 11), fill=_INK)
    _text(pen, (x, y + 11), "0", _DIM)
    words = f"{clip.top:.2g}  (tick: uniform, {1 / cells:.2g})"
    _text(pen, (x + width + 6, y - 2), words, _DIM)


def _text(pen: ImageDraw.ImageDraw, at: tuple[int, int], words: str, colour: Rgb) -> None:
    font = font_of((384, 384))
    pen.text(at, writable(words, font), fill=colour, font=font)


def look_gif(clip: SeenClip, *, side: int = 200, max_bytes: int = 500_000) -> bytes:
    """One GIF frame per frame of the clip, with panels side by side: the frame, coarse, fine, and fine minus coarse.

    A GIF above ``max_bytes`` is made again, smaller.

    Raises:
        ConfigError: limits that no GIF can meet, or a clip without both maps.
    """
    if lacking := [name for name in _ARMS if name not in clip.maps]:
        raise ConfigError(f"the GIF of clip {clip.clip_id} needs maps of coarse and fine, got none of {', '.join(lacking)}")
    while True:
        data = _encode([_gif_frame(clip, t, side) for t in range(len(clip.frames))])
        if len(data) <= max_bytes:
            return data
        if side <= 48:
            raise ConfigError(f"max_bytes={max_bytes} holds no GIF of clip {clip.clip_id}: the smallest one has {len(data)}")
        side = max(48, side * 3 // 4)


def _gif_frame(clip: SeenClip, t: int, side: int) -> Image.Image:
    change = clip.maps["fine"].astype(np.float64) - clip.maps["coarse"]
    panels = {
        f"frame {t}": _sized(clip.frames[t], side),
        "coarse": heat_map(clip.frames[t], clip.maps["coarse"][t], clip.top, side),
        "fine": heat_map(clip.frames[t], clip.maps["fine"][t], clip.top, side),
        "fine - coarse": difference_map(clip.frames[t], change[t].astype(np.float32), float(np.abs(change).max()), side),
    }
    canvas = Image.new("RGB", (len(panels) * (side + _GAP) - _GAP, side + _HEAD), _BACK)
    pen = ImageDraw.Draw(canvas)
    for i, (name, panel) in enumerate(panels.items()):
        _text(pen, (i * (side + _GAP) + 2, 3), name, _INK)
        canvas.paste(_marked(panel, clip, t), (i * (side + _GAP), _HEAD))
    return canvas


def _encode(frames: Sequence[Image.Image]) -> bytes:
    """All in one palette without dithering, so that only what changes is stored."""
    tall = Image.new("RGB", (frames[0].width, sum(f.height for f in frames)))
    for i, frame in enumerate(frames):
        tall.paste(frame, (0, i * frame.height))
    palette = tall.quantize(colors=255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    indexed = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, format="GIF", save_all=True, append_images=indexed[1:], duration=[_FRAME_MS] * (len(frames) - 1) + [_LAST_MS], loop=0,
        disposal=1,
    )
    return buffer.getvalue()
