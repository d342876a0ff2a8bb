"""Synthetic phrases: images of coloured shapes, and words that name exactly one of them, or none.

Every sample is a pure function of (seed, split, index). ``phrases_per_image`` consecutive samples share one image. Images of train,
val and test are drawn from separate streams, so no test image is ever trained on; the phrases themselves are few and recur in all splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import TARGET, Object, PhraseTruth, Sample
from coordvlm.data.phrase_grammar import KINDS_OF_PHRASE, Phrase, Scene, Speaker
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.shapes import COLOURS, KINDS, Layout, colour_values, paint, place_boxes
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError

#: Part of ``digests``: raise it when the same arguments no longer give the same images and phrases.
GENERATOR_VERSION = 1
WORDINGS = ("shortest", "any")


class Phrases:
    """Seeded images of shapes with one referring phrase a sample. A ``DataSource``; its one class is ``TARGET``.

    Args:
        image_size: side S of the square image, px.
        num_shapes: (least, most) shapes of an image, both included, uniform. No two shapes of an image are alike in size, colour and kind.
        sizes: name -> (least, most) side as a share of S; width and height are drawn separately. The ranges must not meet.
        alone: share of *training* images that hold a single shape, whatever is said of it: what to box is learned there, and which one
            elsewhere. From random weights the first does not come without it (measured). val and test have none.
        kinds, colours: names out of ``KINDS`` and ``COLOURS``.
        shared: probability in [0, 1) that an attribute of a further shape is copied from one drawn before: distractors.
        phrases: weights of the kinds of phrase, ``attribute`` (``small red triangle``) and ``relation`` (``the square left of the red
            triangle``, ``largest green shape``). An image without a clear relation gets an attribute phrase, and ``meta`` says so.
        wording: ``shortest`` (one of the shortest phrases that do) or ``any`` (with more attributes than it needs, too).
        negatives: share of phrases that name nothing in their image; the answer to these is ``none``.
        phrases_per_image: consecutive phrases about one image; they name different shapes as long as there are enough.
        num_train, num_val, num_test: phrases per split; made on the fly.
        seed: of the training images. eval_seed: of val and test, kept apart so that runs of different seeds are scored on the same.
    Raises:
        ConfigError: an option has no meaning, or shapes do not surely fit or cannot surely differ.
    """

    #: Images are made up: an audit looks at some of them.
    generated = True

    def __init__(
        self, *, image_size: int, num_shapes: Sequence[int], alone: float, sizes: Mapping[str, Sequence[float]], kinds: Sequence[str],
        colours: Sequence[str], shared: float, phrases: Mapping[str, float], wording: str, negatives: float, phrases_per_image: int,
        num_train: int, num_val: int, num_test: int, seed: int, eval_seed: int,
    ) -> None:
        self._side = int(image_size)
        self._num_shapes = _checked_range(num_shapes)
        self._size_names = tuple(sizes)
        self._sides_px = _sides(sizes, self._side)
        self._kinds, self._colours = _names("kinds", kinds, KINDS), _names("colours", colours, tuple(COLOURS))
        self._looks = np.array(list(product(range(len(sizes)), range(len(colours)), range(len(kinds)))), dtype=np.int64)
        self._shared, self._negatives, self._alone = _share("shared", shared), _share("negatives", negatives), _share("alone", alone)
        self._weights = _weights(phrases)
        if wording not in WORDINGS:
            raise ConfigError(f"data.source.wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
        if phrases_per_image < 1:
            raise ConfigError(f"data.source.phrases_per_image must be at least 1, got {phrases_per_image}")
        self._per_image, self._wording = int(phrases_per_image), wording
        self._speaker = Speaker((self._size_names, self._colours, self._kinds), shortest=wording == "shortest")
        self._lengths = dict(zip(SPLITS, (int(num_train), int(num_val), int(num_test)), strict=True))
        if min(self._lengths.values()) < 0:
            raise ConfigError(f"data.source.num_train, num_val and num_test must not be negative, got {self._lengths}")
        self._seeds = {"train": int(seed), "val": int(eval_seed), "test": int(eval_seed)}
        most = self._num_shapes[1]
        if most + (negatives > 0) > len(self._looks):
            raise ConfigError(
                f"data.source: {len(self._looks)} combinations of size, colour and kind are too few for {most} different shapes"
                + (" and one that is absent" if negatives > 0 else "")
            )
        if (int(self._sides_px.max(0)[0]) + 1) * int(np.ceil(np.sqrt(most))) > self._side:
            raise ConfigError(
                f"data.source: {most} shapes of at least {self._sides_px.max(0)[0]} px do not surely fit into {self._side} px; lower "
                "num_shapes or sizes"
            )
        self._truths: dict[str, PhraseTruth] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        return (TARGET,)

    def split(self, name: str) -> PhrasesSplit:
        self._check(name)
        return PhrasesSplit(self, name, self._lengths[name])

    def dropped(self, name: str) -> Mapping[str, int]:
        """Nothing is ever dropped: phrases and boxes are right by construction."""
        self._check(name)
        return {}

    def digests(self) -> Mapping[str, str]:
        return {
            name: hashlib.sha256(repr((
                GENERATOR_VERSION, self._side, self._num_shapes, self._alone if name == "train" else 0.0, self._size_names,
                self._sides_px.tolist(), self._kinds, self._colours, self._shared, self._weights.tolist(), self._wording,
                self._negatives, self._per_image, length, self._seeds[name], name,
            )).encode()).hexdigest()[:12]
            for name, length in self._lengths.items()
        }

    def truth(self, name: str) -> PhraseTruth:
        """From scenes alone, kept after the first call; below 1 ms per phrase."""
        self._check(name)
        if name not in self._truths:
            length = self._lengths[name]
            phrases, boxes = [], []
            for index in range(length):
                scene, _, _ = self.scene(name, index // self._per_image)
                phrase = self.phrase(name, index, scene)
                phrases.append(phrase.text)
                boxes.append(None if phrase.target is None else [float(v) for v in scene.box[phrase.target]])
            self._truths[name] = PhraseTruth.of(
                ids=range(length), phrases=phrases, source_image=[i // self._per_image for i in range(length)],
                image_wh=np.full((length, 2), float(self._side)), boxes=boxes,
            )
        return self._truths[name]

    def scene(self, split: str, image: int) -> tuple[Scene, Layout, np.random.Generator]:
        """What is in an image, and the generator that paints its background."""
        rng = keyed_generator(self._seeds[split], "phrases", split, image)
        num = self._draw_num(split, rng)
        look = self._looks[self._draw_looks(num, rng)]
        low, high = (self._sides_px[look[:, 0], i, None] for i in range(2))
        box = place_boxes(rng, num, self._side, low, high)
        words = tuple((self._size_names[s], self._colours[c], self._kinds[k]) for s, c, k in look.tolist())
        colour = np.array([list(COLOURS).index(w[1]) for w in words], dtype=np.int64)
        kind = np.array([KINDS.index(w[2]) for w in words], dtype=np.int64)
        return Scene(words, box, self._side), Layout(kind, colour, colour_values(colour, rng), box), rng

    def num_in_scene(self, split: str, image: int) -> int:
        """How many shapes ``scene`` has; nothing else of it is drawn."""
        return self._draw_num(split, keyed_generator(self._seeds[split], "phrases", split, image))

    def _draw_num(self, split: str, rng: np.random.Generator) -> int:
        num, alone = int(rng.integers(self._num_shapes[0], self._num_shapes[1] + 1)), rng.random() < self._alone
        return 1 if alone and split == "train" else num

    def _draw_looks(self, num: int, rng: np.random.Generator) -> list[int]:
        """Rows of ``_looks``, all different: the first is uniform, each attribute of a further one is copied from one of those
        before with probability ``shared``, else uniform."""
        chosen = [int(rng.integers(len(self._looks)))]
        options = self._looks.max(0) + 1
        for _ in range(num - 1):
            model = self._looks[chosen[int(rng.integers(len(chosen)))]]
            chance = ((1 - self._shared) / options + self._shared * (self._looks == model)).prod(1)
            chance[chosen] = 0
            chosen.append(int(rng.choice(len(chance), p=chance / chance.sum())))
        return chosen

    def phrase(self, split: str, index: int, scene: Scene) -> Phrase:
        """The phrase of sample ``index``; ``scene`` is that of its image."""
        image, turn = divmod(index, self._per_image)
        order = keyed_generator(self._seeds[split], "phrases", split, image, "order").permutation(len(scene.words))
        rng = keyed_generator(self._seeds[split], "phrases", split, image, "phrase", turn)
        kind = KINDS_OF_PHRASE[int(rng.choice(len(KINDS_OF_PHRASE), p=self._weights))]
        if rng.random() < self._negatives:
            return self._speaker.name_nothing(scene, kind, rng)
        return self._speaker.name(scene, np.roll(order, -turn).tolist(), kind, rng)

    def make(self, split: str, index: int) -> Sample:
        """Sample ``index`` of a split. ``meta``: where, scene, kind (of the phrase), relation (its word or None), num_shapes, words."""
        image = index // self._per_image
        scene, layout, rng = self.scene(split, image)
        phrase = self.phrase(split, index, scene)
        objects: tuple[Object, ...] = ()
        if phrase.target is not None:
            x1, y1, x2, y2 = map(float, scene.box[phrase.target].tolist())
            objects = (Object(TARGET, box_xyxy_px=(x1, y1, x2, y2), category_id=1, annotation_id=index),)
        meta = {
            "where": f"phrases {split} {index}", "scene": image, "kind": phrase.kind, "relation": phrase.relation,
            "num_shapes": len(scene.words), "words": tuple(phrase.text.split()),
        }
        return Sample(index, paint(self._side, layout, rng), self._side, self._side, objects, phrase=phrase.text, meta=meta)

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")


@dataclass(frozen=True)
class PhrasesSplit:
    """A ``Split`` of ``Phrases``; the id of a sample is its index."""

    source: Phrases
    name: str
    length: int
    #: A phrase names one thing.
    most_objects: int = 1

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(self.length, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: 1, or 0 where the phrase names nothing."""
        return np.isin(self.ids, self.source.truth(self.name).ann_image_id).astype(np.int64)

    def difficulty(self, by: str) -> NDArray[np.float64] | None:
        """float64[len]: shapes in the image for ``objects``, drawn alone; else None, and phrases are rated by their words."""
        if by != "objects":
            return None
        images = np.arange(self.length) // self.source._per_image
        counts = [self.source.num_in_scene(self.name, i) for i in range(int(images.max(initial=-1)) + 1)]
        return np.asarray(counts, dtype=np.float64)[images]

    def sample(self, index: int, epoch: int) -> Sample:
        """The same in every epoch."""
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name} has {self.length} samples, asked for {index}")
        return self.source.make(self.name, index)


