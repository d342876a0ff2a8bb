"""Points to count in JSON lines or parquet: ``{"image": "a.jpg", "category": "apple", "points": [[x, y], ...]}`` per row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coordvlm.data.detection import parse_fields
from coordvlm.data.point_records import PointRecords
from coordvlm.data.point_source import PointChoice, PointSource
from coordvlm.data.point_table import PointTable
from coordvlm.data.rows import Row, is_parquet, read_rows, row_files
from coordvlm.data.values import INT64, integral, no_collecting
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

log = logging.getLogger(__name__)
_NEEDED = ("image", "category", "points")
_KNOWN = frozenset({*_NEEDED, "id", "width", "height"})
_RULE = "a row must have image (text), category (text) and points (a list of [x, y], empty if there is nothing to count)"


@dataclass(frozen=True, kw_only=True)
class PointFiles(PointChoice):
    """Where a split lives.

    Args:
        file: JSON lines, or parquet by its ending; a pattern with ``*`` names several. images: folder that image names start from.
            Both relative to the root or absolute.
    """

    file: str
    images: str


class PointsFile(PointSource):
    """A ``PointSource`` of rows with an image, a category and all points of it. Several rows may share an image.

    ``id`` (an integer) on every row is the sample's id, else samples are numbered in the order of the rows from 1. ``width`` and
    ``height`` are the size the points refer to; without them that is the image's own, read from its header.

    Args:
        root, on_error, test: see ``PointSource``.
        splits: name -> the fields of ``PointFiles``.
        coordinates: ``pixel`` or ``unit`` (shares of width and height). Declared, never guessed.
        scale_to_image: read the size of every image and scale points whose ``width`` and ``height`` are another one; else such an image
            is refused when it is opened.
    Raises:
        DataError: bad rows, broken points, points that contradict ``coordinates``, an image and a category twice.
        ConfigError: parquet without pyarrow.
    """

    def __init__(
        self, *, root: str | Path, splits: Mapping[str, Mapping[str, object]], test: str | None, coordinates: str, scale_to_image: bool,
        on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        self._coordinates, self._scale = coordinates, scale_to_image
        given = {name: values for name, values in splits.items() if values is not None}
        files = {name: parse_fields(PointFiles, f"data.source.splits.{name}", values) for name, values in given.items()}
        if not files:
            raise ConfigError("data.source.splits must name a split at least")
        self.use({name: (self._table(name, each), each, self.root / each.images) for name, each in files.items()})

    def _table(self, name: str, files: PointFiles) -> PointTable:
        paths = row_files(self.root, files.file)
        records = PointRecords(
            paths[0], self.root / files.images, coordinates=self._coordinates, scale_to_image=self._scale, lenient=self.is_lenient(name),
            trains=name == "train",
        )
        reader = _Reader(records, ": row " if is_parquet(paths[0]) else ":", paths)
        with no_collecting():
            for row in read_rows(paths):
                reader.add(row)
        if reader.others:
            log.warning("%s: fields that are not read: %s", paths[0], ", ".join(sorted(reader.others)))
        records.settle_sizes()
        return records.table()


class _Reader:
    """Rows -> ``PointRecords``."""

    def __init__(self, records: PointRecords, row_word: str, paths: tuple[Path, ...]) -> None:
        self._records, self._row_word, self._paths = records, row_word, paths
        self._num_rows, self._with_id = 0, False
        self._ids: dict[int, str] = {}
        self.others: set[str] = set()

    def add(self, row: Row) -> None:
        """One row; a bad one is refused or left out."""
        records, where = self._records, f"{self._paths[row.file]}{self._row_word}{row.number}"
        if row.values is None:
            records.refuse("bad_line", row.problem[0], where=where, value=row.problem[1])
            return
        values = row.values
        missing = [key for key in _NEEDED if key not in values]
        if missing:
            similar = [s for key in missing for s in nearest(key, map(str, values))]
            records.refuse("bad_line", f"{_RULE}; missing {', '.join(missing)}{hint(similar)}", where=where, value=sorted(map(str, values)))
            return
        image, category, points = (values[key] for key in _NEEDED)
        if not isinstance(image, str) or not image.strip() or not isinstance(category, str) or not isinstance(points, list):
            shown = {"image": image, "category": category, "points": type(points).__name__}
            records.refuse("bad_line", _RULE, where=where, value=shown)
            return
        if not category.strip():
            records.refuse("empty_category", "a category must not be blank", where=where, value=category)
            return
        size = (values.get("width"), values.get("height"))
        if size != (None, None) and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in size):
            records.refuse("bad_size", "width and height must be given together, positive integers", where=where, value=size)
            return
        sample_id = self._id(values.get("id"), where)
        self.others.update(map(str, values.keys() - _KNOWN))
        frames = [] if size == (None, None) else [(float(size[0]), float(size[1]))]  # type: ignore[arg-type]
        at = records.image(image, frames=frames, measured=False, where=where)
        records.add(at, category.strip(), points, place=where, sample_id=sample_id)

    def _id(self, written: object, where: str) -> int:
        """The id of a row: its own, or its number."""
        self._num_rows += 1
        if self._num_rows > 1 and (written is not None) != self._with_id:
            raise DataError("either every row has an id or none", where=where, value=written)
        self._with_id = written is not None
        if written is None:
            return self._num_rows
        found = integral(written)
        if found is None or not INT64[0] <= found <= INT64[1]:
            raise DataError("id must be an integer of 64 bits", where=where, value=written)
        if found in self._ids:
            raise DataError(f"an id must be unique in its file (first at {self._ids[found]})", where=where, value=written)
        self._ids[found] = where
        return found
