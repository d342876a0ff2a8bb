"""What a reader of text files collects about one split, and how that becomes a ``BoxTable``.

Shapes: I images, A annotations, C categories.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import RULES, Fault, box_faults
from coordvlm.data.convention import BoxConvention
from coordvlm.data.sizes import read_sizes
from coordvlm.data.table import BoxTable, leaves_folder
from coordvlm.data.values import number, quads
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest


@dataclass(frozen=True, kw_only=True)
class LineTable(BoxTable):
    """Annotations whose places are lines.

    Args:
        places: I, the file (and line) of each image's annotations.
        ann_line: int64[A], line in that file, or 0 where the place has it. ann_number: int64[A], position in the image's list.
        rules: what a fault breaks in this format's words, where they differ.
        extras: JSON text of what the format does not know, by image.
    """

    places: Sequence[str]
    ann_line: NDArray[np.int64]
    ann_number: NDArray[np.int64]
    rules: Mapping[Fault, str]
    extras: Mapping[int, str]

    def image_place(self, image: int) -> str:
        return self.places[image]

    def annotation_place(self, at: int) -> str:
        image, line = int(self.ann_image[at]), int(self.ann_line[at])
        where = f"{self.places[image]}:{line}" if line else f"{self.places[image]}: objects[{self.ann_number[at]}]"
        return f"{where} ({self.size_text(image)})"

    def rule(self, at: int) -> str:
        fault = Fault(int(self.faults[at]))
        rule = self.rules.get(fault, RULES[fault])
        similar = nearest(str(self.value(at)), self.category_names) if fault is Fault.UNKNOWN_CATEGORY else []
        return rule + hint(similar)

    def meta(self, image: int) -> dict[str, object]:
        return {**json.loads(self.extras.get(image, "{}")), **super().meta(image), "where": self.places[image]}


class Records:
    """Images and boxes of one split in the order of the file.

    Args:
        path: what messages about the whole split name.
        folder: where image names start.
        lenient: leave out and count what would be refused.
        trains: whether ``data.on_error=skip`` would help.
    """

    def __init__(self, path: Path, folder: Path, *, lenient: bool, trains: bool) -> None:
        self.path, self.folder, self.lenient = path, folder, lenient
        self._hint = "; data.on_error=skip trains without it" if trains else "; without it the truth is unknown"
        self.counts: Counter[str] = Counter()
        self._names: list[str] = []
        self._places: list[str] = []
        self._ids: list[int] = []
        self._sizes: list[tuple[int, int] | None] = []
        self._extras: dict[int, str] = {}
        self._seen: dict[str, str] = {}
        self._image: list[int] = []
        self._line: list[int] = []
        self._number: list[int] = []
        self._descs: list[str | None] = []
        self._boxes: list[object] = []
        self._crowd: list[bool] = []
        self._area: list[object] = []
        self._odd: dict[int, tuple[Fault, object]] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def num_boxes(self) -> int:
        return len(self._boxes)

    @property
    def descs(self) -> set[str]:
        """All descriptions that say something."""
        return {d for d in self._descs if d is not None and d.strip()}

    def refuse(self, key: str, rule: str, *, where: object, value: object = ...) -> None:
        """Count under ``key`` and go on, or raise.

        Raises:
            DataError: unless lenient.
        """
        if not self.lenient:
            raise DataError(rule + self._hint, where=where, value=value)
        self.counts[key] += 1

    def add_image(
        self, name: str, *, place: str, image_id: int, size: tuple[int, int] | None, extras: Mapping[str, object] | None = None
    ) -> int | None:
        """Position of a new image, or None if it was left out.

        Args:
            name: relative to the folder. image_id: unique, or replaced by ``set_ids``.
            size: (width, height), None: from the header of the file.
        Raises:
            DataError: a name outside the folder, always; a name for the second time, unless lenient.
        """
        if leaves_folder(name):
            raise DataError("an image path must be relative and stay inside its folder", where=place, value=name)
        if (before := self._seen.get(name)) is not None:
            self.refuse("duplicate_image", f"an image must be unique in its file (first at {before})", where=place, value=name)
            return None
        self._seen[name] = place
        self._names.append(name)
        self._places.append(place)
        self._ids.append(image_id)
        self._sizes.append(size)
        if extras:
            self._extras[len(self._names) - 1] = json.dumps(extras)
        return len(self._names) - 1

    def set_ids(self, ids: Sequence[int]) -> None:
        """Other ids for all images so far; unique."""
        assert len(ids) == len(self._ids)
        self._ids = list(ids)

    def add_box(
        self, image: int, desc: str | None, box: object, *, number: int, line: int = 0, crowd: bool = False, area: object = None,
        fault: Fault = Fault.NONE, value: object = None,
    ) -> None:
        """One annotation as it is written; ``fault`` and ``value`` where the reader already knows better."""
        if fault:
            self._odd[len(self._boxes)] = (fault, value)
        self._image.append(image)
        self._line.append(line)
        self._number.append(number)
        self._descs.append(desc)
        self._boxes.append(box)
        self._crowd.append(crowd)
        self._area.append(area)

    def settle_sizes(self) -> None:
        """Read the sizes nobody declared; images whose header cannot be read are refused or left out with their boxes."""
        unknown = [i for i, size in enumerate(self._sizes) if size is None]
        paths = [self.folder / self._names[i] for i in unknown]
        for image, found in zip(unknown, read_sizes(paths, lambda at: self._places[unknown[at]]), strict=True):
            if isinstance(found, DataError):
                self.refuse("unreadable_image", found.rule, where=found.where, value=found.value)
            else:
                self._sizes[image] = found

    def table(self, categories: Mapping[str, int], convention: BoxConvention, rules: Mapping[Fault, str]) -> LineTable:
        """The arrays.

        Args:
            categories: name -> id. Another description is a fault.
        Raises:
            DataError: no image, no box, or a file that contradicts the declared convention.
        """
        kept = [i for i, size in enumerate(self._sizes) if size is not None]
        if not kept or not self._boxes:
            raise DataError("a split must not be empty: training would see no target and evaluation no truth", where=self.path,
                            value="no images" if not kept else "no objects")
        position = np.full(len(self._sizes), -1)
        position[kept] = np.arange(len(kept))
        anns = np.flatnonzero(position[self._image] >= 0)
        pick = anns.tolist()
        image = position[np.asarray(self._image, dtype=np.int64)[anns]]
        wh = np.asarray([self._sizes[i] for i in kept], dtype=np.float64)
        ids = np.asarray([self._ids[i] for i in kept], dtype=np.int64)
        raw, bad = quads([self._boxes[a] for a in pick])
        xyxy = convention.to_xyxy_px(raw, wh[image])
        descs = [self._descs[a] for a in pick]
        category = np.asarray([categories.get(d, -1) if d is not None else -1 for d in descs], dtype=np.int64)
        area, bad_area = _areas([self._area[a] for a in pick], xyxy)
        faults = np.zeros(len(pick), dtype=np.uint8)
        for fault, mask in (  # from the least to the most basic: the last one written is reported
            (Fault.BAD_AREA, bad_area),
            (None, box_faults(xyxy, wh[image])),
            (Fault.BAD_BBOX, bad),
            (Fault.UNKNOWN_CATEGORY, category < 0),
            (Fault.EMPTY_DESCRIPTION, np.asarray([d is not None and not d.strip() for d in descs], dtype=bool)),
        ):
            faults = np.where(mask > 0, mask if fault is None else np.uint8(fault), faults)
        values = {i: self._boxes[pick[i]] for i in np.flatnonzero(faults).tolist()}
        values |= {i: descs[i] for i in np.flatnonzero(np.isin(faults, [Fault.UNKNOWN_CATEGORY, Fault.EMPTY_DESCRIPTION])).tolist()}
        values |= {i: self._area[pick[i]] for i in np.flatnonzero(faults == Fault.BAD_AREA).tolist()}
        for i, a in enumerate(pick):
            if a in self._odd:
                faults[i], values[i] = self._odd[a]
        names = sorted(categories, key=lambda n: categories[n])
        table = LineTable(
            path=self.path, image_ids=ids, image_wh=wh, file_names=[self._names[i] for i in kept],
            category_ids=np.asarray([categories[n] for n in names], dtype=np.int64), category_names=tuple(names),
            ann_ids=1 + anns, ann_image_id=ids[image], ann_category_id=category, ann_xyxy=xyxy, ann_area=area,
            ann_iscrowd=np.asarray([self._crowd[a] for a in pick], dtype=bool), faults=faults.astype(np.uint8), ann_image=image,
            values=values, counts=dict(self.counts), places=[self._places[i] for i in kept],
            ann_line=np.asarray([self._line[a] for a in pick], dtype=np.int64),
            ann_number=np.asarray([self._number[a] for a in pick], dtype=np.int64), rules=rules,
            extras={int(position[i]): text for i, text in self._extras.items() if position[i] >= 0},
        )
        convention.check_range(raw, table.annotation_place)
        convention.check_share(table.faults, raw, table.annotation_place)
        return table


def _areas(values: Sequence[object], xyxy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The given area in px, else the box's; bool[A] where one is given that is not a finite number."""
    given = np.asarray([v is not None for v in values], dtype=bool)
    area = np.asarray([math.nan if v is None else number(v) for v in values], dtype=np.float64)
    sides = xyxy[:, 2:] - xyxy[:, :2]
    return np.where(given, area, sides[:, 0] * sides[:, 1]), given & ~np.isfinite(area)


def category_ids(found: Iterable[Records], classes: Sequence[str] | None) -> dict[str, int]:
    """Names -> 1, 2, ...: ``classes`` in their order, else the descriptions of all splits in alphabetical order.

    Raises:
        ConfigError: classes that are none, empty, not text, or one twice.
    """
    if classes is None:
        names = sorted(set().union(*(records.descs for records in found)))
    else:
        names = list(classes)
        if not names or not all(isinstance(n, str) and n.strip() for n in names) or len(set(names)) < len(names):
            raise ConfigError(f"data.source.classes must be different, non-empty names, got {names}")
    return {name: i for i, name in enumerate(names, start=1)}


def ids_of_stems(names: Sequence[str]) -> list[int]:
    """Image ids from file names: the number, where every stem is one and no two are equal (``000042.jpg`` is 42); else 1, 2, ..."""
    stems = [Path(name).stem for name in names]
    if all(s.isascii() and s.isdigit() and len(s) < 19 for s in stems) and len({int(s) for s in stems}) == len(stems):
        return [int(s) for s in stems]
    return list(range(1, len(names) + 1))
