"""What each phrase got: its answer beside its truth, as flat arrays. Every grounding metric, table and log computes on these.

Shapes: I phrases, by ascending id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordvlm.contracts.evaluation import MatchedPairs
from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import GroundTruth, PhraseTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray, IntArray
from coordvlm.metrics.bootstrap import source_weights
from coordvlm.metrics.greedy import overlap

#: How an answer ended: a box, "none", or neither.
STATUSES = ("box", "none", "unparsed")
#: name -> IoU threshold, included.
ACCURACIES = {"acc_25": 0.25, "acc_50": 0.50, "acc_75": 0.75, "acc_90": 0.90}


@dataclass(frozen=True)
class Outcomes:
    """The answers to all phrases of a truth. The first kept record is the answer; ``says_none`` outranks it.

    Args:
        ids: int64[I]. source: int64[I], index of the phrase's image among the distinct source images, ascending.
        image_wh: float64[I, 2] source px.
        has_target: bool[I], the phrase names something here. true_xyxy: float64[I, 4] source px, NaN without a target.
        parsed: bool[I], the answer is a box. pred_xyxy: float64[I, 4] source px, NaN where it is not.
        says_none: bool[I], the answer is that nothing is there.
        iou: float64[I], 0 for a target without an answered box, NaN without a target.
        readable: bool[I], the answer is a box or "none", and nothing of it was dropped.
        extra: int64[I], kept boxes beyond the first.
        attempts: int64[I], 1 unless the phrase had to be asked again, as nothing came of the first answers (of as many samples as a
            consensus is taken of, together one attempt); 0 without a prediction.
    """

    ids: IntArray
    source: IntArray
    image_wh: FloatArray
    has_target: BoolArray
    true_xyxy: FloatArray
    parsed: BoolArray
    pred_xyxy: FloatArray
    says_none: BoolArray
    iou: FloatArray
    readable: BoolArray
    extra: IntArray
    attempts: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def located(self) -> BoolArray:
        """bool[I], a box was given for a phrase that has one: what distances are measured on."""
        return self.parsed & self.has_target

    @property
    def status(self) -> tuple[str, ...]:
        """One of ``STATUSES`` for each phrase."""
        pairs = zip(self.parsed.tolist(), self.says_none.tolist(), strict=True)
        return tuple("box" if parsed else "none" if none else "unparsed" for parsed, none in pairs)

    def hit(self, threshold: float) -> BoolArray:
        """bool[I], IoU >= threshold; False without a target."""
        return np.asarray(self.iou >= threshold)  # False for NaN

    def center_error(self) -> FloatArray:
        """float64[I], distance of the boxes' centres in source px; NaN unless ``located``."""
        between = (self.pred_xyxy[:, :2] + self.pred_xyxy[:, 2:] - self.true_xyxy[:, :2] - self.true_xyxy[:, 2:]) / 2
        return np.hypot(between[:, 0], between[:, 1])

    def center_inside(self) -> BoolArray:
        """bool[I], the centre of the answered box lies in the true one, its border included."""
        center = (self.pred_xyxy[:, :2] + self.pred_xyxy[:, 2:]) / 2
        inside = (center >= self.true_xyxy[:, :2]) & (center <= self.true_xyxy[:, 2:])  # False for NaN
        return np.asarray(inside.all(1), dtype=np.bool_)

    def pairs(self, threshold: float = 0.5) -> MatchedPairs:
        """Answered and true boxes that agree at this IoU, by ascending phrase id."""
        at = np.flatnonzero(self.hit(threshold))
        return MatchedPairs(
            image_id=self.ids[at], pred_index=np.zeros(len(at), dtype=np.int64), ann_id=self.ids[at], iou=self.iou[at],
            pred_xyxy_px=self.pred_xyxy[at], true_xyxy_px=self.true_xyxy[at],
        )


def require_phrases(truth: GroundTruth) -> PhraseTruth:
    """The truth itself; a ``ValueError`` when it is not one of phrases, with ascending ids that its boxes refer to."""
    if not isinstance(truth, PhraseTruth):
        raise ValueError(f"grounding needs a PhraseTruth, with one box or none per phrase; got a {type(truth).__name__}")
    if len(truth.image_ids) > 1 and not np.all(np.diff(truth.image_ids) > 0):
        raise ValueError("phrase ids of the truth must be ascending and unique")
    unknown = np.setdiff1d(truth.ann_image_id, truth.image_ids)
    if unknown.size:
        raise ValueError(f"boxes refer to an unknown phrase id: {unknown[:5].tolist()}")
    if truth.ann_iscrowd.any():
        raise ValueError(f"a phrase cannot name a crowd: {truth.ann_image_id[truth.ann_iscrowd][:5].tolist()}")
    return truth


def phrase_weights(truth: PhraseTruth, num_replicates: int, seed: int) -> FloatArray:
    """float64[I, B], how often each phrase is drawn: ``source_weights`` of its image."""
    return source_weights(truth.source_image, num_replicates, seed)


def outcomes(truth: PhraseTruth, predictions: Mapping[int, Prediction]) -> Outcomes:
    """Answers beside the truth.

    Args:
        predictions: phrase id -> prediction; a phrase without one counts as unparsed.
    Raises:
        ValueError: a kept record whose box is missing or not finite.
    """
    num = len(truth.image_ids)
    answers = [predictions.get(i) for i in truth.image_ids.tolist()]
    true, predicted = np.full((num, 4), np.nan), np.full((num, 4), np.nan)
    true[np.searchsorted(truth.image_ids, truth.ann_image_id)] = truth.ann_xyxy_px
    has_target = np.isin(truth.image_ids, truth.ann_image_id)
    none = np.asarray([p is not None and "says_none" in p.flags for p in answers], dtype=np.bool_)
    kept = [() if p is None else p.kept for p in answers]
    parsed = np.asarray([len(k) > 0 for k in kept], dtype=np.bool_) & ~none
    for row in np.flatnonzero(parsed).tolist():
        box = kept[row][0].box_xyxy_px
        if box is None or not np.isfinite(box).all():
            raise ValueError(f"phrase {truth.image_ids[row]}: the kept record must have four finite coordinates, got {box}")
        predicted[row] = box
    iou = np.where(has_target, 0.0, np.nan)
    both = np.flatnonzero(parsed & has_target)
    iou[both] = overlap(predicted[both], true[both], np.zeros(len(both), dtype=np.bool_))
    complete = np.asarray([p is not None and all(r.kept for r in p.records) for p in answers], dtype=np.bool_)
    return Outcomes(
        ids=truth.image_ids, source=np.unique(truth.source_image, return_inverse=True)[1].astype(np.int64).reshape(-1),
        image_wh=truth.image_wh, has_target=has_target, true_xyxy=true, parsed=parsed, pred_xyxy=predicted, says_none=none, iou=iou,
        readable=(parsed | none) & complete, extra=np.asarray([max(0, len(k) - 1) for k in kept], dtype=np.int64),
        attempts=np.asarray([_attempts(p) for p in answers], dtype=np.int64),
    )


def _attempts(prediction: Prediction | None) -> int:
    """How often the phrase was asked, the samples of a consensus counted as once. ``retried`` without a number means twice."""
    if prediction is None:
        return 0
    decodes = prediction.timing.get("attempts", 2 if "retried" in prediction.flags else 1)
    return int(decodes - prediction.timing.get("samples", 1) + 1)
