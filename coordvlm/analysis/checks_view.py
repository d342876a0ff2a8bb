"""The splits of a data source as flat arrays, so that a check is a few lines of NumPy whatever the source is.

Shapes: I images, A annotations, C categories, P phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.data.checks import UNREADABLE, Fault

Place = Callable[[int], str]
Loader = Callable[[int], Path | Image.Image]


@dataclass(frozen=True, kw_only=True)
class PhraseView:
    """Phrases of a split.

    Args:
        texts: P. image: int64[P], position of the image, -1 where there is no such image. negative: bool[P], names nothing there.
        xyxy: float64[P, 4], NaN where there is no box. place: position -> file, line or id.
    """

    texts: Sequence[str]
    image: NDArray[np.int64]
    negative: NDArray[np.bool_]
    xyxy: NDArray[np.float64]
    place: Place


@dataclass(frozen=True, kw_only=True)
class SplitView:
    """One split. With phrases, the boxes are the different ones that phrases name.

    Args:
        name: of the split. member: of a mix, that it belongs to; "" where there is no mix. trains: it is learnt from.
        total: samples it has; fewer may be here where they are made up.
        strict: what is broken stops training. generated: made up by the program, so repetition says nothing.
        image_ids: int64[I]. image_wh: float64[I, 2]. files: I, None where the image is not a file. image_place: I -> file, line or id.
        image: position -> the file or the image.
        category_ids: int64[C]. category_names: C.
        xyxy: float64[A, 4], source px. ann_image: int64[A], -1 where there is no such image. ann_category: int64[A]. crowd: bool[A].
        faults: uint8[A], see ``data.checks.Fault``. ann_place, ann_value, rule: of an annotation, for messages.
        left_out: reason -> how many the reader left out.
        embedded: position -> (name, bytes) of the images that the annotation file holds itself.
    """

    name: str
    member: str
    trains: bool
    total: int
    strict: bool
    generated: bool
    image_ids: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    files: Sequence[Path | None]
    image_place: Place
    image: Loader
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    xyxy: NDArray[np.float64]
    ann_image: NDArray[np.int64]
    ann_category: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    faults: NDArray[np.uint8]
    ann_place: Place
    ann_value: Callable[[int], object]
    rule: Callable[[int], str]
    left_out: Mapping[str, int]
    phrases: PhraseView | None = None
    embedded: Mapping[int, tuple[str, bytes]] = field(default_factory=dict)

    @property
    def contents(self) -> list[Path | bytes | None]:
        """I: where the bytes of each image are, None for one that is made up or lost."""
        return [self.embedded[i][1] if i in self.embedded else file for i, file in enumerate(self.files)]

    def image_name(self, index: int) -> str | None:
        """Of a file, or as the annotation file calls the bytes it holds."""
        file = self.files[index]
        return self.embedded[index][0] if index in self.embedded else None if file is None else file.name

    @property
    def good(self) -> NDArray[np.bool_]:
        """bool[A]: boxes with an area, of a known image, without crowds; they may stick out."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        readable = ~np.isin(self.faults, [*UNREADABLE, Fault.INVERTED, Fault.ZERO_AREA])
        return np.asarray(readable & (self.ann_image >= 0) & ~self.crowd & (sides > 0).all(axis=1))

    @property
    def looked_at(self) -> str:
        """``292 images, 3,943 boxes``."""
        counts = [(len(self.image_ids), "image", "images"), (len(self.xyxy), "box", "boxes")]
        if self.phrases is not None:
            counts.insert(0, (len(self.phrases.texts), "phrase", "phrases"))
        words = [f"{number:,} {one if number == 1 else several}" for number, one, several in counts]
        few = f" of {self.total:,} samples made on the fly" if self.is_part else ""
        return ", ".join(words) + few

    def renamed(self, name: str, on_error: str) -> SplitView:
        """The view of a split that was opened as if it were for training."""
        trains = name == "train"
        return replace(self, name=name, trains=trains, strict=trains and on_error == "raise")

    @property
    def is_part(self) -> bool:
        """Whether the split has more samples than are here."""
        return self.generated and self.total > (len(self.image_ids) if self.phrases is None else len(self.phrases.texts))
