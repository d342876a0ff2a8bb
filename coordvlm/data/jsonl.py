"""One JSON object per line and image: ``{"image": "a.jpg", "objects": [{"desc": "dog", "bbox": [x1, y1, x2, y2]}]}``."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordvlm.data.checks import Fault
from coordvlm.data.convention import BoxConvention
from coordvlm.data.detection import BoxSource, SplitChoice, parse_splits
from coordvlm.data.records import Records, category_ids
from coordvlm.data.values import INT64, integral, no_collecting
from coordvlm.utils.errors import DataError
from coordvlm.utils.overrides import hint, nearest

log = logging.getLogger(__name__)
_LINE_KEYS = frozenset({"image", "objects", "width", "height"})
_OBJECT_KEYS = frozenset({"desc", "bbox", "iscrowd", "area"})
_LINE_RULE = 'a line must be a JSON object with image (text) and objects (a list): {"image": "a.jpg", "objects": [...]}'


@dataclass(frozen=True, kw_only=True)
class JsonlFiles(SplitChoice):
    """Where a split lives: the file, and the folder its image paths start from; relative to the root or absolute."""

    jsonl: str
    images: str


class Jsonl(BoxSource):
    """A ``BoxSource`` of JSON lines. Categories are the descriptions of all splits in alphabetical order, or ``classes``.

    ``id`` (an integer) on every line is the image's id, else the line's number is. ``width`` and ``height`` are those of the
    displayed frame; without them the image's header is read. Objects may carry COCO's ``iscrowd`` and ``area`` (px). Other keys of a
    line are kept in ``Sample.meta``.

    Args:
        root, seed, class_list, num_absent, on_error: see ``BoxSource``.
        train, val, test: the fields of ``JsonlFiles``, or None. ``val`` stands in for a missing ``test``.
        boxes, box_format: how ``bbox`` is written, see ``BoxConvention``.
        classes: the only descriptions there may be, in the order of their ids; None: whatever the files say.
    Raises:
        DataError: bad JSON, missing keys, a second image or id, broken objects (``checks.RULES``), a file that contradicts ``boxes``.
    """

    def __init__(
        self, *, root: str | Path, train: Mapping[str, object] | None, val: Mapping[str, object] | None,
        test: Mapping[str, object] | None, boxes: str, box_format: str, classes: Sequence[str] | None, seed: int, class_list: str,
        num_absent: int, on_error: str,
    ) -> None:
        super().__init__(root=root, seed=seed, class_list=class_list, num_absent=num_absent, on_error=on_error)
        convention = BoxConvention(boxes, box_format)
        given = parse_splits(JsonlFiles, train=train, val=val, test=test)
        found = {name: self._read(name, files) for name, files in given.items()}
        categories = category_ids(found.values(), classes)
        rules = {
            Fault.UNKNOWN_CATEGORY: "desc must be one of data.source.classes",
            Fault.BAD_OBJECT: "an object must be a JSON object with desc (text) and bbox (4 numbers)",
            Fault.BAD_BBOX: f"bbox must be 4 numbers: {convention.numbers}",
            **{fault: f"bbox must {rule} ({convention.text})" for fault, rule in {
                Fault.INVERTED: "not be inverted",
                Fault.OUT_OF_FRAME: "lie inside the image (an excess of up to 1 px is clipped)",
            }.items()},
        }
        for records in found.values():
            records.settle_sizes()
        self.use({n: (r.table(categories, convention, rules), given[n], r.folder) for n, r in found.items()})

    def _read(self, name: str, files: JsonlFiles) -> Records:
        records = Records(self.root / files.jsonl, self.root / files.images, lenient=self.is_lenient(name), trains=name == "train")
        if note := read_jsonl(records):
            self.notes += (note,)
        return records


def read_jsonl(records: Records) -> str:
    """Fill ``records`` from its file; returns a note about ids, or nothing.

    Raises:
        DataError: with file and line.
    """
    others: set[str] = set()
    seen: dict[object, int] = {}
    ids: list[int | None] = []
    with no_collecting():
        for number, line in _lines(records):
            where, written = f"{records.path}:{number}", line.get("id")
            if ids and (written is None) == bool(seen):
                raise DataError("either every line has an id or none", where=where, value=written)
            image_id = None if written is None else _read_id(written, where)
            key = written if image_id is None else image_id
            if written is not None and key in seen:
                rule = f"an image id must be unique in its file (first at {records.path}:{seen[key]})"
                records.refuse("duplicate_image_id", rule, where=where, value=written)
            elif (image := _add_line(records, line, where, number)) is not None:
                ids.append(image_id)
                seen |= {} if written is None else {key: number}
                _add_objects(records, image, line["objects"], others)
    if others:
        log.warning("%s: keys of objects that are not read: %s", records.path, ", ".join(sorted(others)))
    integers = [i for i in ids if i is not None]
    if seen and len(integers) == len(ids):
        records.set_ids(integers)
    elif seen:
        return f"{records.path}: ids are not integers, so images are numbered by line; meta keeps the ids"
    return ""


def _read_id(written: object, where: str) -> int | None:
    """The integer an id is, None where it is text."""
    if isinstance(written, bool) or not isinstance(written, (int, str, float)):
        raise DataError("id must be an integer or text", where=where, value=written)
    found = integral(written)
    if found is not None and not INT64[0] <= found <= INT64[1]:
        raise DataError("id must fit into 64 bits", where=where, value=written)
    return found


def _lines(records: Records) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of every line that is neither blank nor left out."""
    try:
        data = records.path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("the annotation file must exist", where=records.path) from error
    except OSError as error:
        raise DataError("the annotation file must be readable", where=records.path, value=str(error)) from error
    for number, raw in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        if not raw.strip():
            continue
        where = f"{records.path}:{number}"
        try:
            line = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == 1 and raw.strip() in (b"[", b"{"):
                raise DataError("a JSONL file must hold one JSON object per line, not one JSON document", where=where) from error
            records.refuse("bad_json", "a line must be JSON", where=where, value=f"{error}: {raw[:80].decode('utf-8', 'replace')}")
            continue
        problem = _problem(line)
        if problem is None:
            yield number, line
        else:
            records.refuse("bad_line", problem[0], where=where, value=problem[1])


