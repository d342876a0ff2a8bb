"""Synthetic counting: dots of several colours on an uneven background, one of which is to be counted.

Every sample is a pure function of (seed, split, index). Centres are decided before anything is painted and fall between pixels; dots
are drawn by the share of each pixel that they cover, so the centre of what is painted is the annotated one. n dots in an image of
side S px, the counted ones first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Object, PointTruth, Sample
from coordvlm.data.canvas import background, with_noise
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.shapes import COLOURS, colour_values
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError

#: Part of ``digests``: raise it when the same arguments no longer give the same images.
GENERATOR_VERSION = 1
KINDS = ("dot", "square", "triangle", "diamond")
#: Full layouts, and positions of one dot, that are tried before dots are put on a grid instead.
_LAYOUTS, _POSITIONS = 20, 24
_SQRT2 = float(np.sqrt(2.0))
#: Outward normals of a triangle's sides, its tip up, as (x, y) with y downwards.
_SIDES = ((0.0, 1.0), (-np.sqrt(3.0) / 2, -0.5), (np.sqrt(3.0) / 2, -0.5))


@dataclass(frozen=True)
class Scene:
    """What is in an image.

    Args:
        category: position in ``Dots.class_names`` of what is counted. num: how many there are, the first of the n dots.
        look: int64[n], position in ``Dots.class_names``. centre: float64[n, 2] (x, y) px. radius: float64[n] px. rgb: float32[n, 3].
    """

    category: int
    num: int
    look: NDArray[np.int64]
    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    rgb: NDArray[np.float32]


def coverage(kind: str, dx: NDArray[np.float64], dy: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """float64[..., h, w] in [0, 1]: about the share of each pixel that the shape covers. The shape's corners lie on the circle.

    Args:
        dx: float64[..., w], dy: float64[..., h], from the shape's centre to the pixels' centres. radius: of the circle around it, px.
    """
    x, y = dx[..., None, :], dy[..., :, None]
    if kind == "square":  # exactly the share: per axis, the part of the pixel's unit interval that lies inside
        half = radius / _SQRT2
        across, down = (np.clip(np.minimum(d + 0.5, half) - np.maximum(d - 0.5, -half), 0.0, 1.0) for d in (x, y))
        return np.asarray(across * down)
    if kind == "dot":
        beyond = np.sqrt(x * x + y * y) - radius
    elif kind == "diamond":
        beyond = (np.abs(x) + np.abs(y) - radius) / _SQRT2
    else:
        beyond = np.max([x * a + y * b - radius / 2 for a, b in _SIDES], axis=0)
    return np.asarray(np.clip(0.5 - beyond, 0.0, 1.0))


def place_dots(
    rng: np.random.Generator, num: int, size: int, low: float, high: float, gap: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres float64[num, 2] and radii float64[num] of dots that are ``gap`` px apart and inside the image. Always all of them.

    A layout that does not fit is redrawn as a whole (which favours smaller dots when space is short); after 20 of them the dots go
    into random cells of a grid. The caller guarantees ``(2 low + gap) * ceil(sqrt(num)) <= size``.
    """
    for _ in range(_LAYOUTS):
        radii = rng.uniform(low, high, num).tolist()
        spots = rng.random((num, _POSITIONS, 2)).tolist()
        placed: list[tuple[float, float, float]] = []
        for r, candidates in zip(radii, spots, strict=True):
            for u, v in candidates:
                x, y = r + u * (size - 2 * r), r + v * (size - 2 * r)
                if all((x - a) ** 2 + (y - b) ** 2 >= (r + s + gap) ** 2 for a, b, s in placed):
                    placed.append((x, y, r))
                    break
            else:
                break
        if len(placed) == num:
            found = np.array(placed, dtype=np.float64).reshape(-1, 3)
            return found[:, :2], found[:, 2]
    cells = int(np.ceil(np.sqrt(num)))
    cell = size / cells
    chosen = rng.choice(cells * cells, size=num, replace=False)
    radius = rng.uniform(low, min(high, (cell - gap) / 2), num)
    free = cell - gap - 2 * radius
    corner = np.stack([chosen % cells, chosen // cells], 1) * cell
    return corner + (gap / 2 + radius)[:, None] + rng.random((num, 2)) * free[:, None], radius


class Dots:
    """Seeded images of dots with one category to count, ``red dot``. A ``DataSource``.

    The category is drawn first, uniformly from all; whatever is a distractor in one image is counted in others.

    Args:
        image_size: side S of the square image, px.
        num: (least, most) dots of the category, both included, uniform. distractors: the same for dots of all other categories.
        radius: (least, most) px, uniform; of other kinds than ``dot`` that of the circle through their corners.
        min_gap: free px between the circles of any two.
        kinds, colours: names out of ``KINDS`` and ``COLOURS``; a category is a pair.
        num_train, num_val, num_test: images per split; made on the fly.
        seed: of the training images. eval_seed: of val and test, kept apart so that runs of different seeds are scored on the same
            images. Splits never share a stream, whatever the seeds.
    Raises:
        ConfigError: an option has no meaning, dots do not surely fit, or distractors have no category left.
    """

    #: Images are made up: an audit looks at some of them.
    generated = True

    def __init__(
        self, *, image_size: int, num: Sequence[int], distractors: Sequence[int], radius: Sequence[float], min_gap: float,
        kinds: Sequence[str], colours: Sequence[str], num_train: int, num_val: int, num_test: int, seed: int, eval_seed: int,
    ) -> None:
        self.size = int(image_size)
        self.num, self._others = _whole("num", num), _whole("distractors", distractors)
        self._radius = _range("radius", radius)
        self._gap = float(min_gap)
        kind_names, colour_names = _subset("kinds", kinds, KINDS), _subset("colours", colours, tuple(COLOURS))
        self._looks = tuple(product(kind_names, colour_names))
        self._colour_of = np.array([list(COLOURS).index(colour) for _, colour in self._looks], dtype=np.int64)
        self._lengths = dict(zip(SPLITS, (int(num_train), int(num_val), int(num_test)), strict=True))
        if min(self._lengths.values()) < 0:
            raise ConfigError(f"data.source.num_train, num_val and num_test must not be negative, got {self._lengths}")
        self._seeds = {"train": int(seed), "val": int(eval_seed), "test": int(eval_seed)}
        if not self._radius[0] >= 1.0 or not self._gap >= 0.0:
            raise ConfigError(f"data.source: radii must be at least 1 px and min_gap not negative, got {self._radius} and {min_gap}")
        if self._others[1] and len(self._looks) < 2:
            raise ConfigError(f"data.source.distractors={list(distractors)} need a second colour or kind, got {self.class_names}")
        most = self.num[1] + self._others[1]
        if (2 * self._radius[0] + self._gap) * max(int(np.ceil(np.sqrt(most))), 1) > self.size or 2 * self._radius[1] > self.size:
            raise ConfigError(
                f"data.source: {most} dots of {self._radius[0]:g} to {self._radius[1]:g} px radius, {self._gap:g} px apart, do not surely "
                f"fit into {self.size} px; lower num, distractors, radius or min_gap"
            )
        self._truths: dict[str, PointTruth] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every category; its id is its position, from 1."""
        return tuple(f"{colour} {kind}" for kind, colour in self._looks)

    def split(self, name: str) -> DotsSplit:
        self._check(name)
        return DotsSplit(self, name, self._lengths[name])

    def dropped(self, name: str) -> dict[str, int]:
        """Nothing is ever dropped: points are right by construction."""
        self._check(name)
        return {}

    def digests(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(repr((
                GENERATOR_VERSION, self.size, self.num, self._others, self._radius, self._gap, self._looks, length, self._seeds[name],
                name,
            )).encode()).hexdigest()[:12]
            for name, length in self._lengths.items()
        }

    def truth(self, name: str) -> PointTruth:
        """From scenes alone, kept after the first call; about 0.2 ms per image."""
        self._check(name)
        if name not in self._truths:
            length, names = self._lengths[name], self.class_names
            scenes = [self.scene(name, i)[0] for i in range(length)]
            self._truths[name] = PointTruth.of(
                ids=range(length), categories=[names[s.category] for s in scenes], source_image=range(length),
                image_wh=np.full((length, 2), float(self.size)), points=[s.centre[: s.num] for s in scenes],
            )
        return self._truths[name]

    def counts(self, split: str, index: int) -> tuple[int, int, np.random.Generator]:
        """How many dots of the category and how many others an image has, and the generator that draws the rest of it."""
        rng = keyed_generator(self._seeds[split], "dots", split, index)
        return int(rng.integers(self.num[0], self.num[1] + 1)), int(rng.integers(self._others[0], self._others[1] + 1)), rng

    def scene(self, split: str, index: int) -> tuple[Scene, np.random.Generator]:
        """What is in an image, and the generator that paints its background."""
        num, others, rng = self.counts(split, index)
        category = int(rng.integers(len(self._looks)))
        look = np.full(num + others, category, dtype=np.int64)
        if others:
            other = rng.integers(len(self._looks) - 1, size=others)
            look[num:] = other + (other >= category)
        rgb = colour_values(self._colour_of[look], rng)
        centre, radius = place_dots(rng, num + others, self.size, *self._radius, self._gap)
        # Where space is short, a place says how late a dot was drawn: which dots are counted must not depend on it.
        order = rng.permutation(num + others)
        return Scene(category, num, look, centre[order], radius[order], rgb), rng

    def render(self, scene: Scene, rng: np.random.Generator) -> Image.Image:
        """RGB image: a background, the dots, noise of up to 15 grey levels over everything."""
        canvas = background(self.size, rng)
        for look, (x, y), radius, rgb in zip(scene.look.tolist(), scene.centre.tolist(), scene.radius.tolist(), scene.rgb, strict=True):
            left, top = max(int(x - radius) - 1, 0), max(int(y - radius) - 1, 0)
            patch = canvas[top : int(y + radius) + 2, left : int(x + radius) + 2]
            dx, dy = left + 0.5 + np.arange(patch.shape[1]) - x, top + 0.5 + np.arange(patch.shape[0]) - y
            share = coverage(self._looks[look][0], dx, dy, radius).astype(np.float32)
            patch += share[..., None] * (rgb - patch)
        return with_noise(canvas, rng)

    def make(self, split: str, index: int) -> Sample:
        """Sample ``index`` of a split. ``meta``: file_name, where, split, radius (px, of each object)."""
        scene, rng = self.scene(split, index)
        category = self.class_names[scene.category]
        first = index * max(self.num[1], 1) + 1
        objects = tuple(
            Object(category, point_px=(x, y), category_id=scene.category + 1, annotation_id=first + i)
            for i, (x, y) in enumerate(scene.centre[: scene.num].tolist())
        )
        where = f"dots {split} {index}"
        meta = {"file_name": where, "where": where, "split": split, "radius": tuple(scene.radius[: scene.num].tolist())}
        return Sample(index, self.render(scene, rng), self.size, self.size, objects, meta=meta, category=category)

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")


@dataclass(frozen=True)
class DotsSplit:
    """A ``Split`` of ``Dots``; the id of a sample is its index."""

    source: Dots
    name: str
    length: int

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(self.length, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    @property
    def most_objects(self) -> int:
        return self.source.num[1]

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: dots of the category per image; nothing else is drawn."""
        return np.asarray([self.source.counts(self.name, i)[0] for i in range(self.length)], dtype=np.int64)

    def sample(self, index: int, epoch: int) -> Sample:
        """The same in every epoch."""
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name} has {self.length} samples, asked for {index}")
        return self.source.make(self.name, index)


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not values[0] <= values[1] < float("inf"):
        raise ConfigError(f"data.source.{name} must be [least, most], got {list(values)}")
    return float(values[0]), float(values[1])


def _whole(name: str, values: Sequence[int]) -> tuple[int, int]:
    least, most = _range(name, values)
    if least < 0 or least != int(least) or most != int(most):
        raise ConfigError(f"data.source.{name} must be [least, most], whole numbers that are not negative, got {list(values)}")
    return int(least), int(most)


def _subset(name: str, chosen: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
        raise ConfigError(f"data.source.{name} must be different names out of {', '.join(known)}, got {list(chosen)}")
    return tuple(chosen)
