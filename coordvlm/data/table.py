"""The annotations of one split as arrays, exactly as written, with every broken one marked instead of repaired.

Shapes: I images, A annotations, C categories. Worker processes share arrays instead of millions of small objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import RULES, UNREADABLE, Fault


def leaves_folder(name: str) -> bool:
    """Whether an image's name is absolute or climbs out of its folder."""
    return name.startswith(("/", "\\")) or (".." in name and ".." in name.replace("\\", "/").split("/"))


@dataclass(frozen=True, kw_only=True)
class BoxTable:
    """What a reader of a format hands to ``detection.BoxSplit``. A format says in a subclass how its places are named.

    Args:
        path: the annotation file, or the folder or list that names the images.
        image_ids: int64[I] in file order, unique. image_wh: float64[I, 2], the displayed frame.
        file_names: I, relative to the split's image folder.
        category_ids: int64[C] ascending, unique. category_names: C.
        ann_ids, ann_image_id, ann_category_id: int64[A] in file order.
        ann_xyxy: float64[A, 4] in source px (NaN where the box is not 4 numbers). ann_area: float64[A]. ann_iscrowd: bool[A].
        faults: uint8[A], see ``checks.Fault``. ann_image: int64[A], position of the image, -1 if unknown.
        values: what the file says, by position, where the arrays cannot tell.
        counts: what the reader left out or changed, by reason.
    """

    path: Path
    image_ids: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    file_names: Sequence[str | None]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    ann_ids: NDArray[np.int64]
    ann_image_id: NDArray[np.int64]
    ann_category_id: NDArray[np.int64]
    ann_xyxy: NDArray[np.float64]
    ann_area: NDArray[np.float64]
    ann_iscrowd: NDArray[np.bool_]
    faults: NDArray[np.uint8]
    ann_image: NDArray[np.int64]
    values: Mapping[int, object]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """bool[A]: no truth can be told from these; whatever has no category is among them."""
        no_category = ~np.isin(self.ann_category_id, self.category_ids)
        return np.isin(self.faults, list(UNREADABLE)) | no_category

    def image_name(self, image: int) -> str:
        """How messages call an image."""
        return str(self.file_names[image])

    def image_place(self, image: int) -> str:
        """Where an image stands, for messages."""
        raise NotImplementedError

    def annotation_place(self, at: int) -> str:
        """Where an annotation stands, for messages."""
        raise NotImplementedError

    def rule(self, at: int) -> str:
        """The rule that a broken annotation breaks."""
        return RULES[Fault(int(self.faults[at]))]

    def value(self, at: int) -> object:
        """The value that breaks it."""
        return self.values.get(at, self.ann_xyxy[at].tolist())

    def candidates(self, image: int, folder: Path) -> list[Path]:
        """Where the file of an image may be, best first."""
        return [folder / str(self.file_names[image])]

    def meta(self, image: int) -> dict[str, object]:
        """What ``Sample.meta`` keeps of an image."""
        return {"file_name": self.image_name(image)}

    def size_text(self, image: int) -> str:
        """``a.png, 40 x 30 px``."""
        width, height = self.image_wh[image].astype(int).tolist()
        return f"{self.image_name(image)}, {width} x {height} px"
