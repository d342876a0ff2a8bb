"""What data sources yield: one image with its objects, and the untouched truth of a whole split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Object:
    """One annotated thing. ``box_xyxy_px``: float xyxy in source pixels, extents [0, W] x [0, H]."""

    desc: str
    box_xyxy_px: tuple[float, float, float, float] | None = None
    point_px: tuple[float, float] | None = None
    category_id: int | None = None
    iscrowd: bool = False
    annotation_id: int | None = None


@dataclass(frozen=True)
class Sample:
    """One image as the data source sees it; ``objects`` are training targets: checked, without crowds.

    Args:
        id: unique within the split; for COCO the image id.
        image: path (opened in the worker) or a PIL image (synthetic data).
        width, height: size of the displayed frame, to which boxes refer (after EXIF transposition).
        objects: in file order.
        phrase: referring phrase, when the task is grounding.
        class_list: names to put into the prompt, absent classes included.
        meta: anything a source wants to keep (file name, seed); not read by the pipeline.
    """

    id: int | str
    image: Path | Image.Image
    width: int
    height: int
    objects: tuple[Object, ...]
    phrase: str | None = None
    class_list: tuple[str, ...] | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GroundTruth:
    """The untouched truth of a split, at original resolution; evaluation reads nothing else.

    Shapes: I images, A annotations (crowds and zero-area boxes included), C categories.

    Args:
        image_ids: int64[I], ascending and unique.
        image_wh: float64[I, 2], (width, height) in source pixels.
        category_ids, category_names: C of each, ids ascending. Descriptions are matched to names.
        ann_ids: int64[A], unique.
        ann_image_id, ann_category_id: int64[A].
        ann_xyxy_px: float64[A, 4], exactly the annotated box.
        ann_area: float64[A], COCO's ``area`` (may be a mask's area; decides the size bucket).
        ann_iscrowd: bool[A].
    """

    image_ids: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    ann_ids: NDArray[np.int64]
    ann_image_id: NDArray[np.int64]
    ann_category_id: NDArray[np.int64]
    ann_xyxy_px: NDArray[np.float64]
    ann_area: NDArray[np.float64]
    ann_iscrowd: NDArray[np.bool_]

    def subset(self, image_ids: Sequence[int]) -> GroundTruth:
        """The truth of some images; an id that does not exist is a ``KeyError``."""
        wanted = np.unique(np.asarray(image_ids, dtype=np.int64))
        missing = np.setdiff1d(wanted, self.image_ids)
        if missing.size:
            raise KeyError(f"no such image id: {missing[:5].tolist()}")
        keep_image, keep_ann = np.isin(self.image_ids, wanted), np.isin(self.ann_image_id, wanted)
        return GroundTruth(
            self.image_ids[keep_image], self.image_wh[keep_image], self.category_ids, self.category_names,
            self.ann_ids[keep_ann], self.ann_image_id[keep_ann], self.ann_category_id[keep_ann],
            self.ann_xyxy_px[keep_ann], self.ann_area[keep_ann], self.ann_iscrowd[keep_ann],
        )

    def digest(self) -> str:
        """12 hex digits that change with any value; part of the evaluation protocol's hash."""
        sha = hashlib.sha256("\0".join(self.category_names).encode())
        for name in ("image_ids", "image_wh", "category_ids", "ann_ids", "ann_image_id", "ann_category_id", "ann_xyxy_px",
                     "ann_area", "ann_iscrowd"):
            sha.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return sha.hexdigest()[:12]
