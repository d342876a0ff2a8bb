"""Where it pays to look: answers to clips by every way of looking, and the differences that may be called evidence.

For every arm (``coarse``, ``fine``, ``auto`` and the controls): ``acc_<arm>``, answers in words that are right as a whole (each of the
true answer's tokens, the end included, is the likeliest: so greedy decoding gives exactly it); ``token_acc_<arm>``; ``loss_<arm>``, nats
per token of the true answers; and of points ``px384_median_<arm>``, ``px_median_<arm>`` and ``pck384_<r>_<arm>``. ``acc``, ``token_acc``,
``loss``, ``px384_median``, ``px_median`` and ``pck384_20`` are those of the arm that is reported.

Beside them, between two arms on the same clips: ``gain_acc`` is fine minus coarse, ``px_ratio`` the median error of fine over that of
coarse, and ``ratio_matched`` is ``loss_coarse / loss_fine``. All three compare a fine pass with a coarse one, so they bear these names only
where both were trained with the same weight. Otherwise the coarse pass is worse for having been trained less, and they are
``gain_acc_unmatched``, ``px_ratio_unmatched`` and ``ratio_unmatched``: they say nothing about looking, and no verdict may use them.
``swap_drop_acc`` and ``random_drop_acc`` are fine minus that control, ``swap_px_ratio`` and ``random_px_ratio`` the error of fine over the
control's; they need a trained fine pass and nothing else.

With several kinds of question, ``<name>.<kind>`` is the same of one kind.

Who is counted: a clip without a prediction is wrong in every arm. A clip that an arm was not tried on (swapping queries takes two clips) is
left out of that arm and of its differences. An arm that no token was counted of (points read by heads, whose tokens are not trained) has no
loss, no ``token_acc`` and no ratio. Losses are over clips with an answer, medians over those that gave a point; what is missing is
counted. A loss that is not finite makes every metric of it undefined.

"On a side of 384" means both axes scaled to 384 px. Shapes: I clips, B replicates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.clip import ClipTruth
from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import ArmAnswer, Prediction
from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray
from coordvlm.metrics.bootstrap import intervals, source_weights, weighted_quantiles, weighted_ratio
from coordvlm.metrics.collecting import CollectingMetric

#: Radii in px on a side of 384; 20 is about a twentieth of it.
POINT_RADII = (5, 20)
MATCHED, UNMATCHED = "ratio_matched", "ratio_unmatched"
#: What a name ends in that compares a fine pass with a coarse one that was trained less, or more.
NOT_EVIDENCE = "_unmatched"
#: Arms that look where nobody planned to.
CONTROLS = ("swap", "random")
_MAIN = ("acc", "token_acc", "loss", "px384_median", "px_median", "pck384_20")
#: Of one kind of question among several.
_OF_KIND = ("acc", "loss", "px384_median", "pck384_20")
_SIDE = 384.0


def ratio_name(coarse_weight: float, fine_weight: float) -> str | None:
    """What ``loss_coarse / loss_fine`` may be called; None where the fine pass was not trained, so that it is no ratio at all."""
    if fine_weight <= 0:
        return None
    return MATCHED if coarse_weight == fine_weight else UNMATCHED


class FoveationMetric(CollectingMetric):
    """See the module docstring.

    Args:
        num_replicates: bootstrap replicates over source clips; 0 gives values without intervals. seed: of the weights.
        coarse_weight, fine_weight: of the passes' losses in training.
        truth: a ``ClipTruth``, or later by ``set_truth``.
    Raises:
        ValueError: a weight that is no finite number of at least 0.
    """

    unit = "clip"

    def __init__(
        self, *, num_replicates: int, seed: int, coarse_weight: float, fine_weight: float, truth: GroundTruth | None = None
    ) -> None:
        super().__init__(num_replicates=num_replicates, seed=seed)
        for name, weight in (("coarse_weight", coarse_weight), ("fine_weight", fine_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {weight}")
        self.ratio = ratio_name(coarse_weight, fine_weight)
        self.main = "fine" if fine_weight > 0 else "coarse"
        if truth is not None:
            self.set_truth(truth)

    def check_truth(self, truth: GroundTruth) -> None:
        """Anything but clips is a ``ValueError``."""
        if not isinstance(truth, ClipTruth):
            raise ValueError(f"this metric is for clips, got {type(truth).__name__}")

    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all clips of the truth. Two answers of one arm to one clip are a ``ValueError``."""
        truth = self.truth
        assert isinstance(truth, ClipTruth)
        arms = tuple(dict.fromkeys(a.arm for p in predictions.values() for a in p.arms)) or (self.main,)
        tables = {arm: ArmColumns(truth, predictions, arm) for arm in arms}
        values = self._under(truth, tables, np.ones((len(truth.image_ids), 1)))
        weights = source_weights(truth.source_clip, self.num_replicates, self.seed)
        replicates = self._under(truth, tables, weights) if weights.shape[1] else {}
        found = tables.get(self.main)
        counts = {
            "clips": len(truth.image_ids), "source_clips": len(np.unique(truth.source_clip)), "points": len(truth.ann_ids),
            "clips_without_prediction": len(truth.image_ids) - len(predictions), "sampler_duplicates": sampler_duplicates,
            **{f"kind_{k}": n for k, n in sorted(Counter(truth.kinds).items())},
            **{f"{arm}_not_tried": n for arm, t in tables.items() if (n := int((~t.tried).sum()))},
            **{f"{arm}_loss_not_finite": n for arm, t in tables.items() if (n := int(np.isnan(t.nll).sum()))},
            **{f"{arm}_without_point": int(t.lost.sum()) for arm, t in tables.items() if t.asked.any()},
        }
        scalars = {name: float(row[0]) for name, row in values.items()}
        return Evaluation(
            metrics=intervals(scalars, replicates), counts=counts, replicates=replicates,
            px_error=None if found is None or not found.asked.any() else found.error[np.isfinite(found.error)],
        )

    def _under(self, truth: ClipTruth, tables: Mapping[str, ArmColumns], weights: FloatArray) -> dict[str, FloatArray]:
        """Every metric under each column of weights float64[I, b]: float64[b] each."""
        everyone = np.ones(len(truth.kinds), dtype=np.bool_)
        out: dict[str, FloatArray] = {}
        for arm, table in tables.items():
            out |= {f"{name}_{arm}": row for name, row in table.under(weights, everyone).items()}
        out = {name: out[f"{name}_{self.main}"] for name in _MAIN if f"{name}_{self.main}" in out} | out
        out |= self._compared(tables, weights, everyone)
        kinds = sorted(set(truth.kinds))
        for kind in kinds if len(kinds) > 1 else ():
            of_kind = np.asarray([k == kind for k in truth.kinds])
            for arm, table in tables.items():
                out |= {f"{name}_{arm}.{kind}": row for name, row in table.under(weights, of_kind).items() if name in _OF_KIND}
            out |= {f"{name}.{kind}": row for name, row in self._compared(tables, weights, of_kind).items()}
        return out

    def _compared(self, tables: Mapping[str, ArmColumns], weights: FloatArray, of: BoolArray) -> dict[str, FloatArray]:
        """The fine pass against others, over the clips that both were tried on."""
        out: dict[str, FloatArray] = {}
        if self.ratio is None or "fine" not in tables:
            return out
        mark = "" if self.ratio == MATCHED else NOT_EVIDENCE
        names = {"coarse": (f"gain_acc{mark}", f"px_ratio{mark}")} | {c: (f"{c}_drop_acc", f"{c}_px_ratio") for c in CONTROLS}
        for arm, (drop, px_ratio) in names.items():
            if arm not in tables:
                continue
            both = of & tables["fine"].tried & tables[arm].tried
            fine, other = (tables[name].under(weights, both) for name in ("fine", arm))
            if arm == "coarse" and {"loss"} <= fine.keys() & other.keys():
                out[self.ratio] = _quotient(other["loss"], fine["loss"])
            if "acc" in fine:
                out[drop] = fine["acc"] - other["acc"]
            if "px384_median" in fine:
                out[px_ratio] = _quotient(fine["px384_median"], other["px384_median"])
        return out


