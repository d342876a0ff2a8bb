"""What every source of points shares: which samples are trained and asked, which points are refused, and the untouched truth.

A sample is an image and a category of which every thing in it has a point. A format reads its files into a ``PointTable`` per
split; everything after that is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import Object, PointTruth, Sample
from coordvlm.data.checks import count_faults
from coordvlm.data.detection import broken_images
from coordvlm.data.named_splits import NamedSplits, inside
from coordvlm.data.point_table import PointTable, clip_points, is_moved
from coordvlm.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PointChoice:
    """Which samples of a split count; a format adds where they are.

    Args:
        image_ids: only samples on these images. max_points: only samples with at most so many targets. num_images: then only those
            on the first so many images, in file order.
    """

    image_ids: Sequence[int] | None = None
    max_points: int | None = None
    num_images: int | None = None


class PointSource(NamedSplits["PointSplit"]):
    """A ``DataSource`` of points to count; the base of every format.

    Training is strict: the first broken point of ``train`` raises (``on_error=raise``), or broken ones are left out and counted
    (``skip``): one that is out of frame or there twice alone, one that cannot be read (or is not finite) with its sample, since how
    many there are is not known then. In every other split a point that can be read but not learnt stays in ``truth``, is no target
    and is counted; what cannot be read at all always raises there. Images are checked when they are opened, or by ``check_images``.

    Args:
        root: folder that relative paths start from. An image must lie inside it or the split's image folder, also after
            following links.
        on_error: ``raise`` or ``skip``.
        test: the split that ``test`` stands for; None: the one of that name, or ``val`` where there is none.
    """

    samples = "images"

    def use(self, tables: Mapping[str, tuple[PointTable, PointChoice, Path]]) -> None:
        """Take a table, a choice of samples and an image folder for each split.

        Raises:
            ConfigError: ``test`` names no split, or another one where there is one of that name.
            DataError: see ``PointSplit``.
        """
        self.check_test(tables)
        names = {category for table, _, _ in tables.values() for category in table.categories}
        self._names = tuple(sorted(names))
        ids = {category: i for i, category in enumerate(self._names, start=1)}
        for name, (table, choice, folder) in tables.items():
            split = PointSplit(name, self.root, folder, table, choice, ids, evaluated=name != "train", lenient=self.is_lenient(name))
            self._splits[name] = split
            self.notes += tuple(f"{name}: {note}" for note in table.notes)
            if nothing := int((split.num_objects() == 0).sum()):
                self.notes += (f"{name}: {nothing} of {len(split)} samples have nothing to count",)
        self.note_test(tables)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The categories of all splits in alphabetical order; their ids count from 1."""
        return self._names

    def truth(self, name: str) -> PointTruth:
        return self.split(name).truth()

    def dropped(self, name: str) -> Mapping[str, int]:
        """By reason of ``checks.Fault``; also ``clipped`` (kept) and what the format's reader counts."""
        return self.split(name).dropped

    def digests(self) -> Mapping[str, str]:
        """Over categories, points and sizes; image files are not read."""
        return {name: split.truth().digest() for name, split in self._splits.items()}

    def check_images(self, name: str, *, max_pixels: int) -> list[DataError]:
        """Open every image of a split completely, once; what is wrong with them, in order."""
        split = self.split(name)
        return broken_images(split, np.unique(split.image_positions(), return_index=True)[1].tolist(), max_pixels=max_pixels)