def _problem(line: object) -> tuple[str, object] | None:
    """What is wrong with a line as a whole: rule and value."""
    if not isinstance(line, dict):
        return _LINE_RULE, line if isinstance(line, (str, int, float)) else type(line).__name__
    if not (isinstance(line.get("image"), str) and line["image"].strip() and isinstance(line.get("objects"), list)):
        missing = [k for k in ("image", "objects") if k not in line]
        if missing:
            similar = [s for k in missing for s in nearest(k, map(str, line))]
            return f"{_LINE_RULE}; missing {', '.join(missing)}{hint(similar)}", sorted(map(str, line))
        return _LINE_RULE, {k: line[k] if k == "image" else type(line[k]).__name__ for k in ("image", "objects")}
    size = (line.get("width"), line.get("height"))
    if size != (None, None) and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in size):
        return "width and height must be given together, positive integers", size
    return None


def _add_line(records: Records, line: dict[str, Any], where: str, number: int) -> int | None:
    width, height = line.get("width"), line.get("height")
    size = None if width is None or height is None else (width, height)
    extras = {k: v for k, v in line.items() if k not in _LINE_KEYS}
    return records.add_image(line["image"], place=where, image_id=number, size=size, extras=extras)


def _add_objects(records: Records, image: int, objects: list[Any], others: set[str]) -> None:
    for position, entry in enumerate(objects):
        if not isinstance(entry, dict) or not isinstance(entry.get("desc"), str) or "bbox" not in entry:
            records.add_box(image, None, None, number=position, fault=Fault.BAD_OBJECT, value=entry)
            continue
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            records.add_box(image, None, None, number=position, fault=Fault.BAD_OBJECT, value={"iscrowd": crowd})
            continue
        others.update(entry.keys() - _OBJECT_KEYS)
        records.add_box(image, entry["desc"], entry["bbox"], number=position, crowd=bool(crowd), area=entry.get("area"))
