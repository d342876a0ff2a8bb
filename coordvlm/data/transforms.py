"""Image and coordinates changed together. Each transform is told its own random numbers, so it is a pure function of them.

A transform gets a checked ``Sample`` and gives one that is as valid: boxes inside the image, the phrase still true of it. What it cannot
keep true it leaves alone. Boxes are float xyxy in source pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from coordvlm.contracts import Object, Sample
from coordvlm.data import words
from coordvlm.utils.errors import ConfigError

Box = tuple[float, float, float, float]
#: The image of a sample as decoded RGB of its declared size. Called only when the pixels are going to change.
Open = Callable[[Sample], Image.Image]

POSITION_PHRASES, JITTER_UNITS = ("keep", "crop"), ("px", "side")


def in_range(name: str, value: object, *, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse what is not a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # NaN fails too
        raise ConfigError(f"augment.{name} must be a number in [{low:g}, {high:g}], got {value!r}")


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged, in the image, the coordinates and the words of the phrase (see ``words.mirrored``).

    Class names are not rewritten; ``augment.Augment`` refuses classes that name a side. Writing in the image is mirrored with it, and
    phrases that quote writing are not flipped; other phrases about a thing with writing on it are.

    Args:
        share: probability of a flip.
    """

    share: float

    def __post_init__(self) -> None:
        in_range("flip.share", self.share)

    def fault(self, sample: Sample) -> str | None:
        """Why this sample is never flipped, or None."""
        return None if sample.phrase is None else words.mirror_fault(sample.phrase)

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        if rng.random() >= self.share or self.fault(sample):
            return sample
        width = sample.width
        return replace(
            sample,
            image=opened(sample).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            objects=tuple(_mirrored(o, width) for o in sample.objects),
            phrase=None if sample.phrase is None else words.mirrored(sample.phrase),
            meta={**sample.meta, "flipped": True},
        )


def _mirrored(thing: Object, width: int) -> Object:
    box, point = thing.box_xyxy_px, thing.point_px
    return replace(
        thing,
        box_xyxy_px=None if box is None else (width - box[2], box[1], width - box[0], box[3]),
        point_px=None if point is None else (width - point[0], point[1]),
    )


