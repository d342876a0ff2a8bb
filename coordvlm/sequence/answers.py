"""Answers of any model, as text alone: one call from what it said to boxes in source pixels."""

from __future__ import annotations

from coordvlm.contracts import Record, SlotReadout
from coordvlm.coords.grid import Digits, Grid, Size, to_px
from coordvlm.sequence.raw_record import RawRecord
from coordvlm.sequence.records import Box, box_px, in_range, judge, number_slots
from coordvlm.sequence.text_parse import read_records
from coordvlm.utils.errors import ConfigError

#: Names for what a number in an answer means. Nothing in a text tells them apart reliably: they are declared, never guessed.
CONVENTIONS: dict[str, Grid | Digits] = {
    "norm1": Digits("unit"),
    "norm100": Grid("norm100", 101, 100),
    "norm999": Grid("k999", 1000, 999),
    "norm1000": Digits("qwen1000"),
    "loc1024_yx": Grid("loc1024", 1024, 1024),
    "abs": Digits("pixel"),
}


def parse_answer(
    text: str,
    *,
    coords: Grid | Digits | str,
    size: Size,
    model_size: Size | None = None,
    style: str | None = None,
    coord_token: str = "<|coord_{k}|>",
) -> list[Record]:
    """Records of one answer, dropped ones included, with score 1.

    A box outside the convention's range is dropped as ``out_of_range`` but keeps its coordinates, so that a caller may clip it.
    Crossed corners and boxes without area are ``degenerate``; no corner is swapped. A missing description is an empty one unless
    ``style`` demands it. PaliGemma's ``<loc....>`` means 1024 steps, y first: under any other convention it is ``not_a_coordinate``.

    Args:
        coords: what the numbers mean: a grid, a ``Digits`` convention, or a name of ``CONVENTIONS``.
        size: (width, height) of the source image in px.
        model_size: (width, height) of the image as the model saw it; needed by pixels (``abs``) only.
        style: see ``read_records``; None reads every known way of writing a box.
    Raises:
        ConfigError: an unknown convention. ValueError: a size that is not positive, or pixels without ``model_size``.
    """
    if isinstance(coords, str):
        if coords not in CONVENTIONS:
            raise ConfigError(f"coords must be a grid, a convention in digits, or one of {', '.join(CONVENTIONS)}, got {coords!r}")
        coords = CONVENTIONS[coords]
    for name, wh in (("size", size), ("model_size", model_size)):
        if wh is not None and min(wh) <= 0:
            raise ValueError(f"{name} must be positive, got {wh[0]} x {wh[1]}")
    if model_size is None:
        if isinstance(coords, Digits) and coords.name == "pixel":
            raise ValueError("coordinates in pixels refer to the image as the model saw it: model_size is needed")
        model_size = size
    raw = read_records(text, style=style, coord_token=coord_token)
    return [_record(r, coords, size, model_size) for r in raw.items]


def _record(raw: RawRecord, coords: Grid | Digits, size: Size, model_size: Size) -> Record:
    status = raw.status
    if raw.form == "loc" and coords.name != "loc1024":
        status = "not_a_coordinate"
    slots: tuple[SlotReadout, ...] = ()
    box: Box | None = None
    point: tuple[float, float] | None = None
    if status in ("ok", "repaired", "missing_desc") and raw.tokens and isinstance(coords, Digits):
        status = "not_a_coordinate"
    if status in ("ok", "repaired", "missing_desc"):
        slots = number_slots(raw.values, coords, model_size)
        inside = in_range(raw.values, coords, model_size)
        if slots and raw.is_point:
            x, y = to_px([s.argmax for s in slots], *size)
            point = (float(x), float(y))
        elif slots:
            box = box_px(slots, "argmax", size)
            status = judge(status, box, inside=inside)
        if not inside and status != "missing_desc":
            status = "out_of_range"
    return Record(
        desc=raw.desc, box_xyxy_px=box, score=1.0, status=status, score_parts={"desc": 1.0, "geom": 1.0}, slots=slots, point_px=point
    )
