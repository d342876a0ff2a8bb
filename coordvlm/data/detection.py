"""What every source of annotated boxes shares: which annotations are targets, which are refused, and the untouched truth.

A format reads its files into a ``BoxTable`` per split; everything after that is here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import GroundTruth, Object, Sample
from coordvlm.data.checks import clip_boxes, count_faults, is_clipped
from coordvlm.data.class_list import ClassList
from coordvlm.data.images import open_image
from coordvlm.data.source import SPLITS, Split
from coordvlm.data.table import BoxTable, leaves_folder
from coordvlm.utils.errors import ConfigError, DataError

log = logging.getLogger(__name__)
C = TypeVar("C", bound="SplitChoice")
D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class SplitChoice:
    """Which images of a split count; a format adds where they are.

    Args:
        image_ids: only these images. max_objects_filter: only images with at most so many targets. num_images: then only the
            first so many, in file order.
    """

    image_ids: Sequence[int] | None = None
    max_objects_filter: int | None = None
    num_images: int | None = None

    @classmethod
    def parse(cls, name: str, values: Mapping[str, object]) -> Self:
        return parse_fields(cls, f"data.source.{name}", values)


def parse_fields(kind: type[D], option: str, values: Mapping[str, object]) -> D:
    """An instance of a dataclass from the mapping that an option is.

    Raises:
        ConfigError: no mapping, a missing or an unknown key.
    """
    required = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        example = f"{option}.{[*required, *sorted(known)][0]}={values}"
        raise ConfigError(f"{option} must be a mapping of {sorted(known)}, got {values!r}; is {example} meant?")
    given = {str(k) for k in values}
    if given - known or not set(required) <= given:
        needed = " and ".join(required) or "nothing"
        raise ConfigError(f"{option} needs {needed} and knows {sorted(known)}, got {sorted(given)}")
    kept: Any = dict(values)
    return kind(**kept)


class BoxSource:
    """A ``DataSource`` of images with boxes; the base of every format.

    Training targets are strict: the first broken annotation of ``train`` raises (``on_error=raise``) or broken ones are left
    out and counted (``skip``). In ``val`` and ``test`` a box that can be read but not learnt (zero area, out of frame ...) is
    left out of the targets and counted, while ``truth`` keeps it; what cannot be read at all always raises there. Crowds are
    never targets. Images are checked when they are opened, or by ``check_images``.

    Args:
        root: folder that relative paths start from. An image must lie inside it or the split's image folder, also after
            following links.
        seed, class_list, num_absent: names in the prompt, see ``ClassList``.
        on_error: ``raise`` or ``skip``.
    """

    def __init__(self, *, root: str | Path, seed: int, class_list: str, num_absent: int, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"data.on_error must be raise or skip, got {on_error!r}")
        self.root = Path(root).expanduser()
        self.class_list = ClassList(class_list, int(num_absent), int(seed))
        if not self.root.is_dir():
            raise DataError("data.root must be a folder (or set COORDVLM_DATA)", where=self.root.absolute())
        self._skip = on_error == "skip"
        self._splits: dict[str, BoxSplit] = {}
        self.notes: tuple[str, ...] = ()

    def is_lenient(self, name: str) -> bool:
        """Whether what is broken in a split is left out and counted."""
        return name == "train" and self._skip

    def use(self, tables: Mapping[str, tuple[BoxTable, SplitChoice, Path]]) -> None:
        """Take a table, a choice of images and an image folder for each split that there is."""
        for name, (table, choice, folder) in tables.items():
            strict = name == "train" and not self._skip
            self._splits[name] = BoxSplit(
                name, self.root, folder, table, choice, self.class_list, strict=strict, lenient=self.is_lenient(name)
            )
        if "test" not in tables and "val" in tables:
            self.notes += ("no test split is configured: val stands in, so checkpoints are chosen on the images they are scored on",)
            log.warning(self.notes[-1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the first configured split (train, if there is one), in the order of their ids."""
        return next(iter(self._splits.values())).table.category_names

    def split(self, name: str) -> BoxSplit:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        found = self._splits.get(name) or (self._splits.get("val") if name == "test" else None)
        if found is None:
            raise ConfigError(f"data.source.{name} is not set; there are {', '.join(self._splits)}")
        return found

    def truth(self, name: str) -> GroundTruth:
        return self.split(name).truth()

    def dropped(self, name: str) -> Mapping[str, int]:
        """By reason of ``checks.Fault``; also ``crowd`` (never targets), ``clipped`` (kept) and what the format's reader counts."""
        return self.split(name).dropped

    def digests(self) -> Mapping[str, str]:
        """Over annotations, sizes and category names; image files are not read."""
        return {name: split.truth().digest() for name, split in self._splits.items()}

    def check_images(self, name: str, *, max_pixels: int) -> list[DataError]:
        """Open every image of a split completely; what is wrong with them, in order."""
        split = self.split(name)
        return broken_images(split, range(len(split)), max_pixels=max_pixels)


def broken_images(split: Split, positions: Iterable[int], *, max_pixels: int) -> list[DataError]:
    """Open the images at some positions completely; what is wrong with them, in order."""
    found = []
    for index in positions:
        try:
            sample = split.sample(index, 0)
            where = f"{sample.image} ({sample.meta.get('where', f'image id {sample.id}')})"
            open_image(sample.image, declared=(sample.width, sample.height), max_pixels=max_pixels, where=where)
        except DataError as error:
            found.append(error)
    return found


