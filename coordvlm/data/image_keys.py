"""Which image is which, across data sets that store and name the same pictures differently."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

#: COCO's file names of 2014 (with the folder in the name) and of 2017 (without). Exports of RefCOCO add ``_<n>``.
_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?\.\w+")

#: COCO's ids end below 582,000.
_ENOUGH_IDS = 1_000_000


def coco_image_id(name: str) -> int | None:
    """The image id in a COCO file name; None for any other name. Ids are unique over COCO's train, val and test images.

    Twelve digits beyond COCO's range are no id: cameras name files by the minute (``202011210442_1.jpg``).

    >>> coco_image_id("train2014/COCO_train2014_000000581857_16.jpg"), coco_image_id("000000581857.jpg"), coco_image_id("1.jpg")
    (581857, 581857, None)
    """
    match = _COCO.fullmatch(name.replace("\\", "/").rsplit("/", 1)[-1])
    return int(match[1]) if match and int(match[1]) < _ENOUGH_IDS else None


def image_key(path: Path) -> str:
    """Equal for equal images as far as names tell: COCO's id, else the real path."""
    number = coco_image_id(path.name)
    return f"coco {number}" if number is not None else str(path.resolve())


def same_content(paths: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Those of ``paths`` whose bytes are the bytes of one of ``others``. Files are only read where sizes are equal.

    Files that cannot be read are equal to none; whoever opens them will say so.
    """
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in others:
        if (size := _size(path)) is not None:
            sizes[size].append(path)
    hashes: dict[Path, str | None] = {}

    def sha1(path: Path) -> str | None:
        if path not in hashes:
            try:
                hashes[path] = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
            except OSError:
                hashes[path] = None
        return hashes[path]

    found = set()
    for path in paths:
        alike = sizes.get(_size(path) or -1, ())
        if alike and (mine := sha1(path)) is not None and any(sha1(other) == mine for other in alike):
            found.add(path)
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
