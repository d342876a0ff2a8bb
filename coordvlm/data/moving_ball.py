"""Synthetic clips whose answer is a place: balls on a random walk, one of which is asked for.

Two kinds of question:

- named: every ball has a colour of its own and the text says which one is meant. Where is it in the last frame? No earlier frame is needed,
  but a frame's token has to be read for the ball that is asked for, or hold them all.
- followed: all balls look the same. A ring in frame 0 marks one, which has to be followed from frame to frame.

Every clip is a pure function of (seed, split, index). Balls are drawn by the share of each pixel that they cover, so the centre of what is
painted is the annotated one. Shapes: T frames, n balls, S side of a frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Clip, ClipTruth, Object
from coordvlm.data.canvas import with_noise
from coordvlm.data.dots import coverage, place_dots
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.shapes import COLOURS
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError

#: Part of ``digests``: raise it when the same arguments no longer give the same clips.
GENERATOR_VERSION = 1
#: Name -> RGB, each far from the others and from the ground.
PALETTE = {**COLOURS, "cyan": (60, 200, 215), "magenta": (225, 70, 175), "white": (225, 225, 225), "black": (20, 20, 20)}
_RGB = np.array(list(PALETTE.values()), dtype=np.float32)
#: Grey levels: of each channel of a ball's colour, up or down; and of the ground (least, most).
_JITTER, _GROUND = 10.0, (75.0, 105.0)
#: The ring around a marked ball begins and ends so many px outside it.
_RING = (1.0, 3.0)
#: Moves of one ball that are tried before it stays where it is for a frame.
_MOVES = 12
KIND = "ball"


@dataclass(frozen=True)
class Balls:
    """What is in a clip; ball 0 is the one asked for.

    Args:
        look: int64[n], position in ``PALETTE``. centre: float64[T, n, 2] (x, y) px. radius: px, of all balls.
        rgb: float32[n, 3]. ground: grey level.
    """

    look: NDArray[np.int64]
    centre: NDArray[np.float64]
    radius: float
    rgb: NDArray[np.float32]
    ground: float

    @property
    def point(self) -> tuple[float, float]:
        """(x, y) px of the ball asked for in the last frame."""
        x, y = self.centre[-1, 0].tolist()
        return x, y


class MovingBall:
    """Seeded clips of moving balls with one question each. A ``DataSource``.

    Args:
        frame_size: side S of a frame, px. num_frames: T.
        balls: (least, most) balls of a clip of val and test, the one asked for included. train_balls: the same of training clips, which
            may have fewer: a ball that is alone is found without looking anywhere, and teaches what places are.
        radius: (least, most) px; all balls of a clip have the same. min_gap: free px between any two, in every frame.
        step: px a ball moves from one frame to the next, at most: the direction is uniform, and so is the place on the disc.
        named: whether colours differ and the text names one; else all balls look the same and a ring marks one in frame 0.
        question: with ``{which}``, which stands for the colour, or for "marked". The fewer other words, the sooner a model with random
            weights reads the one that matters.
        num_train, num_val, num_test: clips per split.
        seed: of the training clips. eval_seed: of val and test.
    Raises:
        ConfigError: an option has no meaning, balls do not surely fit, or there are not enough colours.
    """

    generated = True

    def __init__(
        self, *, frame_size: int, num_frames: int, balls: Sequence[int], train_balls: Sequence[int], radius: Sequence[float],
        min_gap: float, step: float, named: bool, question: str, num_train: int, num_val: int, num_test: int, seed: int, eval_seed: int,
    ) -> None:
        self.size, self.num_frames, self.named = int(frame_size), int(num_frames), named
        self.gap, self.step = float(min_gap), float(step)
        if not isinstance(named, bool):
            raise ConfigError(f"data.source.named must be true or false, got {named!r}")
        if question.count("{which}") != 1 or "{" in question.replace("{which}", ""):
            raise ConfigError(f"data.source.question must contain {{which}} once and no other field, got {question!r}")
        self.template = question
        self.balls, self.train_balls = _numbers("balls", balls), _numbers("train_balls", train_balls)
        if len(radius) != 2 or not 1 <= radius[0] <= radius[1] < math.inf:
            raise ConfigError(f"data.source.radius must be [least, most] px, at least 1, got {list(radius)}")
        self.radius = (float(radius[0]), float(radius[1]))
        if self.num_frames < (1 if named else 2):
            raise ConfigError(
                f"data.source.num_frames={num_frames}: a clip has at least 1 frame, and 2 where the ball is marked in the first "
                "(named=false)"
            )
        if not (1 <= self.gap < math.inf and 0 <= self.step < math.inf):
            raise ConfigError(f"data.source: min_gap must be at least 1 px and step not negative, got {min_gap!r} and {step!r}")
        most = max(self.balls[1], self.train_balls[1])
        if named and most > len(PALETTE):
            raise ConfigError(f"data.source: {most} balls, but with named=true each has its own colour, and there are {len(PALETTE)}")
        if (2 * self.radius[1] + self.gap) * math.ceil(math.sqrt(most)) > self.size:
            raise ConfigError(
                f"data.source: {most} balls of {self.radius[1]:g} px radius, {self.gap:g} px apart, do not surely fit into "
                f"{self.size} px; lower balls, radius or min_gap"
            )
        self._lengths = dict(zip(SPLITS, (int(num_train), int(num_val), int(num_test)), strict=True))
        if min(self._lengths.values()) < 0:
            raise ConfigError(f"data.source.num_train, num_val and num_test must not be negative, got {self._lengths}")
        self._seeds = {"train": int(seed), "val": int(eval_seed), "test": int(eval_seed)}
        self._truths: dict[str, ClipTruth] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """What is asked for."""
        return tuple(f"{colour} ball" for colour in PALETTE) if self.named else ("marked ball",)

    def split(self, name: str) -> BallSplit:
        self._check(name)
        return BallSplit(self, name, self._lengths[name])

    def dropped(self, name: str) -> dict[str, int]:
        """Nothing is ever dropped."""
        self._check(name)
        return {}

    def digests(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(repr((
                GENERATOR_VERSION, self.size, self.num_frames, self._balls_of(name), self.radius, self.gap, self.step, self.named,
                self.template, length, self._seeds[name], name,
            )).encode()).hexdigest()[:12]
            for name, length in self._lengths.items()
        }  # fmt: skip

    def truth(self, name: str) -> ClipTruth:
        """Without drawing anything; kept after the first call."""
        self._check(name)
        if name not in self._truths:
            length = self._lengths[name]
            found = [self.layout(name, i)[0] for i in range(length)]
            self._truths[name] = ClipTruth.of(
                ids=range(length), questions=[self.question(b) for b in found], answers=[""] * length, kinds=[KIND] * length,
                source_clip=range(length), sizes=[(self.size, self.size)] * length, points=[b.point for b in found],
            )
        return self._truths[name]

    def _balls_of(self, split: str) -> tuple[int, int]:
        return self.train_balls if split == "train" else self.balls

    # ------------------------------------------------------------------ one clip
    def layout(self, split: str, index: int) -> tuple[Balls, np.random.Generator]:
        """What is in a clip, and the generator that draws its noise."""
        rng = keyed_generator(self._seeds[split], "moving_ball", split, index)
        least, most = self._balls_of(split)
        num, radius = int(rng.integers(least, most + 1)), float(rng.uniform(*self.radius))
        look = rng.permutation(len(PALETTE))[:num] if self.named else np.full(num, rng.integers(len(PALETTE)), dtype=np.int64)
        jitter = rng.uniform(-_JITTER, _JITTER, (num, 3) if self.named else (1, 3)).astype(np.float32)
        first, _ = place_dots(rng, num, self.size, radius, radius, self.gap)
        # Where space is short, a place says how late a ball was drawn: which one is asked for must not depend on it.
        centre = walk(rng, first[rng.permutation(num)], self.num_frames, self.size, radius, self.gap, self.step)
        return Balls(look, centre, radius, _RGB[look] + jitter, float(rng.uniform(*_GROUND))), rng

    def question(self, balls: Balls) -> str:
        return self.template.format(which=tuple(PALETTE)[int(balls.look[0])] if self.named else "marked")

    def render(self, balls: Balls, rng: np.random.Generator) -> NDArray[np.uint8]:
        """uint8[T, S, S, 3]: balls on flat grey, noise of up to 15 grey levels over everything."""
        frames, size = len(balls.centre), self.size
        margin = math.ceil(balls.radius + _RING[1]) + 2  # so that no window is cut
        canvas = np.full((frames, size + 2 * margin, size + 2 * margin, 3), balls.ground, dtype=np.float32)
        if not self.named:
            ring = np.full((1, 3), 255.0 - 15.0, dtype=np.float32)
            _paint(canvas[:1], balls.centre[:1, :1] + margin, balls.radius + _RING[1], ring, balls.radius + _RING[0])
        _paint(canvas, balls.centre + margin, balls.radius, balls.rgb)
        inner = canvas[:, margin:-margin, margin:-margin]
        return np.asarray(with_noise(inner.reshape(frames * size, size, 3), rng)).reshape(frames, size, size, 3)

    def make(self, split: str, index: int) -> Clip:
        """Clip ``index`` of a split."""
        balls, rng = self.layout(split, index)
        frames, question = self.render(balls, rng), self.question(balls)
        where = f"moving_ball {split} {index}"
        return Clip(
            index, Image.fromarray(frames[-1]), self.size, self.size, (Object("answer", point_px=balls.point, annotation_id=index),),
            phrase=question, meta={"file_name": where, "where": where, "split": split}, frames=frames, kind=KIND,
            evidence=(balls.centre[:, 0] / self.size).astype(np.float32),
        )

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")


def _numbers(name: str, values: Sequence[int]) -> tuple[int, int]:
    if len(values) != 2 or not 1 <= values[0] <= values[1] or any(int(n) != n for n in values):
        raise ConfigError(f"data.source.{name} must be [least, most], whole numbers of at least 1, got {list(values)}")
    return int(values[0]), int(values[1])


def walk(
    rng: np.random.Generator, first: NDArray[np.float64], num_frames: int, size: int, radius: float, gap: float, step: float
) -> NDArray[np.float64]:
    """float64[T, n, 2]: centres that start at ``first`` [n, 2] and move by ``step`` px per frame at most.

    Balls move one after the other, in a new order in each frame, and stay inside the frame and ``gap`` px apart. A move that would break
    this is redrawn; a ball for which none is found stays where it is.
    """
    num = len(first)
    length, angle = step * np.sqrt(rng.random((num_frames - 1, num, _MOVES))), rng.uniform(0, 2 * np.pi, (num_frames - 1, num, _MOVES))
    moves = np.stack([length * np.cos(angle), length * np.sin(angle)], -1).tolist()
    orders = [rng.permutation(num).tolist() for _ in range(num_frames - 1)]
    here: list[tuple[float, float]] = [(x, y) for x, y in first.tolist()]
    low, high, apart = radius, size - radius, (2 * radius + gap) ** 2
    frames = [list(here)]
    for order, moved in zip(orders, moves, strict=True):
        for ball in order:
            x0, y0 = here[ball]
            for dx, dy in moved[ball]:
                x, y = x0 + dx, y0 + dy
                if low <= x <= high and low <= y <= high and all(
                    (x - a) ** 2 + (y - b) ** 2 >= apart for other, (a, b) in enumerate(here) if other != ball
                ):
                    here[ball] = (x, y)
                    break
        frames.append(list(here))
    return np.array(frames, dtype=np.float64)


def _paint(
    canvas: NDArray[np.float32], centre: NDArray[np.float64], radius: float, rgb: NDArray[np.float32], hole: float | None = None
) -> None:
    """Discs onto float32[T, h, w, 3] in place; none reaches the edge.

    Args:
        centre: float64[T, n, 2]. rgb: float32[n, 3]. hole: radius that is left out.
    """
    side = 2 * math.ceil(radius) + 3
    corner = np.floor(centre).astype(np.int64) - side // 2
    offset = corner[..., None] + 0.5 + np.arange(side) - centre[..., None]  # [T, n, 2, side], from the centre to the pixels' centres
    share = coverage("dot", offset[:, :, 0], offset[:, :, 1], radius)
    if hole is not None:
        share = share - coverage("dot", offset[:, :, 0], offset[:, :, 1], hole)
    weight = share.astype(np.float32)[..., None]
    for t, row in enumerate(corner.tolist()):
        for n, (left, top) in enumerate(row):
            patch = canvas[t, top : top + side, left : left + side]
            patch += weight[t, n] * (rgb[n] - patch)


@dataclass(frozen=True)
class BallSplit:
    """A ``Split`` of ``MovingBall``; the id of a clip is its index."""

    source: MovingBall
    name: str
    length: int

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(self.length, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, epoch: int) -> Clip:
        """The same in every epoch."""
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name} has {self.length} clips, got index {index}")
        return self.source.make(self.name, index)