def parse_splits(kind: type[C], **given: Mapping[str, object] | None) -> dict[str, C]:
    """The configured splits.

    Raises:
        ConfigError: none at all, a missing or an unknown key.
    """
    parsed = {name: kind.parse(name, values) for name, values in given.items() if values is not None}
    if not parsed:
        raise ConfigError(f"data.source needs at least one of {', '.join(SPLITS[:-1])} and {SPLITS[-1]}")
    return parsed


class BoxSplit:
    """A ``Split`` of a ``BoxTable``."""

    def __init__(
        self, name: str, root: Path, folder: Path, table: BoxTable, choice: SplitChoice, class_list: ClassList, *, strict: bool,
        lenient: bool,
    ) -> None:
        self._name, self._root, self._folder, self.table, self._class_list = name, root.resolve(), folder, table, class_list
        unreadable = table.unreadable
        broken_target = (table.faults > 0) & (~table.ann_iscrowd | unreadable)
        refused = broken_target if strict else unreadable & (not lenient)
        targets = np.flatnonzero((table.faults == 0) & ~table.ann_iscrowd)
        targets = targets[np.argsort(table.ann_image[targets], kind="stable")]
        starts = np.searchsorted(table.ann_image[targets], np.arange(len(table.image_ids) + 1))
        self._index = _chosen(name, table, choice, np.diff(starts))
        # Only chosen images count, except for faults that belong to no image.
        counted = np.isin(table.ann_image, self._index) | (table.ann_image < 0)
        if (refused & counted).any():
            self._refuse(np.flatnonzero(refused & counted), skippable=strict)
        for image in self._index.tolist():
            self._check_name(image)
        self._targets, self._starts = targets, starts
        wh = table.image_wh[table.ann_image[targets]]
        self._boxes = clip_boxes(table.ann_xyxy[targets], wh)
        self._names = dict(zip(table.category_ids.tolist(), table.category_names, strict=True))
        counts = Counter(count_faults(table.faults[counted & broken_target]))
        counts["crowd"] = int((table.ann_iscrowd & counted & ~unreadable).sum())
        counts["clipped"] = int((is_clipped(table.ann_xyxy[targets], wh) & counted[targets]).sum())
        counts.update(table.counts)
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

    def image_paths(self) -> list[Path]:
        """len: where each image is; nothing is resolved or opened."""
        candidates = (self.table.candidates(image, self._folder) for image in self._index.tolist())
        return [found[0] if len(found) == 1 else next((p for p in found if p.exists()), found[0]) for found in candidates]

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
                      meta={**table.meta(image), "split": self.name})

    def image_file(self, index: int) -> Path:
        """Where the image at a position should be; a ``DataError`` if that is outside the folders of the data."""
        return self._path(int(self._index[index]))

    def truth(self) -> GroundTruth:
        """Of the chosen images, from the file as it is (without what cannot be read, which only a training split may hold)."""
        table = self.table
        images = self._index[np.argsort(self.ids)]
        kept = np.isin(table.ann_image, images) & ~table.unreadable
        return GroundTruth(
            table.image_ids[images], table.image_wh[images], table.category_ids, table.category_names, table.ann_ids[kept],
            table.ann_image_id[kept], table.ann_category_id[kept], table.ann_xyxy[kept], table.ann_area[kept],
            table.ann_iscrowd[kept],
        )

    def _refuse(self, positions: NDArray[np.int64], *, skippable: bool) -> None:
        at = int(positions[0])
        hint = f"; {len(positions)} such annotation(s) in the file"
        hint += ", data.on_error=skip trains without them" if skippable else ", without which its truth is unknown"
        raise DataError(self.table.rule(at) + hint, where=self.table.annotation_place(at), value=self.table.value(at))

    def _check_name(self, image: int) -> None:
        """Refuse a name that leaves the image folder, without touching the disk."""
        name = self.table.file_names[image]
        if name and leaves_folder(name):
            self._outside(image, name)

    def _outside(self, image: int, value: object) -> None:
        raise DataError(
            "an image path must stay inside data.root or the split's image folder, also after following links",
            where=self.table.image_place(image), value=str(value),
        )

    def _path(self, image: int) -> Path:
        """The image's file; resolved to see that it stays inside, but not opened."""
        candidates = self.table.candidates(image, self._folder)
        path = next((p for p in candidates if p.exists()), candidates[0])
        real = path.resolve()
        if not (real.is_relative_to(self._folder.resolve()) or real.is_relative_to(self._root)):
            self._outside(image, f"{path} -> {real}")
        return path


def _chosen(name: str, table: BoxTable, choice: SplitChoice, num_targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: positions of the images that count, in file order."""
    keep = np.ones(len(table.image_ids), dtype=bool)
    if choice.image_ids is not None:
        wanted = np.asarray(list(choice.image_ids), dtype=np.int64)
        unknown = np.setdiff1d(wanted, table.image_ids)
        if unknown.size:
            rule = f"data.source.{name}.image_ids must be image ids of the file"
            raise DataError(rule, where=table.path, value=unknown[:5].tolist())
        keep &= np.isin(table.image_ids, wanted)
    if choice.max_objects_filter is not None:
        keep &= num_targets <= choice.max_objects_filter
    chosen = np.flatnonzero(keep)
    if choice.num_images is not None:
        chosen = chosen[: choice.num_images]
        if len(chosen) < choice.num_images:
            rule = f"data.source.{name}.num_images asks for {choice.num_images} images"
            raise DataError(rule, where=table.path, value=len(chosen))
    if not chosen.size:
        raise DataError(f"data.source.{name}: no image is left after image_ids and max_objects_filter", where=table.path)
    return chosen
