"""Where counting errs: single steps by size and place of their error, by what was asked, and counts by how much there was to count.

Everything is plain data for pages and files. Errors are on a side of 384; "within" includes the bound.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import PointTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray
from coordvlm.metrics.checklist import Check, Curve, checklist
from coordvlm.metrics.pixels import COARSE_EDGES, TIERS, pixel_histogram
from coordvlm.metrics.point_outcomes import Counts, Steps, counts_of, steps_of

#: px within which the tables call an answer right.
WITHIN = 5.0
#: Rows and columns of the image's regions, from top left.
REGIONS = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
_NUMBERS = {"0": (0, 1), "1 – 5": (1, 6), "6 – 10": (6, 11), "11 – 20": (11, 21), "21 – 50": (21, 51), "> 50": (51, math.inf)}
_MARKED = {"0": (0, 1), "1 – 4": (1, 5), "5 – 9": (5, 10), "10 – 19": (10, 20), "≥ 20": (20, math.inf)}


@dataclass(frozen=True)
class HistogramRow:
    """Single steps whose error lies in (low, high].

    Args:
        share: of all steps with a target. share_x, share_y: the same of the errors in x and y alone.
        within: share of errors up to ``high``. wanted: tier -> the share it wants up to ``high``.
    """

    label: str
    low: float
    high: float
    steps: int
    share: float
    share_x: float
    share_y: float
    within: float
    wanted: Mapping[str, float]


@dataclass(frozen=True)
class ErrorRow:
    """Single steps of one bucket that have a target.

    Args:
        within_5, within_10, above_15: shares. on_unmarked: share within 5 px of any unmarked object. bias_x, bias_y: mean signed error, px.
    """

    group: str
    bucket: str
    steps: int
    within_5: float
    within_10: float
    above_15: float
    mean: float
    median: float
    p95: float
    on_unmarked: float
    bias_x: float
    bias_y: float


@dataclass(frozen=True)
class DoneRow:
    """Whether it was told that everything is marked. ``kind``: ``end`` (it is), ``last`` (one is left), ``early`` (more are)."""

    kind: str
    steps: int
    said_done: int
    said_more: int
    accuracy: float
    mean_probability: float


@dataclass(frozen=True)
class CountRow:
    """Counts of the loop in samples of which there is a certain number. Shares are of these samples; bias > 0: too many."""

    bucket: str
    samples: int
    mae: float
    bias: float
    exact: float
    finished: float
    loc_f1: float


@dataclass(frozen=True)
class CountingTables:
    """All of it.

    Args:
        histogram: by size of the error. errors: by group and bucket, those that hold a step. done, counts: likewise.
        count_true, count_found: of every sample that was counted, by ascending id; ``count_ids`` are the ids.
            ``done`` is empty where nothing of it was learnt.
        checks: what the run was to reach, each passed, failed or not measured.
    """

    histogram: tuple[HistogramRow, ...]
    errors: tuple[ErrorRow, ...]
    done: tuple[DoneRow, ...]
    counts: tuple[CountRow, ...]
    count_ids: tuple[int, ...]
    count_true: tuple[int, ...]
    count_found: tuple[int, ...]
    checks: tuple[Check, ...]


def counting_tables(
    truth: PointTruth,
    predictions: Sequence[Prediction],
    evaluation: Evaluation,
    *,
    curves: Mapping[str, Curve],
    gradients: Mapping[str, object] | None,
) -> CountingTables:
    """Tables of an evaluation.

    Args:
        evaluation: by ``CountingMetric`` of these predictions; errors are measured to what it measured them to.
        curves: name -> (steps, values) of the training's log; empty for none. gradients: its summary of gradient norms; None for none.
    """
    answers = {int(p.sample_id): p for p in predictions}
    steps = steps_of(truth, answers, any_unmarked=bool(evaluation.counts.get("measured_to_any_unmarked", 0)))
    counts = counts_of(truth, answers, tolerance_px=WITHIN)
    ran = np.flatnonzero(counts.ran)
    done = () if evaluation.counts.get("done_not_taught") else tuple(done_table(steps))
    return CountingTables(
        histogram=tuple(error_histogram(steps)), errors=tuple(error_table(truth, steps)), done=done,
        counts=tuple(count_table(counts)), count_ids=tuple(truth.image_ids[ran].tolist()), count_true=tuple(counts.num[ran].tolist()),
        count_found=tuple(counts.counted[ran].tolist()), checks=tuple(checklist(evaluation, curves, gradients)),
    )


def error_histogram(steps: Steps) -> list[HistogramRow]:
    """0-2, 2-5, 5-10 and above 10 px; shares are NaN without a step."""
    at = steps.has_target
    both, (x, y) = pixel_histogram(steps.error384[at]), (pixel_histogram(steps.error384_xy[at, axis]) for axis in (0, 1))
    total = max(int(at.sum()), 1) if at.any() else math.nan
    edges = (0.0, *COARSE_EDGES, math.inf)
    rows, below = [], 0
    for i, (low, high) in enumerate(pairwise(edges)):
        below += int(both[i])
        label = f"> {low:g}" if math.isinf(high) else f"{low:g} – {high:g}"
        wanted = {tier: share for tier, (share, radius, _) in TIERS.items() if radius == high}
        share, share_x, share_y, within = (float(n) / total for n in (both[i], x[i], y[i], below))
        rows.append(HistogramRow(label, low, high, int(both[i]), share, share_x, share_y, within, wanted))
    return rows


def error_table(truth: PointTruth, steps: Steps) -> list[ErrorRow]:
    """Rows of ``all``, ``objects``, ``marked``, ``left``, ``region`` (of the aim, 3 x 3) and, where there are several, ``category``."""
    return [_error_row(group, bucket, steps, inside) for group, bucket, inside in _buckets(truth, steps) if inside.any()]


def _buckets(truth: PointTruth, steps: Steps) -> Iterator[tuple[str, str, BoolArray]]:
    at = steps.has_target
    yield "all", "all", at
    for name, inside in _tiles(steps.num, _NUMBERS):
        yield "objects", name, inside & at
    for name, inside in _tiles(steps.k, _MARKED):
        yield "marked", name, inside & at
    yield "left", "1", at & (steps.left == 1)
    yield "left", "≥ 2", at & (steps.left >= 2)
    cell = np.clip(np.floor(3 * steps.aim_xy / steps.wh), 0, 2)
    for i, name in enumerate(REGIONS):
        yield "region", name, at & (3 * cell[:, 1] + cell[:, 0] == i)
    names = np.asarray(truth.counted, dtype=object)[steps.sample]
    if len(set(truth.counted)) > 1:
        for name in sorted(set(truth.counted)):
            yield "category", name, at & (names == name)


def _tiles(values: np.ndarray, buckets: Mapping[str, tuple[float, float]]) -> Iterator[tuple[str, BoolArray]]:
    for name, (low, high) in buckets.items():
        yield name, (values >= low) & (values < high)


def _error_row(group: str, bucket: str, steps: Steps, inside: BoolArray) -> ErrorRow:
    error: FloatArray = steps.error384[inside]
    bias = steps.error384_xy[inside].mean(0)
    return ErrorRow(
        group, bucket, len(error), float((error <= WITHIN).mean()), float((error <= 10).mean()), float((error > 15).mean()),
        float(error.mean()), float(np.median(error)), float(np.quantile(error, 0.95)),
        float((steps.nearest384[inside] <= WITHIN).mean()), float(bias[0]), float(bias[1]),
    )


def done_table(steps: Steps) -> list[DoneRow]:
    """One row for each kind that was asked."""
    rows = []
    for kind, inside in (("end", steps.left == 0), ("last", steps.left == 1), ("early", steps.left >= 2)):
        if num := int(inside.sum()):
            said = int((steps.says_done & inside).sum())
            right = said if kind == "end" else num - said
            rows.append(DoneRow(kind, num, said, num - said, right / num, float(steps.done[inside].mean())))
    return rows


def count_table(counts: Counts) -> list[CountRow]:
    """``all``, then by true number, of samples that were counted."""
    buckets = [("all", np.ones(len(counts.num), dtype=np.bool_)), *_tiles(counts.num, _NUMBERS)]
    rows = []
    for name, tile in buckets:
        inside = tile & counts.ran
        if not inside.any():
            continue
        error = (counts.counted - counts.num)[inside].astype(np.float64)
        both = int((counts.counted + counts.num)[inside].sum())
        rows.append(CountRow(
            name, int(inside.sum()), float(np.abs(error).mean()), float(error.mean()), float((error == 0).mean()),
            float(counts.finished[inside].mean()), 2 * int(counts.hits[inside].sum()) / both if both else math.nan,
        ))  # fmt: skip
    return rows


def counting_to_json(tables: CountingTables) -> dict[str, object]:
    """The content of counting.json; strict JSON, undefined values and bounds are null."""
    return {name: _strict(value) for name, value in asdict(tables).items()}


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


STEP_COLUMNS = (
    "id", "source_image", "category", "width", "height", "objects", "marked", "true_x", "true_y", "pred_x", "pred_y", "error_px",
    "error_px384", "nearest_px384", "done", "is_done",
)  # fmt: skip


def steps_csv(truth: PointTruth, steps: Steps) -> str:
    """One line per single step under ``STEP_COLUMNS``, in their order; without a target those fields are empty. Points in source px."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(STEP_COLUMNS)
    error, error384 = steps.error, steps.error384
    for i, row in enumerate(steps.sample.tolist()):
        named = (int(truth.image_ids[row]), int(truth.source_image[row]), truth.counted[row])
        numbers = (*steps.aim_xy[i].tolist(), *steps.point_xy[i].tolist(), float(error[i]), float(error384[i]), float(steps.nearest384[i]))
        shown = ["" if math.isnan(v) else f"{v:.10g}" for v in numbers]
        size = [f"{v:.10g}" for v in steps.wh[i].tolist()]
        asked = (int(steps.num[i]), int(steps.k[i]))
        writer.writerow([*named, *size, *asked, *shown, f"{steps.done[i]:.10g}", int(not steps.has_target[i])])
    return out.getvalue()
