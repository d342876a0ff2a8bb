"""What counting answered, beside its truth, as flat arrays. Every counting metric and table computes on these.

Shapes: I samples (image, category) by ascending id, S single steps with true marks, N true points of a sample, D marked ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordvlm.contracts.prediction import Asked, Prediction
from coordvlm.contracts.sample import GroundTruth, PointTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray, IntArray
from coordvlm.metrics.pixels import COMMON_SIDE, euclidean
from coordvlm.metrics.point_pairs import pair_points

#: Probability above which an answer says that everything is marked.
SAYS_DONE = 0.5
#: How the loop can have ended; a prediction with none of these flags was not counted.
LOOP_FLAGS = ("finished", "repeated", "step_limit")
#: Objects up to which a sample is one of the easy ones, whose figures are called ``n5_*`` and ``*_n5``.
EASY = 5


@dataclass(frozen=True)
class Steps:
    """All single steps of a split, in the order of sample ids, then as they were asked.

    Args:
        sample: int64[S], row of the truth. k, num: int64[S], objects marked and objects there are (as they were asked for).
        wh: float64[S, 2], (width, height) of the image in source px.
        has_target: bool[S], something is left to point at.
        point_xy: float64[S, 2], the answer in source px.
        aim_xy: float64[S, 2], what its error is measured to, in source px: the next object, or with ``any_unmarked`` the unmarked one
            nearest to the answer on the common frame. NaN without a target.
        nearest384: float64[S], distance to the nearest unmarked object on the common frame, px. NaN without a target.
        done: float64[S], probability that everything is marked.
    """

    sample: IntArray
    k: IntArray
    num: IntArray
    wh: FloatArray
    has_target: BoolArray
    point_xy: FloatArray
    aim_xy: FloatArray
    nearest384: FloatArray
    done: FloatArray

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def error_xy(self) -> FloatArray:
        """float64[S, 2], signed (x, y), answered minus true, source px; NaN without a target."""
        return self.point_xy - self.aim_xy

    @property
    def error384_xy(self) -> FloatArray:
        """float64[S, 2], the same with both sides of the image scaled to 384 px."""
        return self.error_xy * (COMMON_SIDE / self.wh)

    @property
    def error(self) -> FloatArray:
        """float64[S], Euclidean, source px."""
        return euclidean(self.error_xy)

    @property
    def error384(self) -> FloatArray:
        """float64[S], Euclidean, px on a side of 384."""
        return euclidean(self.error384_xy)

    @property
    def says_done(self) -> BoolArray:
        """bool[S]."""
        return np.asarray(self.done > SAYS_DONE)

    @property
    def left(self) -> IntArray:
        """int64[S], objects that are not marked: 0, 1, or more."""
        return self.num - self.k


@dataclass(frozen=True)
class Counts:
    """What the loop found in each sample.

    Args:
        num: int64[I], true objects. counted: int64[I], kept points of the loop; 0 where it was not run.
        ran: bool[I], the loop was run. finished: bool[I], and it ended by saying that everything is marked.
        hits: int64[I], counted points paired with a true one within the tolerance.
    """

    num: IntArray
    counted: IntArray
    ran: BoolArray
    finished: BoolArray
    hits: IntArray


def require_points(truth: GroundTruth) -> PointTruth:
    """The truth itself; a ``ValueError`` when it is not one of points, with ascending ids that finite points refer to."""
    if not isinstance(truth, PointTruth):
        raise ValueError(f"counting needs a PointTruth, with any number of points per sample; got a {type(truth).__name__}")
    if len(truth.image_ids) > 1 and not np.all(np.diff(truth.image_ids) > 0):
        raise ValueError("sample ids of the truth must be ascending and unique")
    unknown = np.setdiff1d(truth.ann_image_id, truth.image_ids)
    if unknown.size:
        raise ValueError(f"points refer to an unknown sample id: {unknown[:5].tolist()}")
    broken = ~np.isfinite(truth.points_px).all(1)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise ValueError(f"sample {truth.ann_image_id[first]}: true points must be finite, got {truth.points_px[first].tolist()}")
    return truth


def steps_of(truth: PointTruth, predictions: Mapping[int, Prediction], *, any_unmarked: bool) -> Steps:
    """Every single step of the predictions.

    Args:
        predictions: sample id -> prediction. any_unmarked: an answer is measured to the unmarked object nearest to it, whichever it is.
    Raises:
        ValueError: an answer that is not finite, or a step that contradicts itself.
    """
    rows: list[int] = []
    asked: list[Asked] = []
    for row, sample_id in enumerate(truth.image_ids.tolist()):
        prediction = predictions.get(sample_id)
        for step in prediction.asked if prediction is not None else ():
            _check(step, sample_id)
            rows.append(row)
            asked.append(step)
    sample = np.asarray(rows, dtype=np.int64)
    wh = truth.image_wh[sample].reshape(-1, 2)
    point_xy = np.asarray([a.point_px for a in asked], dtype=np.float64).reshape(-1, 2)
    aim_xy, nearest = np.full((len(asked), 2), np.nan), np.full(len(asked), np.nan)
    for i, (step, scale) in enumerate(zip(asked, COMMON_SIDE / wh, strict=True)):
        if step.target_px is None:
            continue
        distance = euclidean((step.unmarked_px - point_xy[i]) * scale)
        best = int(np.argmin(distance))
        nearest[i] = distance[best]
        aim_xy[i] = step.unmarked_px[best] if any_unmarked else step.target_px
    return Steps(
        sample=sample, k=np.asarray([a.k for a in asked], dtype=np.int64), num=np.asarray([a.num for a in asked], dtype=np.int64), wh=wh,
        has_target=np.asarray([a.target_px is not None for a in asked], dtype=np.bool_), point_xy=point_xy, aim_xy=aim_xy,
        nearest384=nearest, done=np.asarray([a.done for a in asked], dtype=np.float64),
    )


def _check(step: Asked, sample_id: int) -> None:
    where = f"sample {sample_id}, step k = {step.k} of {step.num}"
    if not 0 <= step.k <= step.num or len(step.unmarked_px) != step.num - step.k or (step.target_px is None) != (step.k == step.num):
        raise ValueError(
            f"{where}: {step.num - step.k} objects must be unmarked, one of them the target; "
            f"got {len(step.unmarked_px)} and the target {step.target_px}"
        )
    if not np.isfinite((*step.point_px, *(step.target_px or ()), *step.unmarked_px.ravel().tolist(), step.done)).all():
        raise ValueError(
            f"{where}: points and the probability must be finite, got {step.point_px} and {step.done} for the target {step.target_px}"
        )


def counts_of(truth: PointTruth, predictions: Mapping[int, Prediction], *, tolerance_px: float) -> Counts:
    """What the loop marked beside how many there are.

    Args:
        tolerance_px: radius of a pair, in px on a side of 384.
    Raises:
        ValueError: a kept record without a finite point.
    """
    total = len(truth.image_ids)
    num = np.bincount(np.searchsorted(truth.image_ids, truth.ann_image_id), minlength=total).astype(np.int64)
    counted, hits = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    ran, finished = np.zeros(total, dtype=np.bool_), np.zeros(total, dtype=np.bool_)
    for row, sample_id in enumerate(truth.image_ids.tolist()):
        prediction = predictions.get(sample_id)
        if prediction is None or prediction.flags.isdisjoint(LOOP_FLAGS):
            continue
        found = _marked(prediction, sample_id)
        scale = COMMON_SIDE / truth.image_wh[row]
        ran[row], finished[row], counted[row] = True, "finished" in prediction.flags, len(found)
        hits[row] = len(pair_points(found * scale, truth.points_of(sample_id) * scale, tolerance_px)[0])
    return Counts(num=num, counted=counted, ran=ran, finished=finished, hits=hits)


def _marked(prediction: Prediction, sample_id: int) -> FloatArray:
    points = [r.point_px for r in prediction.kept]
    for index, point in enumerate(points):
        if point is None or not np.isfinite(point).all():
            raise ValueError(f"sample {sample_id}: kept record {index} must have a finite point, got {point}")
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)