class ArmColumns:
    """One arm's answers as columns [I].

    Attributes:
        tried: the arm was asked, or the clip has no prediction at all. nll, tokens, correct: of the true answer; 0 without an answer, and
            NaN where -log p is not finite. right: 1 where the whole answer is. asked: the answer is a point. error, error384: px to it;
            NaN without one. lost: it was asked for a point and gave none. told: tokens were counted, or it never answered.
    """

    def __init__(self, truth: ClipTruth, predictions: Mapping[int, Prediction], arm: str) -> None:
        num = len(truth.image_ids)
        self.nll, self.tokens, self.correct, self.right = (np.zeros(num) for _ in range(4))
        self.tried = np.ones(num, dtype=np.bool_)
        self.error, self.error384 = np.full(num, np.nan), np.full(num, np.nan)
        points = [truth.point_of(i) for i in truth.image_ids.tolist()]
        self.asked = np.asarray([p is not None for p in points], dtype=np.bool_)
        for at, (clip_id, point) in enumerate(zip(truth.image_ids.tolist(), points, strict=True)):
            prediction = predictions.get(clip_id)
            if prediction is None:
                continue
            answer = _answer(prediction, arm)
            self.tried[at] = answer is not None
            if answer is None:
                continue
            self.nll[at] = answer.nll if math.isfinite(answer.nll) else np.nan
            self.tokens[at], self.correct[at] = answer.num_tokens, answer.num_correct
            self.right[at] = float(answer.num_correct == answer.num_tokens > 0)
            if point is not None and answer.point_px is not None:
                off = np.subtract(answer.point_px, point)
                self.error[at] = np.hypot(*off)
                self.error384[at] = np.hypot(*(off * _SIDE / truth.image_wh[at]))
        self.told = bool(self.tokens.any()) or not any(_answer(p, arm) for p in predictions.values())
        self.lost = self.asked & self.tried & ~np.isfinite(self.error)

    def under(self, weights: FloatArray, of: BoolArray) -> dict[str, FloatArray]:
        """Every metric of the arm over the clips ``of`` bool[I]; those of words or points only where there are such clips."""
        words, points = of & ~self.asked, of & self.asked
        sums = {"token_acc": (self.correct, self.tokens), "loss": (self.nll, self.tokens)} if self.told else {}
        sums = {name: (np.where(of, top, 0.0), np.where(of, bottom, 0.0)) for name, (top, bottom) in sums.items()}
        if words.any():
            counted = (words & self.tried).astype(np.float64)
            sums["acc"] = (self.right * counted, counted)
        if points.any():
            counted = (points & self.tried).astype(np.float64)
            for radius in POINT_RADII:
                sums[f"pck384_{radius}"] = ((self.error384 <= radius) * counted, counted)
        numerator, denominator = (np.stack([pair[side] for pair in sums.values()]) for side in (0, 1))
        out = dict(zip(sums, weighted_ratio(numerator, denominator, weights), strict=True))
        if points.any():
            found = np.flatnonzero(points & np.isfinite(self.error))
            for name, error in (("px_median", self.error), ("px384_median", self.error384)):
                out[name] = weighted_quantiles(error[found], found, weights, np.asarray([0.5]))[0]
        return out


def _answer(prediction: Prediction, arm: str) -> ArmAnswer | None:
    """The arm's answer; None where it was not tried. Two of them are a ``ValueError``."""
    found = [a for a in prediction.arms if a.arm == arm]
    if len(found) > 1:
        raise ValueError(f"clip {prediction.sample_id!r} was answered {len(found)} times by the arm {arm!r}")
    return found[0] if found else None


def _quotient(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """float64[b]; NaN where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