@dataclass(frozen=True)
class Crop:
    """A window of the image that holds one target whole: the thing a phrase names, or any object of a detection sample.

    Other objects are clipped to the window, and leave the targets when less than ``min_visible`` of their area is left (their number is in
    ``meta["cut_away"]``). A phrase that says where its thing is (left, top, middle, behind, next to ...) may become wrong, or lose what
    it refers to: such samples are left alone unless ``position_phrases`` is ``crop``.

    Args:
        share: probability of a crop.
        min_area: smallest window, as a share of the image. The area is uniform from there to 1, and larger where the target needs it.
        max_aspect: the window's aspect ratio is that of the image times up to this, either way.
        margin: free space around the target, as a share of its sides, where the image has it.
        min_visible: least visible share of another object that stays a target.
        position_phrases: ``keep`` (the image whole) or ``crop``.
    """

    share: float
    min_area: float
    max_aspect: float
    margin: float
    min_visible: float
    position_phrases: str

    def __post_init__(self) -> None:
        in_range("crop.share", self.share)
        in_range("crop.min_area", self.min_area, low=0.01)
        in_range("crop.max_aspect", self.max_aspect, low=1.0, high=10.0)
        in_range("crop.margin", self.margin, high=10.0)
        in_range("crop.min_visible", self.min_visible, low=0.01)
        if self.position_phrases not in POSITION_PHRASES:
            raise ConfigError(f"augment.crop.position_phrases must be one of {', '.join(POSITION_PHRASES)}, got {self.position_phrases!r}")

    def fault(self, sample: Sample) -> str | None:
        """Why this sample is never cropped, or None."""
        keep = self.position_phrases == "keep" and sample.phrase is not None and words.names_place(sample.phrase)
        return "names_place" if keep else None

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        if rng.random() >= self.share or self.fault(sample):
            return sample
        target = int(rng.integers(len(sample.objects))) if sample.objects else None
        x1, y1, x2, y2 = self._window(sample, None if target is None else sample.objects[target], rng)
        if (x1, y1, x2, y2) == (0, 0, sample.width, sample.height):
            return sample
        seen = [self._seen(o, (x1, y1, x2, y2)) for o in sample.objects]
        kept = tuple(o for o in seen if o is not None)
        return replace(
            sample,
            image=opened(sample).crop((x1, y1, x2, y2)),
            width=x2 - x1,
            height=y2 - y1,
            objects=kept,
            meta={**sample.meta, "crop": (x1, y1, x2, y2), "cut_away": len(seen) - len(kept)},
        )

    def _window(self, sample: Sample, target: Object | None, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """xyxy in whole pixels; it holds the target with its margin."""
        area = rng.uniform(self.min_area, 1.0)
        stretch = math.exp(rng.uniform(-1.0, 1.0) * math.log(self.max_aspect) / 2)
        low, high = _needed(sample, target, self.margin)
        corner, end = [], []
        for axis, (side, factor) in enumerate(((sample.width, stretch), (sample.height, 1 / stretch))):
            size = min(side, max(round(side * math.sqrt(area) * factor), high[axis] - low[axis], 1))
            first, last = max(0, high[axis] - size), min(low[axis], side - size)
            corner.append(int(rng.integers(first, last + 1)))
            end.append(corner[-1] + size)
        return corner[0], corner[1], end[0], end[1]

    def _seen(self, thing: Object, window: tuple[int, int, int, int]) -> Object | None:
        """The object in the window's frame, or None when too little of it is left."""
        x, y, right, bottom = window
        point = thing.point_px
        if point is not None and not (x <= point[0] <= right and y <= point[1] <= bottom):
            return None
        moved = None if point is None else (point[0] - x, point[1] - y)
        if thing.box_xyxy_px is None:
            return replace(thing, point_px=moved)
        a, b, c, d = thing.box_xyxy_px
        inside = (max(a, x), max(b, y), min(c, right), min(d, bottom))
        sides = inside[2] - inside[0], inside[3] - inside[1]
        if min(sides) <= 0 or sides[0] * sides[1] < self.min_visible * (c - a) * (d - b):
            return None
        box = (inside[0] - x, inside[1] - y, inside[2] - x, inside[3] - y)
        return replace(thing, box_xyxy_px=box, point_px=moved)


def _needed(sample: Sample, target: Object | None, margin: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole pixels (left, top), (right, bottom) around the target and its margin; nothing of the image is needed without a target."""
    if target is None or (target.box_xyxy_px is None and target.point_px is None):
        return (sample.width, sample.height), (0, 0)
    a, b, c, d = target.box_xyxy_px if target.box_xyxy_px is not None else (*target.point_px, *target.point_px)  # type: ignore[misc]
    wide, tall = margin * (c - a), margin * (d - b)
    low = (max(0, math.floor(a - wide)), max(0, math.floor(b - tall)))
    high = (min(sample.width, math.ceil(c + wide)), min(sample.height, math.ceil(d + tall)))
    return low, high


@dataclass(frozen=True)
class Colour:
    """Brightness, contrast and saturation times a uniform factor in [1 - x, 1 + x], in this order; and a turn of the hue.

    The hue is never turned when the phrase, a description or a name in the prompt speaks of a colour.

    Args:
        share: probability that a sample is changed at all.
        brightness, contrast, saturation: x, in [0, 1]. hue: largest turn, as a share of the circle, in [0, 0.5].
    """

    share: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __post_init__(self) -> None:
        for name in ("share", "brightness", "contrast", "saturation"):
            in_range(f"colour.{name}", getattr(self, name))
        in_range("colour.hue", self.hue, high=0.5)

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        if rng.random() >= self.share:
            return sample
        factors = [1 + rng.uniform(-x, x) for x in (self.brightness, self.contrast, self.saturation)]
        turn = rng.uniform(-self.hue, self.hue)
        image = opened(sample)
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True):
            image = enhance(image).enhance(factor)
        shift = round(turn * 256)
        if shift and not self.speaks_of_colour(sample):
            hue, saturation, value = image.convert("HSV").split()
            hue = hue.point([(i + shift) % 256 for i in range(256)])
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        return replace(sample, image=image)

    @staticmethod
    def speaks_of_colour(sample: Sample) -> bool:
        """Whether any text of the sample names a colour."""
        texts = {o.desc for o in sample.objects} | set(sample.class_list or ()) | {t for t in (sample.phrase, sample.category) if t}
        return any(words.names_colour(text) for text in texts)


@dataclass(frozen=True)
class BoxJitter:
    """Label noise: every edge of every target moves by a normal error. The image does not change; the box no longer is the annotated one.

    It stays inside the image and keeps sides of at least ``min_side_px``; a side that would be shorter is left as it was. Use it to see how
    much a recipe suffers from careless annotation, or against targets that are more exact than the annotator was.

    Args:
        sigma: standard deviation, in ``unit``: ``px`` of the source image, or ``side``, a share of the box's own width or height.
        min_side_px: least side after the change.
    """

    sigma: float
    unit: str
    min_side_px: float

    def __post_init__(self) -> None:
        in_range("jitter.sigma", self.sigma, high=1000.0)
        in_range("jitter.min_side_px", self.min_side_px, low=0.01, high=1000.0)
        if self.unit not in JITTER_UNITS:
            raise ConfigError(f"augment.jitter.unit must be one of {', '.join(JITTER_UNITS)}, got {self.unit!r}")

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        frame = sample.width, sample.height
        moved = [o if o.box_xyxy_px is None else replace(o, box_xyxy_px=self.noisy(o.box_xyxy_px, frame, rng)) for o in sample.objects]
        return replace(sample, objects=tuple(moved))

    def noisy(self, box: Box, frame: tuple[int, int], rng: np.random.Generator) -> Box:
        """A box with noise; four numbers are drawn whatever becomes of them."""
        error = rng.normal(0.0, self.sigma, 4)
        edges = []
        for axis in (0, 1):
            low, high = box[axis], box[axis + 2]
            scale = high - low if self.unit == "side" else 1.0
            new_low, new_high = (float(np.clip(x + e * scale, 0, frame[axis])) for x, e in ((low, error[axis]), (high, error[axis + 2])))
            edges.append((new_low, new_high) if new_high - new_low >= self.min_side_px else (low, high))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]
