"""Things to count from COCO boxes: the centre of each is its point, and each category in an image a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import Fault
from coordvlm.data.coco_file import CocoTable, read_coco
from coordvlm.data.detection import parse_fields
from coordvlm.data.point_source import PointChoice, PointSource
from coordvlm.data.point_table import PointTable, repeated
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.table import leaves_folder
from coordvlm.utils.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class CocoPointFiles(PointChoice):
    """Where a split lives: annotation file and image folder, relative to the root or absolute."""

    json: str
    images: str


class CocoPoints(PointSource):
    """A ``PointSource`` of COCO instances. Samples are (image, category) pairs; points are in the order of the annotations.

    An image in which a category has a crowd is no sample of it, in any split: how many there are is not annotated. The id of a
    sample is ``position of the image x number of categories + position of the category + 1``, whatever else is chosen.

    Args:
        root, on_error, test: see ``PointSource``.
        splits: name -> the fields of ``CocoPointFiles``.
        absent: so many categories that are not in an image are asked for beside, with nothing to count, drawn from the file's. Only for
            files that annotate every category in every image (LVIS does not).
        seed: draws them for ``train``, eval_seed for every other split.
        replace_underscores: write LVIS's ``traffic_light`` as ``traffic light``.
    Raises:
        DataError: see ``read_coco`` and ``PointSource``; an annotation of no image or category.
        ConfigError: ``absent`` is negative.
    """

    def __init__(
        self, *, root: str | Path, splits: Mapping[str, Mapping[str, object]], test: str | None, absent: int, seed: int, eval_seed: int,
        replace_underscores: bool, on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        if absent < 0:
            raise ConfigError(f"data.source.absent must not be negative, got {absent}")
        given = {name: values for name, values in splits.items() if values is not None}
        files = {name: parse_fields(CocoPointFiles, f"data.source.splits.{name}", values) for name, values in given.items()}
        if not files:
            raise ConfigError("data.source.splits must name a split at least")
        tables = {}
        for name, each in files.items():
            lenient = self.is_lenient(name)
            found = read_coco(self.root / each.json, replace_underscores=replace_underscores, allow_duplicate_images=lenient)
            folder = self.root / each.images
            drawn_with = seed if name == "train" else eval_seed
            tables[name] = (_points(found, folder, absent=int(absent), seed=int(drawn_with), lenient=lenient), each, folder)
        self.use(tables)


@dataclass(frozen=True, kw_only=True)
class CocoPointTable(PointTable):
    """Points that are called by their annotation.

    Args:
        coco: the file. ann: int64[P], position of the annotation.
    """

    coco: CocoTable
    ann: NDArray[np.int64]

    def sample_place(self, at: int) -> str:
        return f"{self.path}: image id {self.image_ids[self.image[at]]}, {self.categories[at]}"

    def place(self, at: int) -> str:
        return self.coco.annotation_place(int(self.ann[at]))

    def rule(self, at: int) -> str:
        if self.faults[at] == Fault.DUPLICATE_POINT:
            return "the centre of a box must be unique in its image and category: one of two could never be counted"
        return self.coco.rule(int(self.ann[at]))

    def value(self, at: int) -> object:
        return self.coco.value(int(self.ann[at]))


def _points(coco: CocoTable, folder: Path, *, absent: int, seed: int, lenient: bool) -> CocoPointTable:
    """A sample for each category in an image, and ``absent`` others."""
    num = len(coco.category_ids)
    spot = np.minimum(np.searchsorted(coco.category_ids, coco.ann_category_id), num - 1)
    blank = coco.faults == Fault.EMPTY_DESCRIPTION
    lost = (coco.ann_image < 0) | (coco.category_ids[spot] != coco.ann_category_id) | blank
    counts: Counter[str] = Counter(coco.counts)
    if lost.any():
        at = int(np.flatnonzero(lost)[0])
        if not lenient:
            raise DataError(f"{coco.rule(at)}; {int(lost.sum())} such annotation(s) belong to no sample",
                            where=coco.annotation_place(at), value=coco.value(at))
        counts.update(Fault(int(fault)).key for fault in coco.faults[lost])
    key = coco.ann_image * num + spot
    crowded = np.unique(key[coco.ann_iscrowd & ~lost])
    counts["crowd"] += len(crowded)
    kept = np.flatnonzero(~lost & ~np.isin(key, crowded))
    kept = kept[np.argsort(key[kept], kind="stable")]
    present = np.unique(key[kept])
    asked = np.concatenate([present, _absent(coco, np.unique(key[~lost]), absent, seed)])
    if not len(asked):
        raise DataError("a split must have something to count", where=coco.path, value="crowds only")
    asked.sort()
    sample = np.searchsorted(asked, key[kept])
    xyxy = coco.ann_xyxy[kept]
    xy = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    faults = np.where(coco.faults[kept] == Fault.BAD_AREA, np.uint8(0), coco.faults[kept])  # an area does not move the centre
    faults = np.where((faults == 0) & repeated(sample, xy), np.uint8(Fault.DUPLICATE_POINT), faults).astype(np.uint8)
    names = coco.category_names
    return CocoPointTable(
        path=coco.path, ids=asked + 1, categories=tuple(names[c] for c in (asked % num).tolist()), image=asked // num, places=(),
        file_names=_file_names(coco, folder), image_ids=coco.image_ids, image_wh=coco.image_wh, sample=sample, xy=xy, faults=faults,
        counts=dict(counts), coco=coco, ann=kept,
    )


def _absent(coco: CocoTable, present: NDArray[np.int64], absent: int, seed: int) -> NDArray[np.int64]:
    """int64: keys of the categories that are asked for where there are none, a function of (seed, image id)."""
    num = len(coco.category_ids)
    named = np.asarray([bool(name.strip()) for name in coco.category_names])
    starts = np.searchsorted(present, np.arange(len(coco.image_ids) + 1) * num).tolist()
    found: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for image, image_id in enumerate(coco.image_ids.tolist() if absent else []):
        free = named.copy()
        free[present[starts[image] : starts[image + 1]] - image * num] = False
        rest = np.flatnonzero(free)
        found.append(image * num + keyed_generator(seed, "absent", image_id).permutation(rest)[:absent])
    return np.concatenate(found)


def _file_names(coco: CocoTable, folder: Path) -> tuple[str, ...]:
    """Relative to the folder, or as the file says; of several places an image may be at, the first where there is one."""
    names = []
    for image in range(len(coco.image_ids)):
        places = coco.candidates(image, folder)
        path = places[0] if len(places) == 1 else next((p for p in places if p.exists()), places[0])
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
        if leaves_folder(name):
            raise DataError("an image path must be relative and stay inside its folder", where=coco.image_place(image), value=name)
        names.append(name)
    return tuple(names)
