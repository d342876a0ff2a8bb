"""Phrases with their boxes as arrays, exactly as written, with every broken one marked instead of repaired.

Shapes: P phrases, I images. Worker processes share a few arrays and one block of bytes instead of 140,000 small strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import RULES, UNREADABLE, Fault


class TextColumn(Sequence[str]):
    """Strings in one block of UTF-8."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8") for text in texts]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str:  # type: ignore[override]
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._block[self._ends[at] : self._ends[at + 1]].decode("utf-8")


@dataclass(frozen=True, kw_only=True)
class PhraseTable:
    """What a reader of a format hands to ``phrase_source.PhraseSplit``: one row per phrase.

    Args:
        files: where rows come from. row_word: between file and row in messages, ``:`` for lines.
        ids: int64[P], unique. phrases: P, without white space at the ends.
        image: int64[P], position of the image, -1 where it is unknown (a fault).
        xyxy: float64[P, 4] in source px; NaN where there is no box or not 4 numbers.
        negative: bool[P], the phrase names nothing in its image.
        faults: uint8[P], see ``checks.Fault``.
        file: int64[P], position in ``files``. row: int64[P], line, row or ref id in it.
        image_wh: float64[I, 2], the displayed frame. image_ids: int64[I], equal for phrases on one image.
        file_names: I, relative to the image folder. contents: the encoded images by position, where the file holds them itself.
        values: what the file says, by position, where the arrays cannot tell.
        counts: what the reader left out, by reason. notes: what should be known about the file as a whole.
    """

    files: tuple[Path, ...]
    row_word: str
    ids: NDArray[np.int64]
    phrases: TextColumn
    image: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    negative: NDArray[np.bool_]
    faults: NDArray[np.uint8]
    file: NDArray[np.int64]
    row: NDArray[np.int64]
    image_wh: NDArray[np.float64]
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    contents: Mapping[int, bytes]
    values: Mapping[int, object]
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rules: Mapping[Fault, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """bool[P]: what has these faults can be neither asked nor scored."""
        return np.isin(self.faults, list(UNREADABLE))

    def place(self, at: int) -> str:
        """``train.jsonl:7 (a.jpg, 640 x 480 px)``."""
        where, image = f"{self.files[self.file[at]]}{self.row_word}{self.row[at]}", int(self.image[at])
        if image < 0:
            return where
        width, height = self.image_wh[image].astype(int).tolist()
        return f"{where} ({self.file_names[image]}, {width} x {height} px)"

    def rule(self, at: int) -> str:
        """The rule that a broken row breaks."""
        fault = Fault(int(self.faults[at]))
        return self.rules.get(fault, RULES[fault])

    def value(self, at: int) -> object:
        """The value that breaks it."""
        return self.values.get(at, self.xyxy[at].tolist())
