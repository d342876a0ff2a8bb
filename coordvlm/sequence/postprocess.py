"""What a user gets of a prediction: boxes inside the image, with an area and a score worth having. Evaluation reads none of this."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coordvlm.contracts import Prediction, Record

Box = tuple[float, float, float, float]
#: Status of a box that reached out of the image.
CLIPPED = "clipped"


@dataclass(frozen=True)
class Found:
    """A box in source pixels, xyxy, inside the image. ``status``: ``ok``, ``repaired`` or ``clipped``."""

    box: Box
    score: float
    desc: str
    status: str


@dataclass(frozen=True)
class Answer:
    """What was found in one image.

    Args:
        phrase: what was asked for; None: every object. size: (width, height) of the displayed image.
        boxes: in the order in which the model named them. The first one is the answer to a phrase.
        says_none: the answer is that the phrase names nothing here.
        rejected: reason -> records that were left out.
    """

    phrase: str | None
    size: tuple[int, int]
    boxes: tuple[Found, ...]
    says_none: bool
    raw_text: str
    flags: frozenset[str]
    rejected: Mapping[str, int] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)

    @property
    def box(self) -> Box | None:
        """The first box, None without one."""
        return self.boxes[0].box if self.boxes else None

    @property
    def kind(self) -> str:
        """``boxes``; ``none`` (nothing is there); ``nothing`` (no answer that can be read, or that scores enough)."""
        empty_list = self.phrase is None and not self.rejected and "no_output" not in self.flags
        return "boxes" if self.boxes else "none" if self.says_none or empty_list else "nothing"

    def to_json(self) -> dict[str, Any]:
        """Strict JSON of everything but the image."""
        return {
            "phrase": self.phrase,
            "size": list(self.size),
            "answer": self.kind,
            "boxes": [{"box": list(f.box), "score": f.score, "desc": f.desc, "status": f.status} for f in self.boxes],
            "rejected": dict(self.rejected),
            "raw_text": self.raw_text,
            "flags": sorted(self.flags),
            "attempts": int(self.timing.get("attempts", 1)),
            "seconds": float(self.timing.get("seconds", 0.0)),
            "new_tokens": int(self.timing.get("new_tokens", 0)),
        }


def finish(prediction: Prediction, *, phrase: str | None, min_score: float) -> Answer:
    """Clip every box to the image; leave out, and count, those that cannot be read, have no area in the image or score too low.

    A box that the parser dropped only because it reaches out of the image is kept as ``clipped``.
    """
    found, rejected = [], Counter[str]()
    for record in prediction.records:
        box = _inside(record, prediction.size)
        if not record.kept and record.status != "out_of_range":
            rejected[record.status] += 1
        elif box is None:
            rejected["degenerate"] += 1
        elif not record.score >= min_score:
            rejected["low_score"] += 1
        else:
            same = box == record.box_xyxy_px
            found.append(Found(box, record.score, record.desc, record.status if same and record.kept else CLIPPED))
    return Answer(
        phrase, prediction.size, tuple(found), "says_none" in prediction.flags, prediction.raw_text, prediction.flags, dict(rejected),
        prediction.timing,
    )


def _inside(record: Record, size: tuple[int, int]) -> Box | None:
    """The part of a record's box that lies in the image; None if it has no area."""
    if record.box_xyxy_px is None or not all(map(math.isfinite, record.box_xyxy_px)):
        return None
    x1, y1, x2, y2 = (min(max(v, 0.0), float(limit)) for v, limit in zip(record.box_xyxy_px, (*size, *size), strict=True))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