def _checked_range(num_shapes: Sequence[int]) -> tuple[int, int]:
    if len(num_shapes) != 2 or not 1 <= num_shapes[0] <= num_shapes[1]:
        raise ConfigError(f"data.source.num_shapes must be [least, most] with at least 1 shape, got {list(num_shapes)}")
    return int(num_shapes[0]), int(num_shapes[1])


def _sides(sizes: Mapping[str, Sequence[float]], image_px: int) -> NDArray[np.int64]:
    """int64[sizes, 2]: least and most side in px."""
    if not sizes or any(len(v) != 2 or v[0] > v[1] or not name.strip() for name, v in sizes.items()):
        raise ConfigError(f"data.source.sizes must be name: [least, most], got { {n: list(v) for n, v in sizes.items()} }")
    sides = np.array([[round(f * image_px) for f in v] for v in sizes.values()], dtype=np.int64)
    if sides.min() < 3 or sides.max() > image_px:
        raise ConfigError(f"data.source.sizes: sides must be 3 to {image_px} px, got {dict(zip(sizes, sides.tolist(), strict=True))} px")
    by_least = sides[np.argsort(sides[:, 0])]
    if (by_least[1:, 0] <= by_least[:-1, 1]).any():
        shown = dict(zip(sizes, sides.tolist(), strict=True))
        raise ConfigError(f"data.source.sizes must not meet, or a name would mean two things: {shown} px")
    return sides


def _names(name: str, chosen: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
        raise ConfigError(f"data.source.{name} must be different names out of {', '.join(known)}, got {list(chosen)}")
    return tuple(chosen)


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"data.source.{name} must be in [0, 1), got {value!r}")
    return float(value)


def _weights(phrases: Mapping[str, float]) -> NDArray[np.float64]:
    """float64 of ``KINDS_OF_PHRASE``, sum 1."""
    values = np.array([float(phrases.get(kind, 0.0)) for kind in KINDS_OF_PHRASE])
    if set(phrases) - set(KINDS_OF_PHRASE) or values.min() < 0 or not 0 < values.sum() < np.inf:
        raise ConfigError(f"data.source.phrases must be weights of {' and '.join(KINDS_OF_PHRASE)}, got {dict(phrases)}")
    return np.asarray(values / values.sum(), dtype=np.float64)
