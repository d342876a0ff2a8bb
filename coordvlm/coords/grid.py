"""THE rounding rule: the only place that maps source pixels <-> [0, 1] <-> what is written, a bin or digits.

Boxes are float xyxy in source pixels with continuous extents [0, W] x [0, H]; ``c = x / W`` (never ``W - 1``).
A grid of ``num_bins`` bins with ``scale`` s encodes ``k = clamp(floor(s c + 0.5), 0, num_bins - 1)`` and decodes
``c = k / s``. ``k999`` (s = 999) reaches both edges of the image and has zero mean error on uniform input; ``k1000``
(s = 1000) is the phase-1 rule, whose largest decoded value is 0.999. ``Digits`` are the conventions of models that write
coordinates as ordinary numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from coordvlm.coords.boxes import iou
from coordvlm.utils.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
#: (width, height) in px
Size = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """A uniform grid over [0, 1].

    Args:
        name: the convention's name, stored in the contract (``k999``, ``k1000``).
        num_bins: K, how many coordinate tokens there are.
        scale: s; the distance of two neighbouring bins is 1/s. Must be K - 1 or K.
    """

    name: str
    num_bins: int
    scale: int

    def __post_init__(self) -> None:
        for key, value in (("num_bins", self.num_bins), ("scale", self.scale)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"coords.{key} must be an integer, got {value!r}")
        if self.num_bins < 2:
            raise ConfigError(f"coords.num_bins must be at least 2, got {self.num_bins}")
        if self.scale not in (self.num_bins - 1, self.num_bins):
            raise ConfigError(
                f"coords.scale must be num_bins - 1 or num_bins ({self.num_bins - 1} or {self.num_bins}), got {self.scale}: "
                "encoding and decoding would not be inverse to each other"
            )

    def encode(self, norm: ArrayLike) -> IntArray:
        """Bins of normalised coordinates: float[...] (any range, clamped) -> int64[...] in [0, K)."""
        c = np.asarray(norm, dtype=np.float64)
        if not np.isfinite(c).all():
            raise ValueError(f"cannot encode a non-finite coordinate: {c[~np.isfinite(c)][:4]}")
        return np.clip(np.floor(self.scale * c + 0.5), 0, self.num_bins - 1).astype(np.int64)

    def decode(self, bins: ArrayLike) -> FloatArray:
        """Normalised coordinate of bins, float64[...]. Fractional bins (expectations) are allowed."""
        return np.asarray(bins, dtype=np.float64) / self.scale

    def bin_values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``dtype``[K]: ``decode(k)`` of every bin, the values v_k of the expectation read-out. Not below float32: bf16 has
        8 bits for 1000 bins."""
        return self.decode_tensor(torch.arange(self.num_bins, dtype=dtype))

    def decode_tensor(self, bins: torch.Tensor) -> torch.Tensor:
        """``decode`` on the tensor's own device: float[...] in the dtype of ``bins`` (float32 for integers)."""
        return bins / self.scale

    def encode_box(self, box_norm: ArrayLike) -> IntArray:
        """Bins of one normalised xyxy box, int64[4]; an axis that falls into one bin is widened by one bin.

        Only a box with ``x1 < x2`` and ``y1 < y2`` is widened; data checks refuse any other box earlier.
        """
        box = np.asarray(box_norm, dtype=np.float64)
        bins = self.encode(box)
        for low, high in ((0, 2), (1, 3)):
            if bins[low] == bins[high] and box[low] < box[high]:
                if bins[high] < self.num_bins - 1:
                    bins[high] += 1
                else:
                    bins[low] -= 1
        return bins


DIGITS = ("qwen1000", "pixel", "unit")


