"""FSC-147 as it is published: an annotation JSON with points, the official splits, a class file, and images resized to 384 px.

``H`` and ``W`` of an annotation are the size of the *original* image, which is not published; its points are made on the resized one,
``W ratio_w x H ratio_h``. An image of another size, the original above all, does not fit its points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordvlm.data.detection import parse_fields
from coordvlm.data.point_records import PointRecords
from coordvlm.data.point_source import PointChoice, PointSource
from coordvlm.data.point_table import PointTable
from coordvlm.data.records import ids_of_stems
from coordvlm.data.values import no_collecting, number
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

#: Height of the published images, px.
_HEIGHT = 384


class Fsc147(PointSource):
    """A ``PointSource`` of FSC-147. One sample per image, with the class file's name for it; ids are the numbers of the files.

    Args:
        root, on_error, test: see ``PointSource``.
        annotations: JSON, file name -> ``points`` (a list of [x, y]), ``H``, ``W``, ``ratio_h``, ``ratio_w``. Without the ratios an
            image must be ``W x H`` or that resized to 384 px of height; without ``H`` and ``W`` it has any size.
        division: JSON, split -> file names. classes: text, a line ``file name<TAB>class`` each. images: the folder of the images.
            All relative to the root or absolute.
        splits: name -> the fields of ``PointChoice``. A name is a key of ``division``.
        scale_to_image: scale points to the size of an image that is the annotated one resized; else it is refused.
    Raises:
        DataError: an image of a split without annotation, class or file; broken points; sizes that do not fit.
        ConfigError: a split that ``division`` does not have.
    """

    def __init__(
        self, *, root: str | Path, annotations: str, division: str, classes: str, images: str,
        splits: Mapping[str, Mapping[str, object]], test: str | None, scale_to_image: bool, on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        given = {name: values for name, values in splits.items() if values is not None}
        choices = {name: parse_fields(PointChoice, f"data.source.splits.{name}", values) for name, values in given.items()}
        self._annotations, self._images, self._scale = self.root / annotations, self.root / images, scale_to_image
        self._classes_file = self.root / classes
        divided, path = read_division(self.root / division), self.root / division
        missing = [name for name in choices if name not in divided]
        if missing or not choices:
            similar = hint(nearest(missing[0], divided)) if missing else ""
            named = ", ".join(missing) or "none"
            raise ConfigError(f"data.source.splits must name splits of {path}, got {named}; there are {', '.join(divided)}{similar}")
        self._classes, self._entries = read_classes(self._classes_file), _read_json(self._annotations)
        self.use({name: (self._table(name, divided[name], path), choice, self._images) for name, choice in choices.items()})

    def _table(self, name: str, files: Sequence[str], path: Path) -> PointTable:
        records = PointRecords(
            self._annotations, self._images, coordinates=None, scale_to_image=self._scale, lenient=self.is_lenient(name),
            trains=name == "train",
        )
        seen: set[str] = set()
        with no_collecting():
            for file in files:
                where = f"{self._annotations}: {file}"
                if file in seen:
                    records.refuse("duplicate_image", "an image must be unique in its split", where=f"{path}: {name}", value=file)
                elif file not in self._entries:
                    records.refuse("missing_annotation", "an image of a split must have an annotation",
                                   where=f"{self._annotations} (split {name})", value=file)
                elif file not in self._classes:
                    records.refuse("missing_category", "an image of a split must have a class",
                                   where=f"{self._classes_file} (split {name})", value=file)
                else:
                    _add(records, file, self._classes[file], self._entries[file], where)
                seen.add(file)
        records.set_ids(ids_of_stems(records.image_names))
        records.settle_sizes()
        return records.table()


def _add(records: PointRecords, file: str, category: str, entry: object, where: str) -> None:
    """An image of a split."""
    if not isinstance(entry, dict) or not isinstance(entry.get("points"), list):
        shown = sorted(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        records.refuse("bad_annotation", "an annotation must be an object with points, a list of [x, y]", where=where, value=shown)
        return
    sizes = {key: number(entry[key]) for key in ("W", "H", "ratio_w", "ratio_h") if key in entry}
    fit = len(sizes) in (0, 4) or set(sizes) == {"W", "H"}
    if not fit or not all(0 < v < math.inf for v in sizes.values()):
        rule = "H and W, and ratio_h and ratio_w beside them, must be given together, positive numbers"
        records.refuse("bad_size", rule, where=where, value={key: entry[key] for key in sizes})
        return
    frames: list[tuple[float, float]] = []
    if len(sizes) == 4:
        frames = [(sizes["W"] * sizes["ratio_w"], sizes["H"] * sizes["ratio_h"])]
    elif sizes:
        frames = [(sizes["W"], sizes["H"]), (sizes["W"] * _HEIGHT / sizes["H"], float(_HEIGHT))]
    image = records.image(file, frames=frames, measured=True, where=where)
    records.add(image, category, entry["points"], place=where, sample_id=0)


def read_division(path: Path) -> dict[str, list[str]]:
    """Split -> file names, in their order.

    Raises:
        DataError: missing, not JSON, or something else than lists of names.
    """
    found = _read_json(path)
    for name, files in found.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise DataError("a split must be a list of file names", where=f"{path}: {name}", value=type(files).__name__)
    return found


def read_classes(path: Path) -> dict[str, str]:
    """File name -> class.

    Raises:
        DataError: missing, or a line that is no file name, tabulator and class; another class for a file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError("the class file must exist", where=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the class file must be readable, UTF-8", where=path, value=str(error)) from error
    found: dict[str, str] = {}
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, _, name = (part.strip() for part in line.partition("\t"))
        if not file or not name:
            raise DataError("a line of the class file must be a file name, a tabulator and a class", where=f"{path}:{at}", value=line)
        if found.setdefault(file, name) != name:
            raise DataError(f"an image must have one class, and has {found[file]!r} before", where=f"{path}:{at}", value=line)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object in which no key is there twice."""
    try:
        with no_collecting():
            found = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise DataError("the file must exist", where=path) from error
    except OSError as error:
        raise DataError("the file must be readable", where=path, value=str(error)) from error
    except _TwiceError as error:
        raise DataError("a key must be unique: one of two annotations would be lost", where=path, value=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError("the file must be JSON", where=path, value=str(error)) from error
    if not isinstance(found, dict):
        raise DataError("the file must be a JSON object", where=path, value=type(found).__name__)
    return found


class _TwiceError(ValueError):
    """A key that is there twice."""


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found