class PointSplit:
    """A ``Split`` of a ``PointTable``.

    Raises:
        DataError: a broken point that counts, unless lenient; a point that cannot be read, in what is evaluated; nothing left.
    """

    def __init__(
        self, name: str, root: Path, folder: Path, table: PointTable, choice: PointChoice, category_ids: Mapping[str, int], *,
        evaluated: bool, lenient: bool,
    ) -> None:
        self._name, self._folder, self.table, self._category_ids = name, folder, table, category_ids
        self._inside = (root.resolve(), folder.resolve())
        unknown = np.zeros(len(table), dtype=np.bool_)
        unknown[table.sample[table.unreadable]] = True
        targets = np.flatnonzero(table.faults == 0)
        self._starts = np.searchsorted(table.sample[targets], np.arange(len(table) + 1))
        rows = _chosen(f"data.source.splits.{name}", table, choice, np.diff(self._starts), unknown & lenient)
        chosen = np.zeros(len(table), dtype=np.bool_)
        chosen[rows] = True
        counted = chosen[table.sample]
        refused = np.flatnonzero(counted & (table.unreadable if evaluated else table.faults > 0))
        if refused.size and not lenient:
            advice = "without which its truth is unknown" if evaluated else "data.on_error=skip trains without them"
            at = int(refused[0])
            raise DataError(f"{table.rule(at)}; {len(refused)} such point(s) in the split, {advice}", where=table.place(at),
                            value=table.value(at))
        self._index = rows[~unknown[rows]]
        if not len(self._index):
            raise DataError(f"data.source.splits.{name}: no image is left", where=table.path)
        wh = table.image_wh[table.image[table.sample[targets]]]
        self._targets, self._points = targets, clip_points(table.xy[targets], wh)
        counts = Counter(count_faults(table.faults[counted]))
        counts["clipped"] = int((is_moved(table.xy[targets], wh) & counted[targets] & ~unknown[table.sample[targets]]).sum())
        counts.update(table.counts)
        self.dropped: Mapping[str, int] = {reason: n for reason, n in sorted(counts.items()) if n}

    @property
    def name(self) -> str:
        return self._name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.table.ids[self._index]

    def __len__(self) -> int:
        return len(self._index)

    @property
    def most_objects(self) -> int:
        return int(self.num_objects().max())

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: points per sample."""
        return np.diff(self._starts)[self._index]

    def image_positions(self) -> NDArray[np.int64]:
        """int64[len]: equal for samples on one image."""
        return self.table.image[self._index]

    def image_paths(self) -> list[Path]:
        """len: where each image is; nothing is resolved or opened."""
        return [self._folder / self.table.file_names[i] for i in self.image_positions().tolist()]

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        table, at = self.table, int(self._index[index])
        category, image = table.categories[at], int(table.image[at])
        here = slice(int(self._starts[at]), int(self._starts[at + 1]))
        objects = tuple(
            Object(category, point_px=(x, y), category_id=self._category_ids[category], annotation_id=a + 1)
            for a, (x, y) in zip(self._targets[here].tolist(), self._points[here].tolist(), strict=True)
        )
        width, height = table.image_wh[image].astype(int).tolist()
        where = table.sample_place(at)
        path = inside(self._folder / table.file_names[image], self._inside, where=where)
        meta = {"file_name": table.file_names[image], "where": where, "split": self.name}
        return Sample(int(table.ids[at]), path, width, height, objects, meta=meta, category=category)

    def truth(self) -> PointTruth:
        """Of the chosen samples, from the file as it is."""
        table = self.table
        starts = np.searchsorted(table.sample, np.arange(len(table) + 1))
        images = table.image[self._index]
        return PointTruth.of(
            ids=self.ids.tolist(), categories=[table.categories[i] for i in self._index.tolist()],
            source_image=table.image_ids[images].tolist(), image_wh=table.image_wh[images],
            points=[table.xy[starts[i] : starts[i + 1]] for i in self._index.tolist()],
        )


def _chosen(
    option: str, table: PointTable, choice: PointChoice, num_targets: NDArray[np.int64], left_out: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """int64: positions of the samples that count, in file order.

    Args:
        num_targets: int64[S]. left_out: bool[S], samples that are skipped: an image with no other is not one of the first so many.
    """
    keep = np.ones(len(table), dtype=np.bool_)
    if choice.image_ids is not None:
        wanted = np.asarray(list(choice.image_ids), dtype=np.int64)
        unknown = np.setdiff1d(wanted, table.image_ids)
        if unknown.size:
            raise DataError(f"{option}.image_ids must be ids of images of the file", where=table.path, value=unknown[:5].tolist())
        keep &= np.isin(table.image_ids[table.image], wanted)
    if choice.max_points is not None:
        keep &= num_targets <= choice.max_points
    if choice.num_images is not None:
        images = np.unique(table.image[keep & ~left_out])[: choice.num_images]
        if len(images) < choice.num_images:
            raise DataError(f"{option}.num_images asks for {choice.num_images} images", where=table.path, value=len(images))
        keep &= np.isin(table.image, images)
    found = np.flatnonzero(keep)
    if not found.size:
        raise DataError(f"{option}: no image is left after image_ids, max_points and num_images", where=table.path)
    return found
