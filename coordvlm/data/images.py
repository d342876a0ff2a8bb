"""Opening an image as the displayed frame, and cutting it into the patches a Qwen vision tower reads.

Shapes: P patches, ps patch side in px, m merge factor.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from coordvlm.contracts import ResizeRule
from coordvlm.coords.resize import smart_resize
from coordvlm.utils.errors import ConfigError, DataError

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that exchange width and height
_WHITE = (255, 255, 255, 255)


def open_image(
    image: Path | Image.Image, *, declared: tuple[int, int] | None, max_pixels: int, where: object = None
) -> Image.Image:
    """The displayed frame as 8-bit RGB, fully decoded.

    Grey, palette, CMYK and 16-bit images are converted; transparency is laid on white; of an animation the first frame counts.
    EXIF orientation is applied iff the size then is the declared one. So where the size cannot tell (mirrored or turned by 180
    degrees, or a square image) it is applied, as viewers and annotation tools do.

    Args:
        image: a path or an image in memory.
        declared: (width, height) the annotations refer to; None takes the displayed size as it is.
        max_pixels: limit on width x height, checked before anything is decoded.
        where: what errors name; the path if not given.
    Raises:
        DataError: missing, truncated or not an image; above the limit; size unlike the declared one.
    """
    where = where if where is not None else (image if isinstance(image, Path) else "image in memory")
    if isinstance(image, Path):
        with _refusing(where), Image.open(image) as opened:
            return _displayed_rgb(opened, declared, max_pixels, where)
    with _refusing(where):
        return _displayed_rgb(image, declared, max_pixels, where)


def displayed_size(path: Path | bytes, *, where: object) -> tuple[int, int]:
    """(width, height) of the displayed frame, from the header alone: what ``open_image`` takes for ``declared=None``.

    Orientation is read where it precedes the pixels; a PNG that carries it behind them counts as stored.

    Args:
        path: a file, or the bytes of one.
    Raises:
        DataError: missing, or not an image.
    """
    with _refusing(where), Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
        if image.format == "PNG" and "exif" not in image.info:  # PIL would decode the pixels to look behind them
            return image.size
        width, height = image.size
        return (height, width) if _orientation(image) in _TURNED else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied. PIL turns a TIFF itself while it loads it, and gives its turned size."""
    found = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) else 1


@contextmanager
def _refusing(where: object) -> Iterator[None]:
    """Turn whatever a decoder throws at a broken file into a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides, and sooner
            yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError("the image file must exist", where=where) from error
    except Image.DecompressionBombError as error:
        raise DataError("the image must not be above the pixel limit", where=where, value=str(error)) from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        problem = f"{type(error).__name__}: {error}"
        raise DataError("the image must be readable and complete", where=where, value=problem) from error


def _displayed_rgb(image: Image.Image, declared: tuple[int, int] | None, max_pixels: int, where: object) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"the image must not have more than {max_pixels} pixels", where=where, value=f"{width} x {height}")
    orientation = _orientation(image)
    turned = (height, width) if orientation in _TURNED else (width, height)
    if declared is not None and declared not in ((width, height), turned):
        raise DataError(
            f"the image's size must be the annotated one, {declared[0]} x {declared[1]}; boxes would be scaled wrongly",
            where=where, value=f"{width} x {height}",
        )
    if orientation != 1 and declared in (None, turned):
        image = ImageOps.exif_transpose(image)
    return to_rgb(image, where)


def to_rgb(image: Image.Image, where: object) -> Image.Image:
    """8-bit RGB from any mode. 16 bits per grey value are scaled by 1/257, never cut off."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise DataError("a grey-scale image must hold 8 or 16 bits per pixel", where=where, value=f"mode {image.mode}")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")


def target_size(rule: ResizeRule, width: int, height: int) -> tuple[int, int]:
    """(width, height) in px that the contract's resize rule gives an image; both are multiples of ``rule.factor``.

    Raises:
        ConfigError: a rule that is incomplete or whose size the patches do not divide.
        DataError: an image too elongated for ``smart``.
    """
    if rule.mode == "smart":
        if rule.min_pixels is None or rule.max_pixels is None or not 0 < rule.min_pixels <= rule.max_pixels:
            raise ConfigError(
                f"resize mode smart needs 0 < min_pixels <= max_pixels, got {rule.min_pixels} and {rule.max_pixels}"
            )
        rows, columns = smart_resize(height, width, factor=rule.factor, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)
        return columns, rows
    if rule.mode not in ("square", "fixed"):
        raise ConfigError(f"resize mode must be smart, square or fixed, got {rule.mode!r}")
    if rule.size is None or min(rule.size) <= 0 or any(side % rule.factor for side in rule.size):
        raise ConfigError(
            f"resize mode {rule.mode} needs a size (width, height) of multiples of {rule.factor} "
            f"(patch {rule.patch} x merge {rule.merge}), got {rule.size}"
        )
    if rule.mode == "square" and rule.size[0] != rule.size[1]:
        raise ConfigError(f"resize mode square needs equal sides, got {rule.size}")
    return rule.size[0], rule.size[1]


def resize_and_patchify(
    image: Image.Image, target_wh: tuple[int, int], patch: int, merge: int
) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Bicubic resize, then patches in the order the vision tower reads them: merge blocks row by row, m x m patches in each.

    Args:
        image: RGB.
        target_wh: (width, height) in px, multiples of patch x merge.
    Returns:
        uint8[P, 3, ps, ps] and the grid (1, patch rows, patch columns). Scaling, normalisation and the doubling in time are left
        to the device.
    """
    width, height = target_wh
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}")
    if width % (patch * merge) or height % (patch * merge):
        raise ValueError(f"{width} x {height} px is not a multiple of patch {patch} x merge {merge}")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // patch, width // patch
    blocks = np.asarray(image).reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, patch, patch)
    return np.ascontiguousarray(patches), (1, rows, columns)


@dataclass(frozen=True)
class ImageReader:
    """Image -> patches, for whoever builds sequences (called in a worker).

    Args:
        rule: the contract's resize rule.
        max_pixels: limit on the source image, width x height.
    """

    rule: ResizeRule
    max_pixels: int

    def __call__(
        self, image: Path | Image.Image, width: int, height: int, where: object
    ) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
        """``resize_and_patchify`` of the displayed frame, whose declared size is (width, height).

        Raises:
            DataError: see ``open_image`` and ``target_size``; names the file and ``where`` (the sample).
        """
        frame = self.frame(image, width, height, where)
        named = _named(image, where)
        try:
            target = target_size(self.rule, *frame.size)
        except DataError as error:
            raise DataError(error.rule, where=named, value=error.value) from error
        return resize_and_patchify(frame, target, self.rule.patch, self.rule.merge)

    def frame(self, image: Path | Image.Image, width: int, height: int, where: object) -> Image.Image:
        """The displayed image, RGB, whose declared size is (width, height).

        Raises:
            DataError: see ``open_image``; names the file and ``where``.
        """
        return open_image(image, declared=(width, height), max_pixels=self.max_pixels, where=_named(image, where))


def _named(image: Path | Image.Image, where: object) -> object:
    return f"{image} ({where})" if isinstance(image, Path) else where
