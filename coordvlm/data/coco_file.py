"""Reading a COCO (or LVIS) instances JSON into arrays, with every broken annotation marked instead of repaired.

Shapes: I images, A annotations, C categories. Large files are read column by column: 860,000 boxes take about a second after the
JSON itself is parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import Fault, box_faults, first_of_each
from coordvlm.data.table import BoxTable
from coordvlm.data.values import INT64, integral, no_collecting, number, quads
from coordvlm.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CocoTable(BoxTable):
    """A COCO file; ids that were written as strings or floats are integers here.

    Args:
        urls: I; set where ``file_names`` is not.
    """

    urls: Sequence[str | None]

    def image_name(self, image: int) -> str:
        return str(self.file_names[image] or self.urls[image])

    def image_place(self, image: int) -> str:
        return f"{self.path}: image id {self.image_ids[image]}"

    def annotation_place(self, at: int) -> str:
        where = f"{self.path}: annotation id {self.ann_ids[at]} (image id {self.ann_image_id[at]}"
        if self.ann_image[at] >= 0:
            where += f", {self.size_text(int(self.ann_image[at]))}"
        if self.faults[at] == Fault.EMPTY_DESCRIPTION:
            where += f", category id {self.ann_category_id[at]}"
        return where + ")"

    def value(self, at: int) -> object:
        fault, box = Fault(int(self.faults[at])), self.ann_xyxy[at]
        if fault is Fault.DUPLICATE_ANNOTATION_ID:
            return int(self.ann_ids[at])
        if fault is Fault.UNKNOWN_IMAGE:
            return int(self.ann_image_id[at])
        if fault is Fault.UNKNOWN_CATEGORY:
            return int(self.ann_category_id[at])
        if fault is Fault.BAD_AREA:
            return float(self.ann_area[at])
        if fault is Fault.EMPTY_DESCRIPTION:
            return self.category_names[int(np.searchsorted(self.category_ids, self.ann_category_id[at]))]
        return self.values.get(at, [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()])

    def candidates(self, image: int, folder: Path) -> list[Path]:
        if self.file_names[image]:
            return super().candidates(image, folder)
        # LVIS: .../train2017/000000391895.jpg, in a folder that may or may not be the split's
        parts = [p for p in PurePosixPath(urlsplit(self.urls[image] or "").path).parts if p not in ("/", "..")]
        if not parts:
            raise DataError("coco_url must end in a file name", where=self.image_place(image), value=self.urls[image])
        return [folder.joinpath(*parts[-2:]), folder / parts[-1]]


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
    xywh, bad = quads([a.get("bbox") for a in annotations])
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
        path=path, image_ids=image_ids, image_wh=wh, file_names=[_text(i.get("file_name")) for i in images],
        urls=[_text(i.get("coco_url")) for i in images], category_ids=category_ids, category_names=names, ann_ids=ann_ids,
        ann_image_id=ann_image_id, ann_category_id=ann_category_id, ann_xyxy=xyxy, ann_area=area,
        ann_iscrowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool), faults=faults.astype(np.uint8),
        ann_image=ann_image, values={int(i): annotations[i].get("bbox") for i in np.flatnonzero(bad | ~np.isfinite(xyxy).all(1))},
        counts={"duplicate_image_id": int((~first).sum())},
    )


def _sections(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The three lists of a COCO file, checked to be lists of objects."""
    try:
        with no_collecting():
            data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("the annotation file must exist", where=path) from error
    except OSError as error:
        raise DataError("the annotation file must be readable", where=path, value=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError("the annotation file must be JSON", where=path, value=str(error)) from error
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
    if min(values) < INT64[0] or max(values) > INT64[1]:  # type: ignore[type-var,operator]
        raise DataError(f"{key} must fit into 64 bits", where=f"{path}: {section}", value=max(values, key=abs))  # type: ignore[arg-type]
    return np.array(values, dtype=np.int64)


def _integral(path: Path, section: str, key: str, position: int, value: object) -> int:
    found = integral(value)
    if found is None:
        raise DataError(f"{key} must be given, an integer", where=f"{path}: {section}[{position}]", value=value)
    return found


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
        wh = np.array([[number(v) for v in size] for size in sizes])
    bad = ~((wh > 0) & np.isfinite(wh) & (wh == np.floor(wh))).all(1)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise DataError("an image must have a width and a height, positive integers", where=f"{path}: image id {image_ids[at]}",
                        value=sizes[at])
    for image_id, image in zip(image_ids.tolist(), images, strict=True):
        if not isinstance(image.get("file_name") or image.get("coco_url"), str):
            raise DataError("an image must have a file_name or a coco_url", where=f"{path}: image id {image_id}")
    return wh


def _areas(rows: Iterable[dict[str, Any]], xywh: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """COCO's ``area``, else the box's; bool[A] where one is given that is not a finite number."""
    values = [row.get("area") for row in rows]
    given = np.array([v is not None for v in values], dtype=bool)
    area = np.array([math.nan if v is None else number(v) for v in values])
    bad = given & ~np.isfinite(area)
    return np.where(given, area, xywh[:, 2] * xywh[:, 3]), bad


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
