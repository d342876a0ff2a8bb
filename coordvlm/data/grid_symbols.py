"""Synthetic clips that tell whether a model looks where it should: grids of symbols, redrawn in every frame.

Three kinds of question, of which the last two name no place:

- ``qa``: the text names a cell; what stands there in the last frame?
- ``cue``: a ring around one cell of frame 0 (with more than two frames: of the one before the last) says which cell of the last frame is
  asked for. That frame must be read before it is known where the last one is to be read.
- ``global``: what stands in a cell of the last frame that nobody names? The best answer is how often each symbol occurs, so no place is
  better than another, and its loss ends at the entropy of that, not at 0: a ratio of two losses near 0 would be noise.

Every clip is a pure function of (seed, split, index). A cell is as large as a patch, so one place is one patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from coordvlm.contracts import Clip, ClipTruth
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError

#: Part of ``digests``: raise it when the same arguments no longer give the same clips.
GENERATOR_VERSION = 1
SYMBOLS = ("circle", "square", "triangle", "diamond", "cross", "bar")
#: In place of a symbol: nothing.
BLANK = -1
KINDS = ("qa", "cue", "global")
#: Symbols are drawn so many times larger and reduced, so that their edges are smooth.
_FINER = 4
_LARGEST_GRID = 26
#: Grey levels: of symbols (least, most), and of the ground.
_LIGHT, _GROUND = (200.0, 255.0), 20.0


@lru_cache(maxsize=8)
def symbol_masks(cell: int) -> NDArray[np.float32]:
    """float32[symbols + 1, cell, cell], nothing last: the share of each pixel that a symbol covers."""
    big = cell * _FINER
    low, high, mid = 0.2 * big, 0.8 * big, 0.5 * big
    thin = 0.11 * big
    drawn = []
    for name in SYMBOLS:
        image = Image.new("L", (big, big))
        pen = ImageDraw.Draw(image)
        if name == "circle":
            pen.ellipse((low, low, high, high), fill=255)
        elif name == "square":
            pen.rectangle((low, low, high, high), fill=255)
        elif name == "triangle":
            pen.polygon([(mid, low), (high, high), (low, high)], fill=255)
        elif name == "diamond":
            pen.polygon([(mid, low), (high, mid), (mid, high), (low, mid)], fill=255)
        elif name == "cross":
            pen.rectangle((low, mid - thin, high, mid + thin), fill=255)
            pen.rectangle((mid - thin, low, mid + thin, high), fill=255)
        else:
            pen.rectangle((low, mid - thin, high, mid + thin), fill=255)
        drawn.append(np.asarray(image.resize((cell, cell), Image.Resampling.BOX), dtype=np.float32) / 255)
    return np.stack([*drawn, np.zeros((cell, cell), dtype=np.float32)])  # the last one is BLANK, -1


def cell_name(row: int, column: int) -> str:
    """``B3``: column by letter, row by number from 1."""
    return f"{chr(ord('A') + column)}{row + 1}"


@dataclass(frozen=True)
class Grids:
    """What is in a clip. symbols: int64[T, n, n], position in ``SYMBOLS``, or BLANK. cell: (row, column) asked for."""

    kind: str
    symbols: NDArray[np.int64]
    cell: tuple[int, int]


class GridSymbols:
    """Seeded clips with one question each. A ``DataSource``.

    Args:
        grid: cells on a side, n. cell: px of a cell's side; frames have side n * cell. num_frames: T, at least 2 for ``cue``.
        filled: (least, most) cells of a training frame that hold a symbol, uniform; the cell that is asked for always does. Frames of val
            and test are full. Clips with a few symbols are answered without looking at any place, and teach what the symbols are; from full
            ones alone a model sees no difference for a long time, as one cell of 25 is a 25th of what an undecided query reads.
        kinds: out of ``KINDS``, of training clips, which take them in turn. eval_kinds: of val and test. What a model has learned of places
            from words it can use for a cue, which alone says too little at first to learn from.
        noise: grey levels that a pixel is off by, at most; uniform.
        num_train, num_val, num_test: clips per split.
        seed: of the training clips. eval_seed: of val and test.
    Raises:
        ConfigError: an option has no meaning.
    """

    generated = True

    def __init__(
        self, *, grid: int, cell: int, num_frames: int, filled: Sequence[int], kinds: Sequence[str], eval_kinds: Sequence[str],
        noise: float, num_train: int, num_val: int, num_test: int, seed: int, eval_seed: int,
    ) -> None:
        self.grid, self.cell, self.num_frames, self.noise = int(grid), int(cell), int(num_frames), float(noise)
        self._kinds = {"train": _kinds("kinds", kinds), "val": _kinds("eval_kinds", eval_kinds)}
        self._kinds["test"] = self._kinds["val"]
        if not 2 <= self.grid <= _LARGEST_GRID or self.cell < 8:
            raise ConfigError(f"data.source needs 2 to {_LARGEST_GRID} cells a side of at least 8 px, got grid={grid} and cell={cell}")
        if self.num_frames < (2 if any("cue" in k for k in self._kinds.values()) else 1):
            raise ConfigError(f"data.source.num_frames={num_frames}: a cue is seen in the frame before the last, so it needs at least 2")
        least, most = (int(x) for x in filled) if len(filled) == 2 else (0, 0)
        if not 1 <= least <= most <= self.grid**2:
            raise ConfigError(f"data.source.filled must be (least, most), 1 <= least <= most <= {self.grid**2} cells, got {list(filled)}")
        self.filled = (least, most)
        if not 0 <= self.noise <= 64:
            raise ConfigError(f"data.source.noise must lie in [0, 64] grey levels, got {noise!r}")
        self._lengths = dict(zip(SPLITS, (int(num_train), int(num_val), int(num_test)), strict=True))
        if min(self._lengths.values()) < 0:
            raise ConfigError(f"data.source.num_train, num_val and num_test must not be negative, got {self._lengths}")
        self._seeds = {"train": int(seed), "val": int(eval_seed), "test": int(eval_seed)}
        self._truths: dict[str, ClipTruth] = {}

    @property
    def size(self) -> int:
        """Side of a frame in px."""
        return self.grid * self.cell

    @property
    def class_names(self) -> tuple[str, ...]:
        return SYMBOLS

    def split(self, name: str) -> GridSplit:
        self._check(name)
        return GridSplit(self, name, self._lengths[name])

    def dropped(self, name: str) -> dict[str, int]:
        """Nothing is ever dropped."""
        self._check(name)
        return {}

    def digests(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(repr((
                GENERATOR_VERSION, self.grid, self.cell, self.num_frames, self._kinds[name], self.noise, self.filled_of(name), length,
                self._seeds[name], name,
            )).encode()).hexdigest()[:12]
            for name, length in self._lengths.items()
        }  # fmt: skip

    def truth(self, name: str) -> ClipTruth:
        """Without drawing anything; kept after the first call."""
        self._check(name)
        if name not in self._truths:
            length = self._lengths[name]
            grids = [self.grids(name, i)[0] for i in range(length)]
            self._truths[name] = ClipTruth.of(
                ids=range(length), questions=[self.question(g) for g in grids], answers=[self.answer(g) for g in grids],
                kinds=[g.kind for g in grids], source_clip=range(length), sizes=[(self.size, self.size)] * length, points=[None] * length,
            )
        return self._truths[name]

    def filled_of(self, split: str) -> tuple[int, int]:
        """(least, most) cells with a symbol in a frame of a split."""
        return self.filled if split == "train" else (self.grid**2, self.grid**2)

    # ------------------------------------------------------------------ one clip
    def grids(self, split: str, index: int) -> tuple[Grids, np.random.Generator]:
        """What is in a clip, and the generator that draws light and noise."""
        rng = keyed_generator(self._seeds[split], "grid_symbols", split, index)
        kind = self._kinds[split][index % len(self._kinds[split])]
        symbols = rng.integers(len(SYMBOLS), size=(self.num_frames, self.grid, self.grid))
        row, column = (int(x) for x in rng.integers(self.grid, size=2))
        low, high = self.filled_of(split)
        if (number := int(rng.integers(low, high + 1))) < self.grid**2:
            order = rng.random(symbols.shape)
            order[:, row, column] = -1.0  # this cell is filled first
            rank = order.reshape(len(symbols), -1).argsort(1).argsort(1).reshape(symbols.shape)
            symbols[rank >= number] = BLANK
        return Grids(kind, symbols, (row, column)), rng

    def question(self, grids: Grids) -> str:
        """``B3``, ``marked`` or ``any``: short, as every further word dilutes the one that matters while attention is undecided."""
        if grids.kind == "qa":
            return cell_name(*grids.cell)
        return "marked" if grids.kind == "cue" else "any"

    def answer(self, grids: Grids) -> str:
        return SYMBOLS[int(grids.symbols[-1][grids.cell])]

    def render(self, grids: Grids, rng: np.random.Generator) -> NDArray[np.uint8]:
        """uint8[T, S, S, 3]: light symbols on dark ground, grey, with noise."""
        frames, n, cell = len(grids.symbols), self.grid, self.cell
        masks = symbol_masks(cell)[grids.symbols]  # [T, n, n, cell, cell]
        light = rng.uniform(*_LIGHT, size=(frames, n, n, 1, 1)).astype(np.float32)
        picture = _GROUND + masks * (light - _GROUND)
        if grids.kind == "cue":
            marked = picture[(-2, *grids.cell)]
            for edge in (marked[:2], marked[-2:], marked[:, :2], marked[:, -2:]):
                edge[:] = 255
        grey = picture.transpose(0, 1, 3, 2, 4).reshape(frames, n * cell, n * cell)
        if self.noise:
            grey = grey + self.noise * (2 * rng.random(grey.shape, dtype=np.float32) - 1)
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, -1)

    def make(self, split: str, index: int) -> Clip:
        """Clip ``index`` of a split."""
        grids, rng = self.grids(split, index)
        frames = self.render(grids, rng)
        evidence = np.full((self.num_frames, 2), np.nan, dtype=np.float32)
        if grids.kind != "global":
            place = ((grids.cell[1] + 0.5) / self.grid, (grids.cell[0] + 0.5) / self.grid)
            evidence[-1] = place
            if grids.kind == "cue":
                evidence[-2] = place
        where = f"grid_symbols {split} {index}"
        return Clip(
            index, Image.fromarray(frames[-1]), self.size, self.size, (), phrase=self.question(grids),
            meta={"file_name": where, "where": where, "split": split}, frames=frames, answer=self.answer(grids), kind=grids.kind,
            evidence=evidence,
        )

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")


def _kinds(name: str, given: Sequence[str]) -> tuple[str, ...]:
    kinds = tuple(given)
    if unknown := [k for k in kinds if k not in KINDS]:
        raise ConfigError(f"data.source.{name} knows {', '.join(KINDS)}, got {unknown[0]!r}")
    if not kinds or len(set(kinds)) != len(kinds):
        raise ConfigError(f"data.source.{name} must name each kind once, and at least one, got {list(given)}")
    return kinds


@dataclass(frozen=True)
class GridSplit:
    """A ``Split`` of ``GridSymbols``; the id of a clip is its index."""

    source: GridSymbols
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
