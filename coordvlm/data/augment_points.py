"""Image and points moved together by one affine map: flip, rotation, scale, translation. For samples of points; boxes are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Sample
from coordvlm.data import words
from coordvlm.data.transforms import Open, in_range
from coordvlm.utils.errors import ConfigError


@dataclass(frozen=True)
class PointAffine:
    """Turns, mirrors, scales and moves the content of the frame; the frame keeps its size.

    The map is one matrix, so the image is resampled once and points are exact: point (x, y) goes where the pixels around it go.
    Resampling is bilinear: it keeps the centre of a dot to 0.02 px, where PIL's bicubic filter moves it by up to 0.12 px and takes
    twice the time.
    What comes from outside the image has its mean colour. Objects whose point leaves the image leave the sample, and the count is of those
    that remain; ``meta["cut_away"]`` says how many left. Part of one may still show at the border. Categories that name a side
    ("left shoe") are not mirrored.

    Args:
        share: probability that a sample is changed at all.
        flip: probability, in a changed sample, of left and right exchanged.
        degrees: largest rotation about the centre, either way.
        scale: (low, high) factor, uniform in its logarithm.
        translate: largest shift of each axis, as a share of the image's side, either way.
    """

    share: float
    flip: float
    degrees: float
    scale: Sequence[float]
    translate: float

    def __post_init__(self) -> None:
        in_range("affine.share", self.share)
        in_range("affine.flip", self.flip)
        in_range("affine.degrees", self.degrees, high=180.0)
        in_range("affine.translate", self.translate)
        if len(self.scale) != 2:
            raise ConfigError(f"augment.affine.scale must be two factors, got {list(self.scale)}")
        for factor in self.scale:
            in_range("affine.scale", factor, low=0.1, high=10.0)
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"augment.affine.scale must be (low, high), got {list(self.scale)}")

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        """Five numbers are drawn for every changed sample, whatever is on.

        Raises:
            ConfigError: an object with a box, or a phrase.
        """
        if sample.phrase is not None or any(o.box_xyxy_px is not None for o in sample.objects):
            raise ConfigError("augment.affine moves points only: boxes would no longer fit, phrases no longer be true; use augment=ground")
        if rng.random() >= self.share:
            return sample
        flip, angle, scale, dx, dy = rng.random(5).tolist()
        low, high = (math.log(s) for s in self.scale)
        matrix = affine_matrix(
            (sample.width, sample.height),
            flip=flip < self.flip and not (sample.category is not None and words.names_side(sample.category)),
            degrees=(2 * angle - 1) * self.degrees,
            scale=math.exp(low + scale * (high - low)),
            shift_px=((2 * dx - 1) * self.translate * sample.width, (2 * dy - 1) * self.translate * sample.height),
        )
        if np.array_equal(matrix, np.eye(3)):
            return sample
        return moved(sample, opened(sample), matrix)


def affine_matrix(
    size: tuple[int, int], *, flip: bool, degrees: float, scale: float, shift_px: tuple[float, float]
) -> NDArray[np.float64]:
    """float64[3, 3] from points (x, y, 1) in px to where they come to lie.

    Flip, scale and rotation (clockwise as one looks at the image) are about the centre of the frame; then the shift.
    """
    cx, cy = size[0] / 2, size[1] / 2
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2] = -cx, -cy
    back[:2, 2] = cx + shift_px[0], cy + shift_px[1]
    matrix: NDArray[np.float64] = back @ turn @ to_centre
    return matrix


def moved(sample: Sample, frame: Image.Image, matrix: NDArray[np.float64]) -> Sample:
    """The sample with image and points mapped by ``matrix``; points outside the frame leave it.

    Args:
        frame: the sample's image, RGB. matrix: float64[3, 3], invertible; see ``affine_matrix``.
    """
    inverse = np.linalg.inv(matrix)  # PIL asks where a pixel of the result comes from, from centre to centre
    mean = tuple(round(v) for v in np.asarray(frame).mean((0, 1)).tolist())
    image = frame.transform(
        frame.size, Image.Transform.AFFINE, inverse[:2].flatten().tolist(), resample=Image.Resampling.BILINEAR, fillcolor=mean
    )
    kept = []
    for thing in sample.objects:
        if thing.point_px is not None:
            x, y = (matrix[:2] @ (*thing.point_px, 1.0)).tolist()
            if not (0 <= x <= sample.width and 0 <= y <= sample.height):
                continue
            thing = replace(thing, point_px=(x, y))
        kept.append(thing)
    meta = {**sample.meta, "affine": matrix[:2].tolist(), "cut_away": len(sample.objects) - len(kept)}
    return replace(sample, image=image, objects=tuple(kept), meta=meta)
