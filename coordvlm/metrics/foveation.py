"""Where it pays to look: answers to clips by every way of looking, and the loss ratio that may be called matched.

For every arm (``coarse``, ``fine``, ``auto`` and the controls): ``acc_<arm>``, answers in words that are right as a whole (each of the true
answer's tokens, the end included, is the likeliest: so greedy decoding gives exactly it); ``token_acc_<arm>``; ``loss_<arm>``, nats per token of
the true answers; and of points ``px384_median_<arm>``, ``px_median_<arm>`` and ``pck384_<r>_<arm>``. ``acc``, ``token_acc``, ``loss``,
``px384_median`` and ``pck384_20`` are those of the arm that is reported.

``ratio_matched`` is ``loss_coarse / loss_fine`` where both passes were trained with the same weight. Otherwise the coarse pass is worse for
having been trained less, and the same quotient is ``ratio_unmatched``: it says nothing about looking, and no verdict may use it.

"On a side of 384" means both axes scaled to 384 px. Shapes: I clips, B replicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.clip import ClipTruth
from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import ArmAnswer, Prediction
from coordvlm.contracts.sample import GroundTruth
from coordvlm.metrics.arrays import FloatArray
from coordvlm.metrics.bootstrap import intervals, source_weights, weighted_quantiles, weighted_ratio
from coordvlm.metrics.collecting import CollectingMetric

#: Radii in px on a side of 384; 20 is about a twentieth of it.
POINT_RADII = (5, 20)
MATCHED, UNMATCHED = "ratio_matched", "ratio_unmatched"
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
    """

    unit = "clip"

    def __init__(
        self, *, num_replicates: int, seed: int, coarse_weight: float, fine_weight: float, truth: GroundTruth | None = None
    ) -> None:
        super().__init__(num_replicates=num_replicates, seed=seed)
        self.ratio = ratio_name(coarse_weight, fine_weight)
        self.main = "fine" if fine_weight > 0 else "coarse"
        if truth is not None:
            self.set_truth(truth)

    def check_truth(self, truth: GroundTruth) -> None:
        """Anything but clips is a ``ValueError``."""
        if not isinstance(truth, ClipTruth):
            raise ValueError(f"this metric is for clips, got {type(truth).__name__}")

    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all clips of the truth."""
        truth = self.truth
        assert isinstance(truth, ClipTruth)
        arms = tuple(dict.fromkeys(a.arm for p in predictions.values() for a in p.arms)) or (self.main,)
        tables = {arm: _Arm(truth, predictions, arm) for arm in arms}
        values = self._under(tables, np.ones((len(truth.image_ids), 1)))
        weights = source_weights(truth.source_clip, self.num_replicates, self.seed)
        replicates = self._under(tables, weights) if weights.shape[1] else {}
        found = tables.get(self.main)
        counts = {
            "clips": len(truth.image_ids), "points": len(truth.ann_ids), "clips_without_prediction": len(truth.image_ids) - len(predictions),
            "sampler_duplicates": sampler_duplicates, **{f"kind_{k}": n for k, n in sorted(Counter(truth.kinds).items())},
            **{f"{arm}_without_point": int(t.lost.sum()) for arm, t in tables.items() if t.asked.any()},
        }
        scalars = {name: float(row[0]) for name, row in values.items()}
        return Evaluation(
            metrics=intervals(scalars, replicates), counts=counts, replicates=replicates,
            px_error=None if found is None or not found.asked.any() else found.error[np.isfinite(found.error)],
        )

    def _under(self, tables: Mapping[str, _Arm], weights: FloatArray) -> dict[str, FloatArray]:
        """Every metric under each column of weights float64[I, b]: float64[b] each."""
        out: dict[str, FloatArray] = {}
        for arm, table in tables.items():
            out |= {f"{name}_{arm}": row for name, row in table.under(weights).items()}
        main = ("acc", "token_acc", "loss", "px384_median", "pck384_20")
        out = {name: out[f"{name}_{self.main}"] for name in main if f"{name}_{self.main}" in out} | out
        if self.ratio is not None and {"loss_coarse", "loss_fine"} <= out.keys():
            out[self.ratio] = out["loss_coarse"] / out["loss_fine"]
        return out


class _Arm:
    """One arm's answers as columns float64[I]; a clip without an answer is wrong and has no loss."""

    def __init__(self, truth: ClipTruth, predictions: Mapping[int, Prediction], arm: str) -> None:
        num = len(truth.image_ids)
        self.nll, self.tokens, self.correct = (np.zeros(num) for _ in range(3))
        self.right = np.zeros(num)
        self.error, self.error384 = np.full(num, np.nan), np.full(num, np.nan)
        points = [truth.point_of(i) for i in truth.image_ids.tolist()]
        self.asked = np.asarray([p is not None for p in points])
        for at, (clip_id, point) in enumerate(zip(truth.image_ids.tolist(), points, strict=True)):
            answer = _answer(predictions.get(clip_id), arm)
            if answer is None:
                continue
            self.nll[at], self.tokens[at], self.correct[at] = answer.nll, answer.num_tokens, answer.num_correct
            self.right[at] = float(answer.num_correct == answer.num_tokens)
            if point is not None and answer.point_px is not None:
                off = np.subtract(answer.point_px, point)
                self.error[at] = np.hypot(*off)
                self.error384[at] = np.hypot(*(off * _SIDE / truth.image_wh[at]))
        self.lost = self.asked & ~np.isfinite(self.error)

    def under(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Every metric of the arm; those of words or points only where there are such clips."""
        one = np.ones(len(self.nll))
        sums = {"token_acc": (self.correct, self.tokens), "loss": (self.nll, self.tokens)}
        if not self.asked.all():
            words = (~self.asked).astype(np.float64)
            sums["acc"] = (self.right * words, words)
        if self.asked.any():
            asked = self.asked.astype(np.float64)
            for radius in POINT_RADII:
                sums[f"pck384_{radius}"] = ((self.error384 <= radius).astype(np.float64) * asked, asked * one)
        numerator, denominator = (np.stack([pair[side] for pair in sums.values()]) for side in (0, 1))
        out = dict(zip(sums, weighted_ratio(numerator, denominator, weights), strict=True))
        if self.asked.any():
            found = np.flatnonzero(np.isfinite(self.error))
            for name, error in (("px_median", self.error), ("px384_median", self.error384)):
                out[name] = weighted_quantiles(error[found], found, weights, np.asarray([0.5]))[0]
        return out


def _answer(prediction: Prediction | None, arm: str) -> ArmAnswer | None:
    return None if prediction is None else next((a for a in prediction.arms if a.arm == arm), None)
