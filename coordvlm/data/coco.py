"""COCO and LVIS instances files with their images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import GroundTruth, Object, Sample
from coordvlm.data.checks import RULES, UNREADABLE, Fault, clip_boxes, count_faults, is_clipped
from coordvlm.data.class_list import ClassList
from coordvlm.data.coco_file import CocoTable, read_coco
from coordvlm.data.images import open_image
from coordvlm.data.source import SPLITS
from coordvlm.utils.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lives, and which of its images count.

    Args:
        json, images: annotation file and image folder, relative to the root or absolute.
        image_ids: only these images. max_objects_filter: only images with at most so many targets. num_images: then only the
            first so many, in file order.
    """

    json: str
    images: str
    image_ids: Sequence[int] | None = None
    max_objects_filter: int | None = None
    num_images: int | None = None

    @classmethod
    def parse(cls, name: str, values: Mapping[str, object]) -> SplitFiles:
        known, given = {f.name for f in fields(cls)}, {str(k) for k in values}
        if given - known or not {"json", "images"} <= given:
            raise ConfigError(f"data.source.{name} needs json and images and knows {sorted(known)}, got {sorted(given)}")
        return cls(**values)  # type: ignore[arg-type]


class Coco:
    """A ``DataSource`` of COCO instances. Category names are the descriptions.

    Training targets are strict: the first broken annotation of ``train`` raises (``on_error=raise``) or broken ones are left
    out and counted (``skip``). In ``val`` and ``test`` a box that can be read but not learnt (zero area, out of frame ...) is
    left out of the targets and counted, while ``truth`` keeps it; what cannot be read at all always raises there. Crowds are
    never targets. Images are checked when they are opened, or by ``check_images``.

    Args:
        root: folder that relative paths start from. A file name in the JSON must stay inside it or the split's image folder,
            also after following links.
        train, val, test: the fields of ``SplitFiles``, or None. ``val`` stands in for a missing ``test``.
        seed, class_list, num_absent: names in the prompt, see ``ClassList``.
        on_error: ``raise`` or ``skip``.
        replace_underscores: write LVIS's ``traffic_light`` as ``traffic light``.
    Raises:
        DataError: see ``read_coco`` and ``checks.RULES``.
    """

    def __init__(
        self, *, root: str | Path, train: Mapping[str, object] | None, val: Mapping[str, object] | None,
        test: Mapping[str, object] | None, seed: int, class_list: str, num_absent: int, on_error: str, replace_underscores: bool,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"data.on_error must be raise or skip, got {on_error!r}")
        self.root = Path(root).expanduser()
        self.class_list = ClassList(class_list, int(num_absent), int(seed))
        given = {name: SplitFiles.parse(name, v) for name, v in zip(SPLITS, (train, val, test), strict=True) if v is not None}
        if not given:
            raise ConfigError("data.source needs at least one of train, val and test")
        if not self.root.is_dir():
            raise DataError("data.root must be a folder (or set COORDVLM_DATA)", where=self.root.absolute())
        self._splits = {
            name: CocoSplit(name, self.root, files, self.class_list, strict=name == "train" and on_error == "raise",
                            lenient=name == "train" and on_error == "skip", replace_underscores=replace_underscores)
            for name, files in given.items()
        }
        self.notes: tuple[str, ...] = ()
        if "test" not in given and "val" in given:
            self.notes = ("no test split is configured: val stands in, so checkpoints are chosen on the images they are scored on",)
            log.warning(self.notes[0])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the first configured split (train, if there is one), in the order of their ids."""
        return next(iter(self._splits.values())).table.category_names

    def split(self, name: str) -> CocoSplit:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        found = self._splits.get(name) or (self._splits.get("val") if name == "test" else None)
        if found is None:
            raise ConfigError(f"data.source.{name} is not set; there are {', '.join(self._splits)}")
        return found

    def truth(self, name: str) -> GroundTruth:
        return self.split(name).truth()

    def dropped(self, name: str) -> Mapping[str, int]:
        """By reason of ``checks.Fault``; also ``crowd`` (never targets), ``clipped`` (kept) and ``duplicate_image_id``."""
        return self.split(name).dropped

    def digests(self) -> Mapping[str, str]:
        """Over annotations, sizes and category names; image files are not read."""
        return {name: split.truth().digest() for name, split in self._splits.items()}

    def check_images(self, name: str, *, max_pixels: int) -> list[DataError]:
        """Open every image of a split completely; what is wrong with them, in order."""
        split, found = self.split(name), []
        for index in range(len(split)):
            try:
                sample = split.sample(index, 0)
                where = f"{sample.image} (image id {sample.id})"
                open_image(sample.image, declared=(sample.width, sample.height), max_pixels=max_pixels, where=where)
            except DataError as error:
                found.append(error)
        return found


class CocoSplit:
    """A ``Split`` of ``Coco``: arrays and file names, so that copies in worker processes stay shared and small."""

    def __init__(
        self, name: str, root: Path, files: SplitFiles, class_list: ClassList, *, strict: bool, lenient: bool,
        replace_underscores: bool,
    ) -> None:
        self._name, self._root, self._class_list = name, root.resolve(), class_list
        self._folder = root / files.images
        self.table = table = read_coco(root / files.json, replace_underscores=replace_underscores, allow_duplicate_images=lenient)
        unreadable = np.isin(table.faults, list(UNREADABLE))
        broken_target = (table.faults > 0) & (~table.ann_iscrowd | unreadable)
        refused = broken_target if strict else unreadable & (not lenient)
        targets = np.flatnonzero((table.faults == 0) & ~table.ann_iscrowd)
        targets = targets[np.argsort(table.ann_image[targets], kind="stable")]
        starts = np.searchsorted(table.ann_image[targets], np.arange(len(table.image_ids) + 1))
        self._index = _chosen(name, table, files, np.diff(starts))
        # Only chosen images count, except for faults that belong to no image.
        counted = np.isin(table.ann_image, self._index) | (table.ann_image < 0)
        if (refused & counted).any():
            self._refuse(np.flatnonzero(refused & counted), skippable=strict)
        for image in self._index.tolist():
            self._check_name(image)
        self._targets, self._starts = targets, starts
        self._wh = table.image_wh[table.ann_image[targets]]
        self._boxes = clip_boxes(table.ann_xyxy[targets], self._wh)
        self._names = dict(zip(table.category_ids.tolist(), table.category_names, strict=True))
        counts = Counter(count_faults(table.faults[counted & broken_target]))
        counts["crowd"] = int((table.ann_iscrowd & counted & ~unreadable).sum())
        counts["clipped"] = int((is_clipped(table.ann_xyxy[targets], self._wh) & counted[targets]).sum())
        counts["duplicate_image_id"] = table.num_duplicate_images
        self.dropped: Mapping[str, int] = {reason: n for reason, n in sorted(counts.items()) if n}

    @property
    def name(self) -> str:
        return self._name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.table.image_ids[self._index]

    def __len__(self) -> int:
        return len(self._index)

    @property
    def most_objects(self) -> int:
        return int(self.num_objects().max())

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: targets per image."""
        return np.diff(self._starts)[self._index]

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        table, image = self.table, int(self._index[index])
        here = slice(int(self._starts[image]), int(self._starts[image + 1]))
        objects = []
        for a, box in zip(self._targets[here].tolist(), self._boxes[here].tolist(), strict=True):
            category = int(table.ann_category_id[a])
            objects.append(Object(self._names[category], tuple(box), category_id=category, annotation_id=int(table.ann_ids[a])))
        width, height = table.image_wh[image].astype(int).tolist()
        image_id = int(table.image_ids[image])
        names = self._class_list.choose(table.category_names, {o.desc for o in objects}, epoch=epoch, sample_id=image_id)
        return Sample(image_id, self._path(image), width, height, tuple(objects), class_list=names,
                      meta={"split": self.name, "file_name": table.file_names[image] or table.urls[image]})

    def truth(self) -> GroundTruth:
        """Of the chosen images, from the file as it is (without what cannot be read, which only a training split may hold)."""
        table = self.table
        images = self._index[np.argsort(self.ids)]
        kept = np.isin(table.ann_image, images) & ~np.isin(table.faults, list(UNREADABLE))
        return GroundTruth(
            table.image_ids[images], table.image_wh[images], table.category_ids, table.category_names, table.ann_ids[kept],
            table.ann_image_id[kept], table.ann_category_id[kept], table.ann_xyxy[kept], table.ann_area[kept],
            table.ann_iscrowd[kept],
        )

    def _refuse(self, positions: NDArray[np.int64], *, skippable: bool) -> None:
        table, at = self.table, int(positions[0])
        fault = Fault(int(table.faults[at]))
        box = table.ann_xyxy[at]
        value: object = table.raw_bbox.get(at, [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()])
        where = f"{table.path}: annotation id {table.ann_ids[at]} (image id {table.ann_image_id[at]}"
        if table.ann_image[at] >= 0:
            image = int(table.ann_image[at])
            width, height = table.image_wh[image].astype(int).tolist()
            where += f", {table.file_names[image] or table.urls[image]}, {width} x {height} px"
        if fault is Fault.DUPLICATE_ANNOTATION_ID:
            value = int(table.ann_ids[at])
        elif fault is Fault.UNKNOWN_IMAGE:
            value = int(table.ann_image_id[at])
        elif fault is Fault.UNKNOWN_CATEGORY:
            value = int(table.ann_category_id[at])
        elif fault is Fault.BAD_AREA:
            value = float(table.ann_area[at])
        elif fault is Fault.EMPTY_DESCRIPTION:
            value = dict(zip(table.category_ids.tolist(), table.category_names, strict=True))[int(table.ann_category_id[at])]
            where += f", category id {table.ann_category_id[at]}"
        hint = f"; {len(positions)} such annotation(s) in the file"
        hint += ", data.on_error=skip trains without them" if skippable else ", without which its truth is unknown"
        raise DataError(RULES[fault] + hint, where=where + ")", value=value)

    def _check_name(self, image: int) -> None:
        """Refuse a name that leaves the image folder, without touching the disk."""
        name = self.table.file_names[image]
        if name and (name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts):
            self._outside(image, name)

    def _outside(self, image: int, value: object) -> None:
        raise DataError(
            "an image path must stay inside data.root or the split's image folder, also after following links",
            where=f"{self.table.path}: image id {self.table.image_ids[image]}", value=str(value),
        )

    def _path(self, image: int) -> Path:
        """The image's file; resolved to see that it stays inside, but not opened."""
        name = self.table.file_names[image]
        if name:
            candidates = [self._folder / name]
        else:  # LVIS: .../train2017/000000391895.jpg, in a folder that may or may not be the split's
            parts = [p for p in PurePosixPath(urlsplit(self.table.urls[image] or "").path).parts if p not in ("/", "..")]
            if not parts:
                where = f"{self.table.path}: image id {self.table.image_ids[image]}"
                raise DataError("coco_url must end in a file name", where=where, value=self.table.urls[image])
            candidates = [self._folder.joinpath(*parts[-2:]), self._folder / parts[-1]]
        path = next((p for p in candidates if p.exists()), candidates[0])
        real = path.resolve()
        if not (real.is_relative_to(self._folder.resolve()) or real.is_relative_to(self._root)):
            self._outside(image, f"{path} -> {real}")
        return path


def _chosen(name: str, table: CocoTable, files: SplitFiles, num_targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: positions of the images that count, in file order."""
    keep = np.ones(len(table.image_ids), dtype=bool)
    if files.image_ids is not None:
        wanted = np.asarray(list(files.image_ids), dtype=np.int64)
        unknown = np.setdiff1d(wanted, table.image_ids)
        if unknown.size:
            rule = f"data.source.{name}.image_ids must be image ids of the file"
            raise DataError(rule, where=table.path, value=unknown[:5].tolist())
        keep &= np.isin(table.image_ids, wanted)
    if files.max_objects_filter is not None:
        keep &= num_targets <= files.max_objects_filter
    chosen = np.flatnonzero(keep)
    if files.num_images is not None:
        chosen = chosen[: files.num_images]
        if len(chosen) < files.num_images:
            rule = f"data.source.{name}.num_images asks for {files.num_images} images"
            raise DataError(rule, where=table.path, value=len(chosen))
    if not chosen.size:
        raise DataError(f"data.source.{name}: no image is left after image_ids and max_objects_filter", where=table.path)
    return chosen
