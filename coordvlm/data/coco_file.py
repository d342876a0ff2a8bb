"""Reading a COCO (or LVIS) instances JSON into arrays, with every broken annotation marked instead of repaired.

Shapes: I images, A annotations, C categories. Large files are read column by column: 860,000 boxes take about a second after the
JSON itself is parsed, and worker processes share arrays instead of millions of small objects.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import Fault, box_faults, first_of_each
from coordvlm.utils.errors import DataError

_INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class CocoTable:
    """An annotation file, exactly as written except that ids are integers.

    Args:
        path: the file.
        image_ids: int64[I] in file order, unique. image_wh: float64[I, 2].
        file_names, urls: I of each; at least one is set.
        category_ids: int64[C] ascending, unique. category_names: C.
        ann_ids, ann_image_id, ann_category_id: int64[A] in file order.
        ann_xyxy: float64[A, 4] (NaN where bbox is not 4 numbers). ann_area: float64[A]. ann_iscrowd: bool[A].
        faults: uint8[A], see ``checks.Fault``. ann_image: int64[A], position of the image, -1 if unknown.
        raw_bbox: the file's bbox of annotations whose fault is BAD_BBOX or NOT_FINITE, by position, for messages.
        num_duplicate_images: images left out because an earlier one has their id (only when that is allowed).
    """

    path: Path
    image_ids: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    file_names: Sequence[str | None]
    urls: Sequence[str | None]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    ann_ids: NDArray[np.int64]
    ann_image_id: NDArray[np.int64]
    ann_category_id: NDArray[np.int64]
    ann_xyxy: NDArray[np.float64]
    ann_area: NDArray[np.float64]
    ann_iscrowd: NDArray[np.bool_]
    faults: NDArray[np.uint8]
    ann_image: NDArray[np.int64]
    raw_bbox: dict[int, object]
    num_duplicate_images: int = 0


def read_coco(path: Path, *, replace_underscores: bool = False, allow_duplicate_images: bool = False) -> CocoTable:
    """Read and check a file. Annotation faults are marked; what makes the whole file meaningless raises.

    Args:
        replace_underscores: write ``traffic_light`` as ``traffic light``.
        allow_duplicate_images: keep the first of several images with one id instead of raising.
    Raises:
        DataError: missing, not JSON, not COCO, no images or annotations, broken ids, sizes, names or categories.
    """
    images, annotations, categories = _sections(path)
    image_ids = _ids(path, "images", "id", images)
    first = first_of_each(image_ids)
    if not first.all() and not allow_duplicate_images:
        raise DataError("an image id must be unique in its file", where=f"{path}: images", value=int(image_ids[~first][0]))
    images = [image for image, keep in zip(images, first.tolist(), strict=True) if keep]
    image_ids = image_ids[first]
    category_ids, names = _categories(path, categories, replace_underscores)
    ann_image_id, ann_ids = _ids(path, "annotations", "image_id", annotations), _ids(path, "annotations", "id", annotations)
    ann_category_id = _ids(path, "annotations", "category_id", annotations)
    xywh, bad = _boxes([a.get("bbox") for a in annotations])
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    area, bad_area = _areas(annotations, xywh)
    order = np.argsort(image_ids, kind="stable")
    spot = np.minimum(np.searchsorted(image_ids[order], ann_image_id), len(order) - 1)
    ann_image = np.where(image_ids[order][spot] == ann_image_id, order[spot], -1)
    wh = _sizes(path, images, image_ids)
    empty = category_ids[np.array([not name.strip() for name in names], dtype=bool)]
    faults = np.zeros(len(annotations), dtype=np.uint8)
    for fault, mask in (  # from the least to the most basic: the last one written is reported
        (Fault.BAD_AREA, bad_area),
        (Fault.EMPTY_DESCRIPTION, np.isin(ann_category_id, empty)),
        (None, box_faults(xyxy, wh[ann_image])),
        (Fault.BAD_BBOX, bad),
        (Fault.UNKNOWN_CATEGORY, ~np.isin(ann_category_id, category_ids)),
        (Fault.UNKNOWN_IMAGE, ann_image < 0),
        (Fault.DUPLICATE_ANNOTATION_ID, ~first_of_each(ann_ids)),
    ):
        faults = np.where(mask > 0, mask if fault is None else np.uint8(fault), faults)
    return CocoTable(
        path, image_ids, wh, [_text(i.get("file_name")) for i in images], [_text(i.get("coco_url")) for i in images],
        category_ids, names, ann_ids, ann_image_id, ann_category_id, xyxy, area,
        np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool), faults.astype(np.uint8), ann_image,
        {int(i): annotations[i].get("bbox") for i in np.flatnonzero(bad | ~np.isfinite(xyxy).all(1))}, int((~first).sum()),
    )


def _sections(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The three lists of a COCO file, checked to be lists of objects."""
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: collecting doubles the time
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("the annotation file must exist", where=path) from error
    except OSError as error:
        raise DataError("the annotation file must be readable", where=path, value=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError("the annotation file must be JSON", where=path, value=str(error)) from error
    finally:
        if collecting:
            gc.enable()
    keys = ("images", "annotations", "categories")
    if not isinstance(data, dict):
        rule = "a COCO file must be a JSON object with images, annotations and categories"
        raise DataError(rule, where=path, value=type(data).__name__)
    missing = [key for key in keys if key not in data]
    if missing:
        raise DataError(f"a COCO file must have images, annotations and categories; missing {', '.join(missing)}", where=path,
                        value=sorted(map(str, data))[:10])
    for key in keys:
        rows = data[key]
        if not isinstance(rows, list) or not set(map(type, rows)) <= {dict}:
            raise DataError("must be a list of JSON objects", where=f"{path}: {key}", value=type(rows).__name__)
        if not rows:
            raise DataError("an annotation file must not be empty: training would see no target and evaluation no truth",
                            where=path, value=f"no {key}")
    return data["images"], data["annotations"], data["categories"]


def _ids(path: Path, section: str, key: str, rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """int64[rows]; integral strings and floats (``"2299"``, ``2299.0``) count as the integer they mean."""
    values = [row.get(key) for row in rows]
    if set(map(type, values)) - {int}:
        values = [_integral(path, section, key, i, value) for i, value in enumerate(values)]
    if min(values) < _INT64[0] or max(values) > _INT64[1]:  # type: ignore[type-var,operator]
        raise DataError(f"{key} must fit into 64 bits", where=f"{path}: {section}", value=max(values, key=abs))  # type: ignore[arg-type]
    return np.array(values, dtype=np.int64)


def _integral(path: Path, section: str, key: str, position: int, value: object) -> int:
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise DataError(f"{key} must be given, an integer", where=f"{path}: {section}[{position}]", value=value)


def _categories(
    path: Path, rows: Sequence[dict[str, Any]], replace_underscores: bool
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    ids = _ids(path, "categories", "id", rows)
    names = []
    for category_id, row in zip(ids.tolist(), rows, strict=True):
        name = row.get("name")
        if not isinstance(name, str):
            raise DataError("a category must have a name", where=f"{path}: category id {category_id}", value=name)
        names.append(name.replace("_", " ") if replace_underscores else name)
    for what, first in (("id", first_of_each(ids)), ("name", np.array([names.index(n) == i for i, n in enumerate(names)]))):
        if not first.all():
            at = int(np.flatnonzero(~first)[0])
            raise DataError(f"a category {what} must be unique: descriptions are matched to names",
                            where=f"{path}: category id {ids[at]}", value=names[at] if what == "name" else int(ids[at]))
    order = np.argsort(ids)
    return ids[order], tuple(names[i] for i in order)


def _sizes(path: Path, images: Sequence[dict[str, Any]], image_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    sizes = [(image.get("width"), image.get("height")) for image in images]
    if set(map(type, chain.from_iterable(sizes))) <= {int}:
        wh = np.array(sizes, dtype=np.float64)
    else:
        wh = np.array([[_number(v) for v in size] for size in sizes])
    bad = ~((wh > 0) & np.isfinite(wh) & (wh == np.floor(wh))).all(1)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise DataError("an image must have a width and a height, positive integers", where=f"{path}: image id {image_ids[at]}",
                        value=sizes[at])
    for image_id, image in zip(image_ids.tolist(), images, strict=True):
        if not isinstance(image.get("file_name") or image.get("coco_url"), str):
            raise DataError("an image must have a file_name or a coco_url", where=f"{path}: image id {image_id}")
    return wh


def _boxes(values: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64[A, 4] xywh as written and bool[A], True (and NaN in the box) where it is not a list of 4 numbers."""
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            return _floats(flat).reshape(-1, 4), np.zeros(len(values), dtype=bool)
    bad = np.array([
        not (isinstance(v, list) and len(v) == 4 and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in v))
        for v in values
    ])
    rows = [[math.nan] * 4 if b else v for v, b in zip(values, bad.tolist(), strict=True)]
    return _floats(list(chain.from_iterable(rows))).reshape(-1, 4), bad


def _floats(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond float64
        return np.array([_number(v) for v in values])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _areas(rows: Iterable[dict[str, Any]], xywh: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """COCO's ``area``, else the box's; bool[A] where one is given that is not a finite number."""
    values = [row.get("area") for row in rows]
    given = np.array([v is not None for v in values], dtype=bool)
    area = np.array([math.nan if v is None else _number(v) for v in values])
    bad = given & ~np.isfinite(area)
    return np.where(given, area, xywh[:, 2] * xywh[:, 3]), bad


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
