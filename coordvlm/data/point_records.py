"""What a reader of points collects about one split, and how that becomes a ``PointTable``.

Shapes: S samples, P points, I images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import Fault
from coordvlm.data.convention import BEYOND, ENOUGH
from coordvlm.data.point_table import PointTable, point_faults, repeated
from coordvlm.data.records import ids_of_stems
from coordvlm.data.sizes import read_sizes
from coordvlm.data.table import leaves_folder
from coordvlm.data.values import floats
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

#: How a point is written: pixels of the annotated frame, or shares of it.
COORDINATES = ("pixel", "unit")
#: Share of points out of frame from which on the points are of another frame.
_WRONG_SHARE = 0.1
#: An annotated frame is the image's size up to rounding.
_ROUNDING_PX = 1.0
#: An image whose sides are scaled by factors further apart than this is no resized version of the annotated one.
_SAME_SHAPE = 0.05


class PointRecords:
    """Samples of one split in the order of the file.

    Args:
        path: what messages about the whole split name. folder: where image names start.
        coordinates: one of ``COORDINATES``; None where the format leaves no choice: pixels.
        scale_to_image: scale points whose frame is not the image's size; else such an image is refused.
        lenient: leave out and count what would be refused. trains: whether ``data.on_error=skip`` would help.
    """

    def __init__(
        self, path: Path, folder: Path, *, coordinates: str | None, scale_to_image: bool, lenient: bool, trains: bool
    ) -> None:
        if coordinates is not None and coordinates not in COORDINATES:
            similar = hint(nearest(str(coordinates), COORDINATES))
            raise ConfigError(f"data.source.coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}{similar}")
        self.path, self.folder, self.lenient = path, folder, lenient
        self._coordinates, self._scale = coordinates, scale_to_image
        self._hint = "; data.on_error=skip trains without it" if trains else "; without it the truth is unknown"
        self.counts: Counter[str] = Counter()
        self._images: dict[str, int] = {}
        self._frames: list[tuple[tuple[float, float], ...]] = []
        self._measured: list[bool] = []
        self._image_places: list[str] = []
        self._sizes: list[tuple[int, int] | None] = []
        self._factors: list[tuple[float, float]] = []
        self._ids: list[int] = []
        self._categories: list[str] = []
        self._image: list[int] = []
        self._places: list[str] = []
        self._points: list[Sequence[object]] = []
        self._seen: dict[tuple[int, str], int] = {}
        self._contradicted: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def refuse(self, key: str, rule: str, *, where: object, value: object = ...) -> None:
        """Count under ``key`` and go on, or raise.

        Raises:
            DataError: unless lenient.
        """
        if not self.lenient:
            raise DataError(rule + self._hint, where=where, value=value)
        self.counts[key] += 1

    def image(self, name: str, *, frames: Sequence[tuple[float, float]], measured: bool, where: str) -> int:
        """Position of an image, new or known.

        Args:
            name: relative to the folder.
            frames: sizes (width, height) that the annotation may refer to, px; none: whatever the image's is.
            measured: compare them with the image's header. Else the first one is taken, and compared when the image is opened.
        Raises:
            DataError: a name outside the folder; other frames than before. Always.
        """
        if leaves_folder(name):
            raise DataError("an image path must be relative and stay inside its folder", where=where, value=name)
        at, given = self._images.setdefault(name, len(self._frames)), tuple(frames)
        if at == len(self._frames):
            self._frames.append(given)
            self._measured.append(measured or self._scale or not given)
            self._image_places.append(where)
        elif self._frames[at] != given:
            raise DataError(f"an image has one size: {self._frames[at]} at {self._image_places[at]}", where=where, value=given)
        return at

    def add(self, image: int, category: str, points: Sequence[object], *, place: str, sample_id: int) -> None:
        """One sample as it is written; a second one of an image and a category is refused or left out.

        With other points it takes the first one along: neither is known to have all of them.
        """
        first = self._seen.setdefault((image, category), len(self._ids))
        if first < len(self._ids):
            rule = f"an image and a category must come together once, with all points (first at {self._places[first]})"
            self.refuse("duplicate_sample", rule, where=place, value=category)
            if points != self._points[first] and first not in self._contradicted:
                self._contradicted.add(first)
                self.counts["duplicate_sample"] += 1
            return
        self._image.append(image)
        self._categories.append(category)
        self._points.append(points)
        self._places.append(place)
        self._ids.append(sample_id)

    @property
    def image_names(self) -> list[str]:
        """The images so far, in their order."""
        return list(self._images)

    def set_ids(self, ids: Sequence[int]) -> None:
        """Other ids for all samples so far; unique."""
        assert len(ids) == len(self._ids)
        self._ids = list(ids)

    def settle_sizes(self) -> None:
        """Sizes of the images, from their headers where that is asked for, and what points must be multiplied with."""
        measure = [i for i, wanted in enumerate(self._measured) if wanted]
        self._sizes = [None if wanted else (round(f[0][0]), round(f[0][1])) for wanted, f in zip(self._measured, self._frames, strict=True)]
        self._factors = [(1.0, 1.0)] * len(self._sizes)
        names = list(self._images)
        headers = read_sizes([self.folder / names[i] for i in measure], lambda at: self._image_places[measure[at]])
        for image, found in zip(measure, headers, strict=True):
            if isinstance(found, DataError):
                self.refuse("unreadable_image", found.rule, where=found.where, value=found.value)
            else:
                self._settle(image, names[image], found)

    def _settle(self, image: int, name: str, size: tuple[int, int]) -> None:
        frames = self._frames[image]
        for frame in frames or [size]:
            if _close(frame, size):
                self._sizes[image] = size
                return
            if _close(frame, size[::-1]):  # the frame as it is stored; whether that is right shows when the image is opened
                self._sizes[image] = size[::-1]
                return
        factor = (size[0] / frames[0][0], size[1] / frames[0][1])
        shape = abs(math.log(factor[0] / factor[1])) <= _SAME_SHAPE
        said = " or ".join(f"{w:g} x {h:g} px" for w, h in frames)
        where, value = f"{self._image_places[image]} ({name})", f"{size[0]} x {size[1]} px"
        if self._scale and shape and len(frames) == 1:
            self._sizes[image], self._factors[image] = size, factor
            self.counts["scaled_images"] += 1
            return
        rule = f"the image must have the size that is annotated, {said}, or points would lie elsewhere"
        if not shape:
            rule += "; its shape is another one, so it is not the annotated image resized"
        elif len(frames) > 1:
            rule += "; which of these the points refer to is not said, so they cannot be scaled"
        else:
            rule += "; data.source.scale_to_image=true scales them, if the annotated image was only resized"
        self.refuse("size_unlike_image", rule, where=where, value=value)

    def table(self) -> PointTable:
        """The arrays.

        Raises:
            DataError: no sample, no point at all, or points that contradict ``coordinates``.
        """
        kept = [i for i, size in enumerate(self._sizes) if size is not None]
        position = np.full(len(self._sizes) + 1, -1, dtype=np.int64)
        position[kept] = np.arange(len(kept))
        pick = [s for s, image in enumerate(self._image) if position[image] >= 0 and s not in self._contradicted]
        written = [point for s in pick for point in self._points[s]]
        if not written:
            raise DataError("a split must not be empty: training would see no target and evaluation no truth", where=self.path,
                            value="no points" if pick else "no images")
        image = position[np.asarray(self._image, dtype=np.int64)[pick]]
        sample = np.arange(len(pick), dtype=np.int64).repeat([len(self._points[s]) for s in pick])
        wh = np.asarray([self._sizes[i] for i in kept], dtype=np.float64)
        raw, bad = pairs(written)
        own = wh[image[sample]]
        factor = np.asarray([self._factors[i] for i in kept], dtype=np.float64)
        xy = raw * (own if self._coordinates == "unit" else factor[image[sample]])
        faults = np.where(bad, np.uint8(Fault.BAD_POINT), point_faults(xy, own))
        faults = np.where((faults == 0) & repeated(sample, xy), np.uint8(Fault.DUPLICATE_POINT), faults).astype(np.uint8)
        names = list(self._images)
        notes = () if not (scaled := self.counts["scaled_images"]) else (
            f"points of {scaled} images were scaled to the size of the image (data.source.scale_to_image)",
        )
        table = PointTable(
            path=self.path, ids=np.asarray([self._ids[s] for s in pick], dtype=np.int64), image=image,
            categories=tuple(self._categories[s] for s in pick), places=tuple(self._places[s] for s in pick),
            file_names=tuple(names[i] for i in kept), image_ids=np.asarray(ids_of_stems(names), dtype=np.int64)[kept], image_wh=wh,
            sample=sample, xy=xy, faults=faults, values={int(i): written[int(i)] for i in np.flatnonzero(faults)},
            counts=dict(self.counts), notes=notes,
        )
        self._check_unit(table, raw, written)
        self._check_frame(table, written)
        return table

    def _check_unit(self, table: PointTable, raw: NDArray[np.float64], written: Sequence[object]) -> None:
        """Refuse numbers that cannot be in the declared unit."""
        size = np.abs(np.where(np.isfinite(raw), raw, 0.0)).max(1)
        beyond = np.flatnonzero(size > BEYOND)
        if self._coordinates == "unit" and beyond.size:
            at = int(beyond[0])
            raise DataError(
                f"points are declared in 0..1 (data.source.coordinates=unit) and this one is not, as {beyond.size} of {len(size)} are not; "
                "declare data.source.coordinates=pixel if they are in pixels", where=table.place(at), value=written[at],
            )
        if self._coordinates == "pixel" and size.any() and size.max() <= 1:
            at = int(np.flatnonzero(size)[0])
            raise DataError(
                "points are declared in pixels (data.source.coordinates=pixel) and no number of the file is above 1; declare "
                "data.source.coordinates=unit if they are shares of the image", where=table.place(at), value=written[at],
            )

    def _check_frame(self, table: PointTable, written: Sequence[object]) -> None:
        """Refuse a file too many of whose points are out of frame: they refer to another one."""
        outside = np.flatnonzero(table.faults == Fault.OUT_OF_FRAME)
        if len(table.faults) < ENOUGH or outside.size < max(2, _WRONG_SHARE * len(table.faults)):
            return
        at, wh = int(outside[0]), table.image_wh[table.image[table.sample]]
        turned = point_faults(table.xy[:, ::-1], wh)
        advice = "they refer to another size of the images, or are not in pixels"
        if self._coordinates != "unit" and (turned == Fault.OUT_OF_FRAME).sum() < _WRONG_SHARE * len(turned):
            advice = "they would be inside as y, x"
        raise DataError(f"{outside.size} of {len(table.faults)} points are out of frame; {advice}; a point is x, y of the image as it is",
                        where=table.place(at), value=written[at])


def pairs(values: Sequence[object]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64[P, 2] as written and bool[P], True (and NaN in the row) where a value is not a list of 2 numbers."""
    bad = [
        not (isinstance(v, list | tuple) and len(v) == 2 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in v))
        for v in values
    ]
    rows: list[list[float]] = [[math.nan] * 2 if b else v for v, b in zip(values, bad, strict=True)]  # type: ignore[misc]
    return floats(list(chain.from_iterable(rows))).reshape(-1, 2), np.asarray(bad, dtype=np.bool_)


def _close(frame: tuple[float, float], size: tuple[float, float]) -> bool:
    return abs(frame[0] - size[0]) <= _ROUNDING_PX and abs(frame[1] - size[1]) <= _ROUNDING_PX
