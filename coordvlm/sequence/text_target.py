"""Formats that models already know: JSON with coordinate tokens or digits, and Qwen2-VL's boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.coords.grid import Digits, Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.target import Coord, Marker, Piece, Target, Text


def quoted(text: str) -> str:
    """A JSON string; other scripts stay as they are."""
    return json.dumps(text, ensure_ascii=False)


class JsonCoordTarget(Target):
    """``{"objects": [{"desc": "cat", "bbox_2d": [<|coord_12|>, ...]}, ...]}``, coordinate tokens bare."""

    format: ClassVar[str] = "json_coord"

    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        yield Text('{"objects": [')
        for i, (desc, bins) in enumerate(zip(descs, numbers_M4, strict=True)):
            label = f'"desc": {quoted(desc)}, ' if desc else ""
            yield Text(f'{", " if i else ""}{{{label}"bbox_2d": [')
            for axis, k in enumerate(bins):
                if axis:
                    yield Text(", ")
                yield Coord(int(k))
            yield Text("]}")
        yield Text("]}")


class _DigitsTarget(Target):
    coords: Digits

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, coords: Grid | Digits, **settings: Any) -> None:
        assert isinstance(coords, Digits), f"{self.format} writes digits"
        super().__init__(tokenizer, vocab, coords, **settings)


class JsonDigitsTarget(_DigitsTarget):
    """``[{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, ...]``, as Qwen2.5-VL (``pixel``) and Qwen3-VL (``qwen1000``) answer."""

    format: ClassVar[str] = "json_digits"

    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        def one(desc: str, row: Sequence[float]) -> str:
            label = f', "label": {quoted(desc)}' if desc else ""
            return f'{{"bbox_2d": [{", ".join(map(self.coords.write, row))}]{label}}}'

        yield Text("[" + ", ".join(one(d, row) for d, row in zip(descs, numbers_M4.tolist(), strict=True)) + "]")


class JsonUnitTarget(_DigitsTarget):
    """``[{"label": "cat", "x_min": 0.1000, "y_min": 0.2000, "x_max": 0.3000, "y_max": 0.4000}, ...]``, 4 decimals in [0, 1].

    The answer to a phrase is one object, without list and label.
    """

    format: ClassVar[str] = "json_unit"
    keys: ClassVar[tuple[str, ...]] = ("x_min", "y_min", "x_max", "y_max")

    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        def one(desc: str, row: Sequence[float]) -> str:
            numbers = (f'"{key}": {self.coords.write(value)}' for key, value in zip(self.keys, row, strict=True))
            label = f'"label": {quoted(desc)}, ' if desc else ""
            return f"{{{label}{', '.join(numbers)}}}"

        if len(descs) == 1 and not descs[0]:
            yield Text(one(descs[0], numbers_M4.tolist()[0]))
            return
        yield Text("[" + ", ".join(one(d, row) for d, row in zip(descs, numbers_M4.tolist(), strict=True)) + "]")


class Qwen2BoxTarget(_DigitsTarget):
    """``<|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`` repeated: Qwen2-VL's own.

    Args:
        markers: the four marker tokens in this order. settings: see ``Target``.
    """

    format: ClassVar[str] = "qwen2_box"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, coords: Grid | Digits, *, markers: Sequence[str], **settings: Any
    ) -> None:
        super().__init__(tokenizer, vocab, coords, **settings)
        self.ref_start, self.ref_end, self.box_start, self.box_end = markers

    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        for desc, row in zip(descs, numbers_M4.tolist(), strict=True):
            x1, y1, x2, y2 = map(self.coords.write, row)
            if desc:
                yield from (Marker(self.ref_start), Text(desc), Marker(self.ref_end))
            yield from (Marker(self.box_start), Text(f"({x1},{y1}),({x2},{y2})"), Marker(self.box_end))
