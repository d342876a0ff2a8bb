"""Where grounding fails: Acc@0.5 and counts by what a phrase says, what it names and how its answer ended.

Rows of one group need not add up: a phrase may hold several of the words.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from coordvlm.contracts.sample import PhraseTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray
from coordvlm.metrics.phrases import Outcomes

#: The words by which a phrase says where its thing is or which one it is: row of the table -> words that count for it.
RELATION_WORDS: Mapping[str, str] = {
    "left": "left leftmost lefthand lft",
    "right": "right rightmost righthand rt",
    "top, above": "top topmost upper uppermost above over",
    "bottom, below": "bottom bottommost lower lowermost lowest below under underneath beneath",
    "middle, between": "middle center centre central between among",
    "front, behind": "front behind back background foreground",
    "next to, near": "next near nearest nearer beside besides by close closer closest touching against",
    "size": "small smaller smallest little tiny big bigger biggest large larger largest tall taller tallest short shorter shortest",
    "order": "first second third fourth fifth last 1st 2nd 3rd 4th 5th",
    "not, without": "not no without isn't doesn't nothing none",
}
#: Name of a bucket -> [low, high).
_LENGTHS = {"0": (0, 1), "1": (1, 2), "2": (2, 3), "3": (3, 4), "4 – 5": (4, 6), "6 – 8": (6, 9), "9 – 12": (9, 13), "> 12": (13, math.inf)}
_AREAS = {"small, < 32² px": (0, 32.0**2), "medium, < 96² px": (32.0**2, 96.0**2), "large, ≥ 96² px": (96.0**2, math.inf)}
_SHARES = {"< 1 %": (0, 0.01), "1 – 5 %": (0.01, 0.05), "5 – 15 %": (0.05, 0.15), "15 – 40 %": (0.15, 0.4), "≥ 40 %": (0.4, math.inf)}
_TINY = math.ulp(0.0)
_IOUS = {
    "0": (0, _TINY), "< 0.25": (_TINY, 0.25), "0.25 – 0.5": (0.25, 0.5), "0.5 – 0.75": (0.5, 0.75), "0.75 – 0.9": (0.75, 0.9),
    "≥ 0.9": (0.9, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class FailureRow:
    """One bucket.

    Args:
        phrases: those with a target. right: of them, answered at IoU >= 0.5. acc_50: their share; NaN for none.
        iou_mean: failures count 0. none, unparsed: answered by "none", or by nothing that could be read.
    """

    group: str
    bucket: str
    phrases: int
    right: int
    acc_50: float
    iou_mean: float
    none: int
    unparsed: int


def failure_table(truth: PhraseTruth, found: Outcomes, kinds: Mapping[int, str] | None = None) -> list[FailureRow]:
    """Rows for every bucket that holds a phrase, in the order of the groups.

    Groups: ``all``, ``kind`` (where the data name it), ``words in the phrase``, ``relation``, ``object size`` (COCO's areas, of the
    box), ``share of the image``, ``IoU``, ``answer``; phrases with a target. ``no target``: the others, where right means rejected.

    Args:
        found: ``outcomes`` of the same truth. kinds: phrase id -> kind of phrase.
    """
    rows = [_row(group, bucket, found, inside & found.has_target) for group, bucket, inside in _buckets(truth, found, kinds or {})]
    rows = [row for row in rows if row.phrases]
    negative = ~found.has_target
    if num := int(negative.sum()):
        rejected, unparsed = int((found.says_none & negative).sum()), int((negative & ~found.says_none & ~found.parsed).sum())
        rows.append(FailureRow("no target", "all", num, rejected, rejected / num, math.nan, rejected, unparsed))
    return rows


def words_of(phrase: str) -> list[str]:
    """Lower-case words; an apostrophe belongs to its word, a hyphen separates."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", phrase.casefold())


def _buckets(truth: PhraseTruth, found: Outcomes, kinds: Mapping[int, str]) -> Iterator[tuple[str, str, BoolArray]]:
    everything = np.ones(len(found), dtype=np.bool_)
    yield "all", "all", everything
    kind = [kinds.get(i, "") for i in found.ids.tolist()]
    for name in sorted(set(kind) - {""}):
        yield "kind", name, np.asarray([k == name for k in kind], dtype=np.bool_)
    words = [words_of(phrase) for phrase in truth.phrases]
    yield from _tiles("words in the phrase", np.asarray([len(w) for w in words], dtype=np.float64), _LENGTHS)
    without = everything.copy()
    for name, listed in RELATION_WORDS.items():
        wanted = frozenset(listed.split())
        inside = np.asarray([not wanted.isdisjoint(w) for w in words], dtype=np.bool_)
        without &= ~inside
        yield "relation", name, inside
    yield "relation", "none of these", without
    sides = found.true_xyxy[:, 2:] - found.true_xyxy[:, :2]
    yield from _tiles("object size", sides.prod(1), _AREAS)
    yield from _tiles("share of the image", sides.prod(1) / found.image_wh.prod(1), _SHARES)
    yield from _tiles("IoU", found.iou, _IOUS)
    status = np.asarray(found.status)
    for name in ("box", "none", "unparsed"):
        yield "answer", name, status == name
    yield "answer", "more than one box", found.extra > 0
    yield "answer", "asked again", found.attempts > 1


def _tiles(group: str, values: FloatArray, buckets: Mapping[str, tuple[float, float]]) -> Iterator[tuple[str, str, BoolArray]]:
    for name, (low, high) in buckets.items():
        yield group, name, (values >= low) & (values < high)  # NaN is in none


def _row(group: str, bucket: str, found: Outcomes, inside: BoolArray) -> FailureRow:
    num = int(inside.sum())
    right = int((found.hit(0.5) & inside).sum())
    unparsed = int((inside & ~found.parsed & ~found.says_none).sum())
    iou = float(found.iou[inside].mean()) if num else math.nan
    return FailureRow(group, bucket, num, right, right / num if num else math.nan, iou, int((inside & found.says_none).sum()), unparsed)


def failures_to_json(rows: Sequence[FailureRow]) -> dict[str, object]:
    """The content of failures.json; strict JSON, undefined values are null."""
    return {"rows": [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()} for row in rows]}


def failures_csv(rows: Sequence[FailureRow]) -> str:
    """One line per row under the names of ``FailureRow``; an undefined value is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.name for f in fields(FailureRow)])
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in asdict(row).values()])
    return out.getvalue()