@dataclass(frozen=True)
class Digits:
    """Coordinates written as decimal numbers, without tokens of their own.

    | name | written | of Qwen |
    |---|---|---|
    | ``qwen1000`` | ``floor(1000 c + 0.5)`` in 0..1000, relative to the image | 2-VL, 3-VL |
    | ``pixel`` | ``floor(c W' + 0.5)`` in 0..W', px of the *resized* image | 2.5-VL |
    | ``unit`` | c with 4 decimals in [0, 1] | - |

    Published training code disagrees on the last value of ``pixel`` (W' or W' - 1); extents here are [0, W'], as everywhere.

    Args:
        name: see the table.
    """

    name: str
    num_bins: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.name not in DIGITS:
            raise ConfigError(f"coords.name must be one of {', '.join(DIGITS)} for coordinates in digits, got {self.name!r}")

    @property
    def scale(self) -> int:
        """Steps per image side; 0 for ``pixel``, where the resized image decides."""
        return {"qwen1000": 1000, "pixel": 0, "unit": 10_000}[self.name]

    def _steps(self, axes: int, model_size: Size) -> FloatArray:
        """Steps per side of each coordinate, float64[axes]."""
        if self.name != "pixel":
            return np.full(axes, float(self.scale))
        if min(model_size) <= 0:
            raise ValueError(f"coords=pixel needs the size of the resized image, got {model_size}")
        return np.tile(np.asarray(model_size, dtype=np.float64), axes // 2)

    def encode(self, norm: ArrayLike, model_size: Size) -> FloatArray:
        """Numbers as written: float[..., 2 or 4] in [0, 1] (clamped) -> float64[...]; whole numbers but for ``unit``.

        Args:
            model_size: (width, height) of the resized image in px; read by ``pixel`` only.
        """
        c = np.asarray(norm, dtype=np.float64)
        if not np.isfinite(c).all():
            raise ValueError(f"cannot encode a non-finite coordinate: {c[~np.isfinite(c)][:4]}")
        return self._written(self._round(c, model_size))

    def encode_box(self, box_norm: ArrayLike, model_size: Size) -> FloatArray:
        """One normalised xyxy box, float64[4]; an axis that falls onto one number is widened by one step."""
        box = np.asarray(box_norm, dtype=np.float64)
        steps, whole = self._steps(4, model_size), self._round(box, model_size)
        for low, high in ((0, 2), (1, 3)):
            if whole[low] == whole[high] and box[low] < box[high]:
                if whole[high] < steps[high]:
                    whole[high] += 1
                else:
                    whole[low] -= 1
        return self._written(whole)

    def _round(self, c: FloatArray, model_size: Size) -> FloatArray:
        steps = self._steps(c.shape[-1], model_size)
        return np.clip(np.floor(steps * c + 0.5), 0, steps)

    def _written(self, whole: FloatArray) -> FloatArray:
        return whole / self.scale if self.name == "unit" else whole

    def write(self, value: float) -> str:
        """One number as text: ``427``, or ``0.4270`` for ``unit``."""
        return f"{value:.4f}" if self.name == "unit" else str(int(value))

    def decode(self, values: ArrayLike, model_size: Size) -> FloatArray:
        """Written numbers -> [0, 1], float64[..., 2 or 4]; not clamped."""
        v = np.asarray(values, dtype=np.float64)
        return v / (self._steps(v.shape[-1], model_size) if self.name != "unit" else 1.0)

    def in_range(self, values: ArrayLike, model_size: Size) -> bool:
        """Whether every number is one that ``encode`` can write, up to rounding."""
        c = self.decode(values, model_size)
        return bool(np.isfinite(c).all() and (c >= 0).all() and (c <= 1).all())


def to_norm(boxes_px: ArrayLike, width: float, height: float) -> FloatArray:
    """Source pixels -> [0, 1]: float[..., 4] xyxy or float[..., 2] xy, divided by (W, H)."""
    boxes = np.asarray(boxes_px, dtype=np.float64)
    return boxes / _extent(boxes, width, height)


def to_px(boxes_norm: ArrayLike, width: float, height: float) -> FloatArray:
    """[0, 1] -> source pixels: float[..., 4] xyxy or float[..., 2] xy, times (W, H)."""
    boxes = np.asarray(boxes_norm, dtype=np.float64)
    return boxes * _extent(boxes, width, height)


def _extent(boxes: FloatArray, width: float, height: float) -> FloatArray:
    if width <= 0 or height <= 0:
        raise ValueError(f"image size must be positive, got {width} x {height}")
    if boxes.shape[-1] not in (2, 4):
        raise ValueError(f"last axis must hold xy or xyxy, got shape {boxes.shape}")
    return np.tile(np.asarray([width, height], dtype=np.float64), boxes.shape[-1] // 2)


def quantisation_iou(grid: Grid, boxes_px: Sequence[ArrayLike], sizes: Sequence[tuple[float, float]]) -> FloatArray:
    """IoU of each true box with itself after encode and decode: the best any model with this grid can score.

    Args:
        boxes_px: N boxes, xyxy source pixels.
        sizes: N image sizes (width, height).
    Returns:
        float64[N] in [0, 1].
    """
    true = np.asarray(boxes_px, dtype=np.float64).reshape(-1, 4)
    back = np.empty_like(true)
    for i, (box, (width, height)) in enumerate(zip(true, sizes, strict=True)):
        back[i] = to_px(grid.decode(grid.encode_box(to_norm(box, width, height))), width, height)
    return np.asarray(iou(torch.from_numpy(true), torch.from_numpy(back)).numpy())
