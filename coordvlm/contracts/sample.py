"""What data sources yield: one image with its objects, and the untouched truth of a whole split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Description of the thing a phrase names. Grounding has this one category; the phrase itself is in ``Sample.phrase``.
TARGET = "target"


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
        phrase: referring phrase, when the task is grounding. Then ``objects`` holds the one thing it names, described as ``TARGET``, or
            nothing: the phrase names nothing in the image and the answer is "none".
        class_list: names to put into the prompt, absent classes included.
        category: what is to be counted, when the task is counting. Then ``objects`` holds every thing of that category, described by it
            and with its ``point_px``; other things in the image are not listed.
        meta: anything a source wants to keep (file name, seed). The pipeline reads ``where``, what errors name, and in counting ``split``:
            samples of ``train`` get noisy marks and another question in every epoch.
    """

    id: int | str
    image: Path | Image.Image
    width: int
    height: int
    objects: tuple[Object, ...]
    phrase: str | None = None
    class_list: tuple[str, ...] | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
    category: str | None = None


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


@dataclass(frozen=True)
class PhraseTruth(GroundTruth):
    """The truth of grounding: each *phrase* stands where an image stands in detection, with one box or none.

    ``image_ids`` are sample ids (one per phrase); there is one category, ``TARGET``; I phrases.

    Args:
        phrases: I phrases, as in ``Sample.phrase``.
        source_image: int64[I], equal for phrases on the same image: what the bootstrap draws, as phrases of one image are not independent.
    """

    phrases: tuple[str, ...] = ()
    source_image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.phrases) == len(self.source_image) == len(self.image_ids):
            raise ValueError(
                f"{len(self.image_ids)} samples need as many phrases and images, got {len(self.phrases)} and {len(self.source_image)}"
            )
        if len(np.unique(self.ann_image_id)) != len(self.ann_image_id):
            raise ValueError("a phrase has one box or none")

    def subset(self, image_ids: Sequence[int]) -> PhraseTruth:
        """The truth of some phrases; an id that does not exist is a ``KeyError``."""
        kept = super().subset(image_ids)
        at = np.searchsorted(self.image_ids, kept.image_ids)
        values = {f.name: getattr(kept, f.name) for f in fields(GroundTruth)}
        return PhraseTruth(**values, phrases=tuple(self.phrases[i] for i in at.tolist()), source_image=self.source_image[at])

    def digest(self) -> str:
        """12 hex digits that change with any value, phrases included."""
        sha = hashlib.sha256(super().digest().encode())
        sha.update("\0".join(self.phrases).encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(self.source_image).tobytes())
        return sha.hexdigest()[:12]

    @classmethod
    def of(
        cls, *, ids: Sequence[int], phrases: Sequence[str], source_image: Sequence[int], image_wh: NDArray[np.float64],
        boxes: Sequence[Sequence[float] | None],
    ) -> PhraseTruth:
        """From one row per phrase, in any order. boxes: xyxy in source pixels; None: the phrase names nothing."""
        order = np.argsort(np.asarray(ids, dtype=np.int64), kind="stable")
        sorted_ids = np.asarray(ids, dtype=np.int64)[order]
        found = [(int(i), boxes[at]) for i, at in zip(sorted_ids.tolist(), order.tolist(), strict=True) if boxes[at] is not None]
        xyxy = np.asarray([b for _, b in found], dtype=np.float64).reshape(-1, 4)
        return cls(
            sorted_ids, np.asarray(image_wh, dtype=np.float64).reshape(-1, 2)[order], np.ones(1, dtype=np.int64), (TARGET,),
            np.asarray([i for i, _ in found], dtype=np.int64), np.asarray([i for i, _ in found], dtype=np.int64),
            np.ones(len(found), dtype=np.int64), xyxy, (xyxy[:, 2:] - xyxy[:, :2]).prod(1), np.zeros(len(found), dtype=np.bool_),
            phrases=tuple(phrases[i] for i in order.tolist()), source_image=np.asarray(source_image, dtype=np.int64)[order],
        )


@dataclass(frozen=True)
class PointTruth(GroundTruth):
    """The truth of counting: each (image, category) stands where an image stands in detection, with any number of points.

    ``image_ids`` are sample ids; an annotation is a point, kept as a box without an area, so ``subset`` and ``digest`` work alike.

    Args:
        counted: I names of what is counted, as in ``Sample.category``.
        source_image: int64[I], equal for samples on the same image: what the bootstrap draws.
    """

    counted: tuple[str, ...] = ()
    source_image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.counted) == len(self.source_image) == len(self.image_ids):
            raise ValueError(
                f"{len(self.image_ids)} samples need as many categories and images, got {len(self.counted)} and {len(self.source_image)}"
            )

    @property
    def points_px(self) -> NDArray[np.float64]:
        """float64[A, 2], (x, y) in source pixels."""
        return self.ann_xyxy_px[:, :2]

    def points_of(self, sample_id: int) -> NDArray[np.float64]:
        """float64[N, 2] of one sample, in file order."""
        mine: NDArray[np.float64] = self.points_px[self.ann_image_id == sample_id]
        return mine

    def subset(self, image_ids: Sequence[int]) -> PointTruth:
        """The truth of some samples; an id that does not exist is a ``KeyError``."""
        kept = super().subset(image_ids)
        at = np.searchsorted(self.image_ids, kept.image_ids)
        values = {f.name: getattr(kept, f.name) for f in fields(GroundTruth)}
        return PointTruth(**values, counted=tuple(self.counted[i] for i in at.tolist()), source_image=self.source_image[at])

    def digest(self) -> str:
        """12 hex digits that change with any value, categories included."""
        sha = hashlib.sha256(super().digest().encode())
        sha.update("\0".join(self.counted).encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(self.source_image).tobytes())
        return sha.hexdigest()[:12]

    @classmethod
    def of(
        cls, *, ids: Sequence[int], categories: Sequence[str], source_image: Sequence[int], image_wh: NDArray[np.float64],
        points: Sequence[NDArray[np.float64]],
    ) -> PointTruth:
        """From one row per sample, in any order. points: float64[N, 2] of each in source pixels; N may be 0."""
        order = np.argsort(np.asarray(ids, dtype=np.int64), kind="stable").tolist()
        names = tuple(sorted(set(categories)))
        ids_of = {name: i for i, name in enumerate(names, start=1)}
        number = np.asarray([len(points[at]) for at in order], dtype=np.int64)
        sorted_ids = np.asarray(ids, dtype=np.int64)[order]
        xy = np.concatenate([np.asarray(points[at], dtype=np.float64).reshape(-1, 2) for at in order] or [np.zeros((0, 2))])
        category = np.asarray([ids_of[categories[at]] for at in order], dtype=np.int64)
        return cls(
            sorted_ids, np.asarray(image_wh, dtype=np.float64).reshape(-1, 2)[order], np.arange(1, len(names) + 1), names,
            np.arange(1, len(xy) + 1), sorted_ids.repeat(number), category.repeat(number), np.concatenate((xy, xy), 1), np.zeros(len(xy)),
            np.zeros(len(xy), dtype=np.bool_), counted=tuple(categories[at] for at in order),
            source_image=np.asarray(source_image, dtype=np.int64)[order],
        )
