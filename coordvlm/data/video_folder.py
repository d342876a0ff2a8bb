"""Clips that are folders of images, one per frame, in natural order: 2.jpg before 10.jpg."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.data.images import displayed_size, open_image
from coordvlm.data.video_sampling import Sampling
from coordvlm.utils.errors import DataError

_IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_EPS = 1e-6


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden files and what is no image by its ending do not count."""
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in _IMAGES and not p.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(x), "") if x.isdecimal() else (1, 0, x.lower()) for x in parts if x], path.name


def files_at(files: Sequence[Path], seconds: Sequence[float], rate: float) -> list[Path]:
    """The frame that is shown at each time. rate: frames per second."""
    return [files[min(math.floor(s * rate + _EPS), len(files) - 1)] for s in seconds]


def sizes_of(files: Sequence[Path], where: str) -> list[tuple[int, int]]:
    """(width, height) of each, from the headers.

    Raises:
        DataError: a file that is no image.
    """
    known = {file: displayed_size(file, where=f"{where}: {file}") for file in dict.fromkeys(files)}
    return [known[file] for file in files]


def read_frames(files: Sequence[Path], sampling: Sampling, where: str) -> NDArray[np.uint8]:
    """uint8[T, height, width, 3], EXIF orientation applied as ``open_image`` does.

    Raises:
        DataError: an unreadable image; several sizes, unless they are to be resized.
    """
    opened = {
        file: open_image(file, declared=None, max_pixels=sampling.max_pixels, where=f"{where}: {file}") for file in dict.fromkeys(files)
    }
    images = [opened[file] for file in files]
    last = images[-1]
    other = next((file for file in files if opened[file].size != last.size), None)
    if other is not None and sampling.mixed_sizes == "refuse":
        found = {str(f.name): "{} x {}".format(*opened[f].size) for f in (other, files[-1])}
        raise DataError("frames must have one size, or data.source.mixed_sizes=resize", where=f"{where}: {files[0].parent}", value=found)
    return np.stack([np.asarray(i if i.size == last.size else i.resize(last.size, Image.Resampling.BICUBIC)) for i in images])
