"""Phrases about a scene of shapes: what words name, and how to name one shape and no other.

A phrase is built from an expression, which is asked what it names in the scene before it is used; text is written last. Relations
compare centres, ``largest`` and ``smallest`` areas. What is too close to call is neither true nor false, and such a phrase is never used.

Shapes: n shapes of a scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

#: Word -> (axis of the centre, sign): the thing's coordinate times sign is smaller than the reference's.
BESIDE = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
#: Word -> (column of ``Scene.measures``, sign): the least value times sign. Columns: centre x, centre y, area.
EXTREME = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "lowest": (1, -1), "smallest": (2, 1), "largest": (2, -1)}
#: What a shape is called when its kind is not said.
THING = "shape"
KINDS_OF_PHRASE = ("attribute", "relation")
#: Differences that can be called: of centres, as a share of the image's side; of areas, as a ratio.
CENTRE_MARGIN, AREA_RATIO = 0.08, 1.4


@dataclass(frozen=True)
class Scene:
    """``words``: (size, colour, kind) of n shapes, no two alike; ``box``: int64[n, 4] xyxy px; ``side``: of the image, px."""

    words: tuple[tuple[str, str, str], ...]
    box: NDArray[np.int64]
    side: int

    def measures(self) -> NDArray[np.float64]:
        """float64[n, 3]: centre x and y as shares of the image's side, log area in units of a clear difference."""
        box = self.box.astype(np.float64)
        centre = (box[:, :2] + box[:, 2:]) / 2 / self.side / CENTRE_MARGIN
        area = np.log((box[:, 2:] - box[:, :2]).prod(1)) / np.log(AREA_RATIO)
        return np.concatenate([centre, area[:, None]], 1)


@dataclass(frozen=True)
class Plain:
    """Attributes alone: ``small red triangle``. ``said``: (size, colour, kind), None where not said."""

    said: tuple[str | None, str | None, str | None]

    @property
    def text(self) -> str:
        size, colour, kind = self.said
        return " ".join(w for w in (size, colour, kind or THING) if w)

    def named(self, scene: Scene) -> set[int] | None:
        """Every shape the words fit."""
        return {i for i, words in enumerate(scene.words) if all(s in (None, w) for s, w in zip(self.said, words, strict=True))}


@dataclass(frozen=True)
class Extreme:
    """``leftmost circle``, ``largest green shape``: the one of at least two that the plain words fit."""

    word: str
    head: Plain

    @property
    def text(self) -> str:
        return f"{self.word} {self.head.text}"

    def named(self, scene: Scene) -> set[int] | None:
        """One shape, or None where two come too close; nothing unless there are two to compare."""
        fitting = sorted(self.head.named(scene) or ())
        if len(fitting) < 2:
            return set()
        column, sign = EXTREME[self.word]
        value = sign * scene.measures()[fitting, column]
        order = np.argsort(value)
        return {fitting[order[0]]} if value[order[1]] - value[order[0]] >= 1 else None


@dataclass(frozen=True)
class Beside:
    """``square left of the red triangle``; ``reference`` names one shape, which is never the answer."""

    word: str
    head: Plain
    reference: Plain

    @property
    def text(self) -> str:
        return f"{self.head.text} {self.word} the {self.reference.text}"

    def named(self, scene: Scene) -> set[int] | None:
        """Every shape on that side, or None where the reference is not one shape or a shape is hardly on either side."""
        references = self.reference.named(scene) or set()
        if len(references) != 1:
            return None
        axis, sign = BESIDE[self.word]
        centre = sign * scene.measures()[:, axis]
        gap = centre[next(iter(references))] - centre
        fitting = (self.head.named(scene) or set()) - references
        if any(abs(gap[i]) < 1 for i in fitting):
            return None
        return {i for i in fitting if gap[i] > 0}


Expression = Plain | Extreme | Beside
E = TypeVar("E", bound=Expression)


@dataclass(frozen=True)
class Phrase:
    """``target``: index of the one shape named, None: the phrase names nothing here. ``relation``: its word, if it has one."""

    text: str
    target: int | None
    kind: str
    relation: str | None


