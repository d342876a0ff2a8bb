"""What synthetic images are drawn on: an uneven background, and noise over everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_NOISE_MASK = 15


def background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """float32[size, size, 3]: a greyish gradient, to draw on."""
    base = rng.uniform(60, 185) + rng.uniform(-15, 15, 3)
    slope = rng.uniform(-20, 20, (2, 3))
    ramp = np.linspace(-1, 1, size, dtype=np.float32)[:, None]
    rows, columns = (base + ramp * slope[0]).astype(np.float32), (ramp * slope[1]).astype(np.float32)
    return np.asarray(rows[:, None] + columns[None])


def with_noise(canvas: NDArray[np.float32], rng: np.random.Generator) -> Image.Image:
    """RGB image: the canvas, with noise of up to 15 grey levels over everything."""
    noise = (np.frombuffer(rng.bytes(canvas.size), dtype=np.uint8) & _NOISE_MASK).reshape(canvas.shape)
    return Image.fromarray(canvas.astype(np.uint8) + noise, "RGB")
