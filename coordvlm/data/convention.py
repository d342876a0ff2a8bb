"""How the numbers of a box are to be read. Declared by the user, never guessed; a file that contradicts the declaration is refused.

Shapes: A annotations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import Fault, box_faults
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

#: Unit -> the number that stands for the image's right or lower edge; None: pixels of the displayed frame.
UNITS: dict[str, float | None] = {"pixel": None, "norm": 1.0, "norm999": 999.0, "norm1000": 1000.0}
FORMATS = {
    "xyxy": "x1, y1, x2, y2",
    "xywh": "x1, y1, width, height",
    "cxcywh": "centre x, centre y, width, height",
}
#: A number above this share of the full scale is of another unit, not a box that sticks out.
BEYOND = 1.5
#: Boxes from which on it counts that most of them are inverted or out of frame.
ENOUGH = 4
#: A convention fits where no more than this share of the boxes is inverted or out of frame.
_FITS = 0.01


@dataclass(frozen=True)
class BoxConvention:
    """Unit and order of the four numbers.

    Args:
        boxes: one of ``UNITS``. box_format: one of ``FORMATS``.
        one_based: pixels are counted from 1 and the last one is part of the box (PASCAL VOC): an object in pixels 1..W covers
            [0, W]. So x1 and y1 are lowered by one and x2 and y2 stay. Needs ``pixel`` and ``xyxy``.
        option: how messages call the place of the declaration.
    """

    boxes: str
    box_format: str
    one_based: bool = False
    option: str = "data.source"

    def __post_init__(self) -> None:
        for key, value, known in (("boxes", self.boxes, UNITS), ("box_format", self.box_format, FORMATS)):
            if value not in known:
                raise ConfigError(f"{self.option}.{key} must be one of {', '.join(known)}, got {value!r}{hint(nearest(str(value), known))}")

    @property
    def text(self) -> str:
        """The declaration, for messages."""
        return f"{self.option}.boxes={self.boxes}, {self.option}.box_format={self.box_format}"

    @property
    def numbers(self) -> str:
        """``x1, y1, x2, y2``."""
        return FORMATS[self.box_format]

    def to_xyxy_px(self, raw_A4: NDArray[np.float64], wh_A2: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[A, 4] xyxy in source px of the numbers as written."""
        first, second = raw_A4[:, :2], raw_A4[:, 2:]
        if self.box_format == "xywh":
            second = first + second
        elif self.box_format == "cxcywh":
            first, second = first - second / 2, first + second / 2
        if self.one_based:
            first = first - 1
        xyxy = np.concatenate([first, second], 1)
        scale = UNITS[self.boxes]
        return xyxy if scale is None else xyxy * np.tile(wh_A2, 2) / scale

    def check_range(self, raw_A4: NDArray[np.float64], place: Callable[[int], str]) -> None:
        """Refuse numbers that cannot be in the declared unit.

        Raises:
            DataError: a number far above the full scale, or none above 1 where far larger ones are declared.
        """
        scale = UNITS[self.boxes]
        size = np.abs(np.where(np.isfinite(raw_A4), raw_A4, 0)).max(1, initial=0)
        if scale is not None and (beyond := np.flatnonzero(size > BEYOND * scale)).size:
            at = int(beyond[0])
            raise DataError(
                f"boxes are declared in 0..{scale:g} ({self.option}.boxes={self.boxes}) and this one is of another unit, as {beyond.size} "
                f"of {len(size)} are; declare the one the file is written in ({', '.join(u for u in UNITS if u != self.boxes)})",
                where=place(at), value=raw_A4[at].tolist(),
            )
        if (scale is None or scale > 1) and size.any() and size.max() <= 1:
            at = int(np.flatnonzero(size)[0])
            unit = "pixels" if scale is None else f"0..{scale:g}"
            raise DataError(
                f"boxes are declared in {unit} ({self.option}.boxes={self.boxes}) and no number of the file is above 1; "
                f"declare {self.option}.boxes=norm if they are shares of the image",
                where=place(at), value=raw_A4[at].tolist(),
            )

    def check_share(
        self, faults_A: NDArray[np.uint8], raw_A4: NDArray[np.float64], place: Callable[[int], str], *, limit: float = 0.5,
        wh_A2: NDArray[np.float64] | None = None,
    ) -> None:
        """Refuse a file too many of whose boxes are inverted or leave their image: read like this, its truth is somebody else's.

        Args:
            limit: share of the boxes that is too many. wh_A2: size of each box's image; given, the message names what would fit.
        Raises:
            DataError: more than ``limit`` of at least ``ENOUGH`` boxes.
        """
        wrong = np.flatnonzero(np.isin(faults_A, [Fault.INVERTED, Fault.OUT_OF_FRAME]))
        if len(faults_A) >= ENOUGH and wrong.size > len(faults_A) * limit:
            at = int(wrong[0])
            fits = [] if wh_A2 is None else self.fitting(raw_A4, wh_A2)
            advice = f"the numbers fit {' or '.join(fits)}" if fits else "declare the unit and the order the file is written in"
            raise DataError(
                f"{wrong.size} of {len(faults_A)} boxes are inverted or out of frame as declared ({self.text}); {advice}",
                where=place(at), value=raw_A4[at].tolist(),
            )

    def fitting(self, raw_A4: NDArray[np.float64], wh_A2: NDArray[np.float64]) -> list[str]:
        """Other declarations that the numbers do not contradict; in the declared unit if there are any, else in others."""
        finite = np.isfinite(raw_A4).all(1)
        raw, wh = raw_A4[finite], wh_A2[finite]
        found: dict[bool, list[str]] = {True: [], False: []}
        for unit, scale in UNITS.items():
            if unit == "norm999" and self.boxes != "norm999":  # cannot be told from norm1000
                continue
            size = np.abs(raw).max(initial=0)
            if (scale is not None and size > BEYOND * scale) or (scale != 1 and size <= 1):
                continue
            for order in FORMATS:
                other = BoxConvention(unit, order, option=self.option)
                faults = box_faults(other.to_xyxy_px(raw, wh), wh)
                wrong = np.isin(faults, [Fault.INVERTED, Fault.OUT_OF_FRAME]).sum()
                if (unit, order) != (self.boxes, self.box_format) and wrong <= _FITS * len(raw):
                    found[unit == self.boxes].append(f"{self.option}.boxes={unit} {self.option}.box_format={order}")
        return found[True] or found[False]
