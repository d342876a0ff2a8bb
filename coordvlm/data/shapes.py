"""Synthetic images: coloured shapes on an uneven background, with boxes that are exact to the pixel.

Every sample is a pure function of (seed, split, index). Boxes are decided before anything is painted, so the truth of a split
needs no rendering. Shapes: n shapes in an image of side S px.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import GroundTruth, Object, Sample
from coordvlm.data.canvas import background, with_noise
from coordvlm.data.class_list import ClassList
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError

#: Part of ``digests``: raise it when the same arguments no longer give the same images.
GENERATOR_VERSION = 1
KINDS = ("ellipse", "rectangle", "triangle", "diamond")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (215, 45, 45), "green": (40, 165, 60), "blue": (45, 80, 215),
    "yellow": (220, 205, 45), "purple": (150, 50, 190), "orange": (225, 130, 35),
}
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
#: Full layouts, and positions of one shape, that are tried before shapes are put on a grid instead.
_LAYOUTS, _POSITIONS = 20, 16
#: Free pixels between two boxes, so that neighbours of one colour stay two shapes.
_GAP = 1
_COLOUR_JITTER = 12

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Layout:
    """What is in an image. ``kind, colour``: index into KINDS, COLOURS; ``rgb`` float32[n, 3]; ``box`` int64[n, 4] xyxy."""

    kind: NDArray[np.int64]
    colour: NDArray[np.int64]
    rgb: NDArray[np.float32]
    box: NDArray[np.int64]


@lru_cache(maxsize=4096)
def shape_mask(kind: str, width: int, height: int) -> NDArray[np.bool_]:
    """bool[height, width]: the shape's pixels. The first and last row and column are never empty, so the box is exact."""
    x = np.abs(np.arange(width) + 0.5 - width / 2)[None, :]
    y = np.abs(np.arange(height) + 0.5 - height / 2)[:, None]
    if kind == "rectangle":
        mask = np.ones((height, width), dtype=bool)
    elif kind == "ellipse":
        mask = (2 * x / width) ** 2 + (2 * y / height) ** 2 <= 1
        mask[height // 2, [0, -1]] = mask[[0, -1], width // 2] = True
    elif kind == "triangle":
        mask = x <= np.maximum((np.arange(height)[:, None] + 1) / height * width / 2, 0.5)
    else:
        mask = 2 * x / width + 2 * y / height <= 1 + 1 / min(width, height)
    mask.flags.writeable = False
    return mask


def _apart(box: tuple[int, int, int, int], others: Sequence[tuple[int, int, int, int]]) -> bool:
    x1, y1, x2, y2 = box
    return all(x1 >= c + _GAP or a >= x2 + _GAP or y1 >= d + _GAP or b >= y2 + _GAP for a, b, c, d in others)


def place_boxes(
    rng: np.random.Generator, num: int, size: int, low: int | NDArray[np.int64], high: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """int64[num, 4] disjoint boxes, sides in [low, high] px, inside [0, size]. Always all of them, always in bounded time.

    A layout that does not fit is redrawn as a whole (which favours smaller sides when space is short); after 20 of them the
    shapes go into random cells of a grid. The caller guarantees ``(low + 1) * ceil(sqrt(num)) <= size``.

    Args:
        low, high: of all boxes, or int64[num, 1] of each.
    """
    for _ in range(_LAYOUTS):
        sides = rng.integers(low, high + 1, (num, 2)).tolist()
        spots = rng.random((num, _POSITIONS, 2)).tolist()
        boxes: list[tuple[int, int, int, int]] = []
        for (width, height), candidates in zip(sides, spots, strict=True):
            for u, v in candidates:
                x, y = int(u * (size - width + 1)), int(v * (size - height + 1))
                if _apart((x, y, x + width, y + height), boxes):
                    boxes.append((x, y, x + width, y + height))
                    break
            else:
                break
        if len(boxes) == num:
            return np.array(boxes, dtype=np.int64)
    cells = int(np.ceil(np.sqrt(num)))
    cell = size // cells
    chosen = rng.choice(cells * cells, size=num, replace=False)
    side = rng.integers(low, np.minimum(high, cell - _GAP) + 1, (num, 2))
    offset = (rng.random((num, 2)) * (cell - _GAP - side + 1)).astype(np.int64)
    corner = np.stack([chosen % cells, chosen // cells], 1) * cell + offset
    return np.concatenate([corner, corner + side], 1)


def colour_values(colour: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """float32[n, 3]: each colour (index into COLOURS) with up to 12 grey levels of jitter per channel."""
    return _PALETTE[colour] + rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER, (len(colour), 3)).astype(np.float32)


def paint(size: int, layout: Layout, rng: np.random.Generator) -> Image.Image:
    """RGB image: a background, the shapes without anti-aliasing, noise."""
    canvas = background(size, rng)
    for kind, rgb, (x1, y1, x2, y2) in zip(layout.kind.tolist(), layout.rgb, layout.box.tolist(), strict=True):
        canvas[y1:y2, x1:x2][shape_mask(KINDS[kind], x2 - x1, y2 - y1)] = rgb
    return with_noise(canvas, rng)


class Shapes:
    """Seeded images of coloured shapes; described as ``red ellipse``. A ``DataSource``.

    Args:
        image_size: side S of the square image, px.
        num_shapes: (least, most) shapes of an image, both included, uniform.
        side_fraction: (least, most) side of a shape as a share of S; width and height are drawn separately.
        kinds, colours: names out of ``KINDS`` and ``COLOURS``; a class is a pair and has the same id whatever else is listed.
        num_train, num_val, num_test: images per split; made on the fly.
        seed: of the training images. eval_seed: of val and test, kept apart so that runs of different seeds are scored on the
            same images. Splits never share a stream, whatever the seeds.
        class_list, num_absent: names in the prompt, see ``ClassList``.
    """

    #: Images are made up: an audit looks at some of them.
    generated = True

    def __init__(
        self, *, image_size: int, num_shapes: Sequence[int], side_fraction: Sequence[float], kinds: Sequence[str],
        colours: Sequence[str], num_train: int, num_val: int, num_test: int, seed: int, eval_seed: int, class_list: str,
        num_absent: int,
    ) -> None:
        self.size = int(image_size)
        self.num_shapes = _pair("num_shapes", num_shapes, int)
        self.side_px = tuple(round(f * self.size) for f in _pair("side_fraction", side_fraction, float))
        self._kinds = _subset("kinds", kinds, KINDS)
        self._colours = _subset("colours", colours, tuple(COLOURS))
        self._lengths = dict(zip(SPLITS, (int(num_train), int(num_val), int(num_test)), strict=True))
        if min(self._lengths.values()) < 0:
            raise ConfigError(f"data.source.num_train, num_val and num_test must not be negative, got {self._lengths}")
        self._seeds = {"train": int(seed), "val": int(eval_seed), "test": int(eval_seed)}
        if self.num_shapes[0] < 0 or self.side_px[0] < 3 or self.side_px[1] > self.size:
            raise ConfigError(
                f"data.source: sides must be 3 to {self.size} px and num_shapes not negative, got sides {self.side_px} px, "
                f"num_shapes {self.num_shapes}"
            )
        if (self.side_px[0] + _GAP) * int(np.ceil(np.sqrt(self.num_shapes[1]))) > self.size:
            raise ConfigError(
                f"data.source: {self.num_shapes[1]} shapes of at least {self.side_px[0]} px do not surely fit into "
                f"{self.size} px; lower num_shapes or side_fraction"
            )
        self._class_list = ClassList(class_list, int(num_absent), int(seed))
        self._truths: dict[str, GroundTruth] = {}

    @cached_property
    def _categories(self) -> Mapping[int, str]:
        """Class id -> name. Ids count all pairs of KINDS x COLOURS from 1, so a shorter list keeps them."""
        names = list(COLOURS)
        return {k * len(names) + c + 1: f"{names[c]} {KINDS[k]}" for k in sorted(self._kinds) for c in sorted(self._colours)}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._categories.values())

    def split(self, name: str) -> ShapesSplit:
        self._check(name)
        return ShapesSplit(self, name, self._lengths[name])

    def dropped(self, name: str) -> Mapping[str, int]:
        """Nothing is ever dropped: boxes are right by construction."""
        self._check(name)
        return {}

    def digests(self) -> Mapping[str, str]:
        return {
            name: hashlib.sha256(repr((
                GENERATOR_VERSION, self.size, self.num_shapes, self.side_px, self._kinds, self._colours, length,
                self._seeds[name], name,
            )).encode()).hexdigest()[:12]
            for name, length in self._lengths.items()
        }

    def truth(self, name: str) -> GroundTruth:
        """From layouts alone, kept after the first call; about 0.05 ms per image."""
        self._check(name)
        if name not in self._truths:
            layouts = [self.layout(name, i)[0] for i in range(self._lengths[name])]
            counts = np.array([len(layout.box) for layout in layouts], dtype=np.int64)
            kind, colour, boxes = (
                np.concatenate([getattr(layout, field) for layout in layouts]) if layouts else np.zeros(shape, np.int64)
                for field, shape in (("kind", 0), ("colour", 0), ("box", (0, 4)))
            )
            image = np.repeat(np.arange(len(layouts), dtype=np.int64), counts)
            xyxy = boxes.astype(np.float64)
            ids = [self._annotation_ids(i, n) for i, n in enumerate(counts.tolist())]
            self._truths[name] = GroundTruth(
                image_ids=np.arange(len(layouts), dtype=np.int64), image_wh=np.full((len(layouts), 2), float(self.size)),
                category_ids=np.array(list(self._categories), dtype=np.int64), category_names=self.class_names,
                ann_ids=np.concatenate(ids or [np.zeros(0, np.int64)]),
                ann_image_id=image, ann_category_id=kind * len(COLOURS) + colour + 1, ann_xyxy_px=xyxy,
                ann_area=(xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]), ann_iscrowd=np.zeros(len(image), dtype=bool),
            )
        return self._truths[name]

    def _annotation_ids(self, index: int, num: int) -> NDArray[np.int64]:
        return index * self.num_shapes[1] + np.arange(1, num + 1, dtype=np.int64)

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")

    def layout(self, split: str, index: int) -> tuple[Layout, np.random.Generator]:
        """What is in an image, and the generator that paints its background."""
        rng = keyed_generator(self._seeds[split], "shapes", split, index)
        num = int(rng.integers(self.num_shapes[0], self.num_shapes[1] + 1))
        kind = np.asarray(self._kinds, dtype=np.int64)[rng.integers(len(self._kinds), size=num)]
        colour = np.asarray(self._colours, dtype=np.int64)[rng.integers(len(self._colours), size=num)]
        rgb = colour_values(colour, rng)
        box = place_boxes(rng, num, self.size, *self.side_px) if num else np.zeros((0, 4), dtype=np.int64)
        return Layout(kind, colour, rgb, box), rng

    def render(self, layout: Layout, rng: np.random.Generator) -> Image.Image:
        """See ``paint``."""
        return paint(self.size, layout, rng)

    def make(self, split: str, index: int, epoch: int) -> Sample:
        """Sample ``index`` of a split; the epoch only moves the absent names of the class list."""
        layout, rng = self.layout(split, index)
        category = (layout.kind * len(COLOURS) + layout.colour + 1).tolist()
        ids = self._annotation_ids(index, len(category)).tolist()
        objects = tuple(
            Object(self._categories[c], box_xyxy_px=tuple(map(float, box)), category_id=c, annotation_id=i)  # type: ignore[arg-type]
            for c, box, i in zip(category, layout.box.tolist(), ids, strict=True)
        )
        names = self._class_list.choose(self.class_names, {o.desc for o in objects}, epoch=epoch, sample_id=index)
        return Sample(index, self.render(layout, rng), self.size, self.size, objects, class_list=names, meta={"split": split})


@dataclass(frozen=True)
class ShapesSplit:
    """A ``Split`` of ``Shapes``; the id of a sample is its index."""

    source: Shapes
    name: str
    length: int

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(self.length, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    @property
    def most_objects(self) -> int:
        return self.source.num_shapes[1]

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: shapes per image; about 0.05 ms each."""
        return np.asarray([len(self.source.layout(self.name, i)[0].box) for i in range(self.length)], dtype=np.int64)

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name} has {self.length} samples, asked for {index}")
        return self.source.make(self.name, index, epoch)


def _pair(name: str, values: Sequence[N], kind: type[N]) -> tuple[N, N]:
    if len(values) != 2 or values[0] > values[1]:
        raise ConfigError(f"data.source.{name} must be [least, most], got {list(values)}")
    return kind(values[0]), kind(values[1])


def _subset(name: str, chosen: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    unknown = [c for c in chosen if c not in known]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(f"data.source.{name} must be different names out of {', '.join(known)}, got {list(chosen)}")
    return tuple(known.index(c) for c in chosen)