class Speaker:
    """Finds phrases.

    Args:
        vocabulary: the words there are for size, colour and kind.
        shortest: among the phrases that do, one of the fewest words; False: any.
    """

    def __init__(self, vocabulary: tuple[Sequence[str], Sequence[str], Sequence[str]], *, shortest: bool) -> None:
        self._vocabulary, self._shortest = vocabulary, shortest

    def name(self, scene: Scene, order: Sequence[int], kind: str, rng: np.random.Generator) -> Phrase:
        """A phrase for the first shape of ``order`` that has one of this kind; for the first by its attributes if none has."""
        for target in order if kind == "relation" else ():
            for family in rng.permutation(2).tolist():
                found = self._pick((self._extremes, self._beside)[family](scene, target, rng), scene, {target}, rng)
                if found is not None:
                    return self._phrase(found, target, rng)
        found = self._pick(_plain(scene.words[order[0]]), scene, {order[0]}, rng)
        assert found is not None, "no two shapes of a scene are alike"
        return self._phrase(found, order[0], rng)

    def name_nothing(self, scene: Scene, kind: str, rng: np.random.Generator) -> Phrase:
        """A phrase that fits no shape though its parts do.

        Attributes: each word fits some shape, all together none; where shapes differ too little for that, one word fits none.
        Relation: such a thing is there, and so is the reference, but not on that side; attributes if there is no such phrase.
        """
        if kind == "relation":
            target = int(rng.integers(len(scene.words)))
            found = self._pick(self._beside(scene, target, rng, alone=True), scene, set(), rng)
            if found is not None:
                return self._phrase(found, None, rng)
        present: list[list[str | None]] = [[None, *sorted({w[a] for w in scene.words})] for a in range(3)]
        found = self._pick((Plain((s, c, k)) for s, c, k in product(*present)), scene, set(), rng)
        if found is None:
            absent = [(a, v) for a in range(3) for v in self._vocabulary[a] if v not in present[a]]
            axis, value = absent[int(rng.integers(len(absent)))]
            size, colour, shape = (value if a == axis else w for a, w in enumerate(scene.words[int(rng.integers(len(scene.words)))]))
            found = self._pick((p for p in _plain((size, colour, shape)) if p.said[axis]), scene, set(), rng)
            assert found is not None, "an absent word fits nothing"
        return self._phrase(found, None, rng)

    def _extremes(self, scene: Scene, target: int, rng: np.random.Generator) -> Iterator[Expression]:
        return (Extreme(word, head) for word in EXTREME for head in _plain(scene.words[target]))

    def _beside(self, scene: Scene, target: int, rng: np.random.Generator, *, alone: bool = False) -> Iterator[Expression]:
        """alone: also with words that fit the target and nothing else, where the relation adds nothing to them."""
        heads = [h for h in _plain(scene.words[target]) if alone or len(h.named(scene) or ()) > 1]
        for other, words in enumerate(scene.words):
            if other != target and heads:
                reference = self._pick(_plain(words), scene, {other}, rng)
                assert reference is not None, "no two shapes of a scene are alike"
                yield from (Beside(word, head, reference) for word in BESIDE for head in heads)

    def _pick(self, expressions: Iterable[E], scene: Scene, wanted: set[int], rng: np.random.Generator) -> E | None:
        """A random one of those that name exactly ``wanted``."""
        pool = list(expressions)
        shuffled = [pool[i] for i in rng.permutation(len(pool)).tolist()]
        if self._shortest:
            shuffled.sort(key=lambda e: len(e.text.split()))
        return next((e for e in shuffled if e.named(scene) == wanted), None)

    def _phrase(self, found: Expression, target: int | None, rng: np.random.Generator) -> Phrase:
        text = f"the {found.text}" if rng.random() < 0.5 else found.text
        if isinstance(found, Plain):
            return Phrase(text, target, "attribute", None)
        return Phrase(text, target, "relation", found.word)


def _plain(words: tuple[str, str, str]) -> Iterator[Plain]:
    """The eight ways to say some of a shape's attributes; the last one says none."""
    return (Plain((size, colour, kind)) for size, colour, kind in product(*((word, None) for word in words)))
