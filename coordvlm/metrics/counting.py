"""The protocol of counting as one metric: single steps with true marks, and counts of the loop, in; an ``Evaluation`` out.

Errors are measured on single steps that have something left to point at, so an early mistake of the loop spoils no later step. A sample
without a single step, while others have some, failed: it is one missed target (where it has an object) and one wrong answer to each
question whether all is marked that its number of objects allows. It has no distance, so ``px_*``, ``loss_*`` and the shares of one k
leave it out; ``samples_without_steps`` says how many there are. A sample that the loop was not run on, while it was on others, counts as
0 objects, neither exact nor finished.

"On a side of 384" means both axes scaled to 384 px. Shapes: I samples, S steps, B replicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import GroundTruth, PointTruth
from coordvlm.metrics.arrays import BoolArray, FloatArray
from coordvlm.metrics.bootstrap import intervals, source_weights, weighted_quantiles, weighted_ratio
from coordvlm.metrics.collecting import CollectingMetric
from coordvlm.metrics.matching import ImageSums, answer_sums, per_image
from coordvlm.metrics.pixels import RADII, TIERS, pixel_histogram
from coordvlm.metrics.point_outcomes import EASY, LOOP_FLAGS, Counts, Steps, counts_of, require_points, steps_of

#: Marked objects -> [low, high): name in ``k_<name>_pck384_5``.
K_BUCKETS = {"0": (0, 1), "1_4": (1, 5), "5_9": (5, 10), "10_19": (10, 20), "20_up": (20, 1 << 62)}
#: Relative errors of a count: name -> share of the true number, included.
COUNT_SHARES = {"count_within_5pct": 0.05, "count_within_10pct": 0.10, "count_within_20pct": 0.20}
_ROOTS = ("count_rmse", "count_sre")
_ABOUT_DONE = ("done_said_done", "done_said_more", "more_said_done", "more_said_more")
_QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95}


class CountingMetric(CollectingMetric):
    """Pixel errors, done accuracy and counts, with bootstrap intervals over source images.

    Args:
        num_replicates: bootstrap replicates; 0 gives values without intervals. So does a truth with a single source image.
        seed: of the weights. Runs on the same samples and seed have paired replicates.
        tolerance_px: up to here an answer is on an object (``on_unmarked``, ``loc_*``), in px on a side of 384.
        any_unmarked: an answer is measured to the unmarked object nearest to it; else to the next one in order.
        done_taught: the model has learnt whether all is marked. If not, what it says of that is no answer: no ``done_*`` is reported.
        truth: a ``PointTruth``, or later by ``set_truth``.
    """

    unit = "sample"

    def __init__(
        self, *, num_replicates: int, seed: int, tolerance_px: float, any_unmarked: bool, done_taught: bool = True,
        truth: GroundTruth | None = None,
    ) -> None:
        super().__init__(num_replicates=num_replicates, seed=seed)
        if not 0 < tolerance_px < float("inf"):
            raise ValueError(f"tolerance_px must be above 0, got {tolerance_px!r}")
        self.tolerance_px, self.any_unmarked, self.done_taught = float(tolerance_px), any_unmarked, done_taught
        if truth is not None:
            self.set_truth(truth)

    def check_truth(self, truth: GroundTruth) -> None:
        """Anything but consistent points is a ``ValueError``."""
        require_points(truth)

    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all samples of the truth."""
        truth = require_points(self.truth)
        steps = steps_of(truth, predictions, any_unmarked=self.any_unmarked)
        counts = counts_of(truth, predictions, tolerance_px=self.tolerance_px)
        missing = without_steps(steps, predictions, len(truth.image_ids))
        sums = step_sums(steps, counts, missing, tolerance_px=self.tolerance_px, any_unmarked=self.any_unmarked)
        sums |= {"seconds_per_image": answer_sums(truth, predictions)["seconds_per_image"]}
        if counts.ran.any():
            sums |= loop_sums(counts)
        if not self.done_taught:
            sums = {name: pair for name, pair in sums.items() if not name.startswith("done_")}
        values = _under(np.ones((len(missing), 1)), sums, steps)
        weights = source_weights(truth.source_image, self.num_replicates, self.seed)
        replicates = _under(weights, sums, steps) if weights.shape[1] else {}
        scalars = {name: float(row[0]) for name, row in values.items()}
        numbers = _counts(truth, predictions, steps, counts, missing) | _tiers(scalars)
        numbers |= {"sampler_duplicates": sampler_duplicates, "measured_to_any_unmarked": int(self.any_unmarked)}
        if not self.done_taught:
            numbers = {name: n for name, n in numbers.items() if name not in _ABOUT_DONE} | {"done_not_taught": 1}
        at = steps.has_target
        return Evaluation(
            metrics=intervals(scalars, replicates), counts=numbers, replicates=replicates, px_error=steps.error[at],
            px_error_xy=steps.error_xy[at],
        )


def without_steps(steps: Steps, predictions: Mapping[int, Prediction], num_samples: int) -> BoolArray:
    """bool[I], samples that lack a single step, which is a failure; nobody failed where predictions are of the loop alone."""
    if len(predictions) and not len(steps):
        return np.zeros(num_samples, dtype=np.bool_)
    return np.asarray(per_image(steps.sample, num_samples) == 0)


def step_sums(steps: Steps, counts: Counts, missing: BoolArray, *, tolerance_px: float, any_unmarked: bool) -> ImageSums:
    """Every share and mean of the single steps as (numerator, denominator) per sample: float64[I] each.

    ``pck_*`` and ``pck384_*``, also ``n5_*`` of samples with at most 5 objects and ``k_*`` by marked objects: answers within that
    many px. ``on_unmarked``: answers on any unmarked object, and ``miss_on_unmarked``: of the wrong ones (absent with ``any_unmarked``,
    where such an answer is right). ``px_mean``, ``px384_mean`` and its ``x``, ``y`` parts: distance. ``loss_x``, ``loss_y``: squared error
    in [-1, 1] units. ``done_acc_end`` (all marked), ``_last`` (one left), ``_early`` (more left), ``done_acc`` (all steps).
    """
    num_samples, at, easy = len(missing), steps.has_target, steps.num <= EASY
    error, error384 = steps.error, steps.error384  # NaN without a target: False in comparisons
    no_target = missing & (counts.num > 0)
    missed, missed_easy = no_target.astype(np.float64), (no_target & (counts.num <= EASY)).astype(np.float64)

    def add(of: FloatArray | BoolArray, among: BoolArray) -> FloatArray:
        return per_image(steps.sample[among], num_samples, np.asarray(of, dtype=np.float64)[among])

    def ratio(of: FloatArray | BoolArray, among: BoolArray, failed: FloatArray | float = 0.0) -> tuple[FloatArray, FloatArray]:
        return add(of, among), add(np.ones(len(steps)), among) + failed

    near = np.asarray(steps.nearest384 <= tolerance_px)
    sums = {f"pck384_{r}": ratio(error384 <= r, at, missed) for r in RADII}
    sums |= {f"pck_{r}": ratio(error <= r, at, missed) for r in RADII}
    sums |= {f"n5_pck384_{r}": ratio(error384 <= r, at & easy, missed_easy) for r in RADII}
    for name, (low, high) in K_BUCKETS.items():
        inside = at & (steps.k >= low) & (steps.k < high)
        if inside.any():
            sums[f"k_{name}_pck384_5"] = ratio(error384 <= 5, inside)
    sums["on_unmarked"] = ratio(near, at, missed)
    sums["n5_on_unmarked"] = ratio(near, at & easy, missed_easy)
    if not any_unmarked:
        sums["miss_on_unmarked"] = ratio(near, at & (error384 > tolerance_px))
    sums |= {"px_mean": ratio(error, at), "px384_mean": ratio(error384, at), "n5_px384_mean": ratio(error384, at & easy)}
    for axis, name in enumerate("xy"):
        sums[f"px384_{name}_mean"] = ratio(np.abs(steps.error384_xy[:, axis]), at)
        sums[f"loss_{name}"] = ratio((2 * steps.error_xy[:, axis] / steps.wh[:, axis]) ** 2, at)
    right = steps.says_done == ~at
    failed = {"end": missing, "last": missing & (counts.num >= 1), "early": missing & (counts.num >= 2)}
    kinds = {"end": steps.left == 0, "last": steps.left == 1, "early": steps.left >= 2}
    sums |= {f"done_acc_{name}": ratio(right, kind, failed[name].astype(np.float64)) for name, kind in kinds.items()}
    sums["done_acc"] = ratio(right, np.ones(len(steps), dtype=np.bool_), missing.astype(np.float64))
    return sums


def loop_sums(counts: Counts) -> ImageSums:
    """The same of the loop's counts; ``count_rmse`` and ``count_sre`` are the roots of these.

    ``count_nae`` and ``count_sre`` divide by the true number and leave out samples of which there is nothing. ``count_within_*`` is the
    error as a share of the true number; with nothing to count only 0 is within. ``loc_*``: counted points against true ones.
    """
    everything, something = np.ones(len(counts.num)), (counts.num > 0).astype(np.float64)
    easy = (counts.num <= EASY).astype(np.float64)
    num, counted, hits = (a.astype(np.float64) for a in (counts.num, counts.counted, counts.hits))
    error = counted - num
    off, safe = np.abs(error), np.maximum(num, 1.0)

    def share(of: BoolArray) -> tuple[FloatArray, FloatArray]:
        return (of & counts.ran).astype(np.float64), everything

    return {
        "count_mae": (off, everything),
        "count_rmse": (error**2, everything),
        "count_bias": (error, everything),
        "count_nae": (off / safe * something, something),
        "count_sre": (error**2 / safe * something, something),
        "count_exact": share(off == 0),
        "count_within_one": share(off <= 1),
        **{name: share(off <= part * num + 1e-9) for name, part in COUNT_SHARES.items()},
        "count_mae_n5": (off * easy, easy),
        "count_bias_n5": (error * easy, easy),
        "finished_rate": share(counts.finished),
        "loc_precision": (hits, counted),
        "loc_recall": (hits, num),
        "loc_f1": (2 * hits, counted + num),
    }


def _under(weights: FloatArray, sums: ImageSums, steps: Steps) -> dict[str, FloatArray]:
    """Every metric under each column of weights float64[I, b]: float64[b] each."""
    numerator, denominator = (np.stack([pair[side] for pair in sums.values()]) for side in (0, 1))
    values = dict(zip(sums, weighted_ratio(numerator, denominator, weights), strict=True))
    values |= {name: np.sqrt(values[name]) for name in _ROOTS if name in values}
    at = steps.has_target
    levels = np.array(list(_QUANTILES.values()))
    for name, error, among in (
        ("px", steps.error, at), ("px384", steps.error384, at), ("n5_px384", steps.error384, at & (steps.num <= EASY)),
    ):
        rows = weighted_quantiles(error[among], steps.sample[among], weights, levels)
        values |= {f"{name}_{label}": row for label, row in zip(_QUANTILES, rows, strict=True)}
    return values


def _tiers(values: Mapping[str, float]) -> dict[str, int]:
    """Tiers reached (1 or 0), on a side of 384."""
    return {
        f"tier_{tier}": int(values[f"pck384_{radius}"] >= share and values["px384_mean"] < mean)
        for tier, (share, radius, mean) in TIERS.items()
    }


def _counts(
    truth: PointTruth, predictions: Mapping[int, Prediction], steps: Steps, counts: Counts, missing: BoolArray
) -> dict[str, int]:
    """How many samples, images, objects, steps of each kind, records of each status and errors of each size there were."""
    status = Counter(r.status for p in predictions.values() for r in p.records)
    flags = Counter(f for p in predictions.values() for f in p.flags)
    at, says = steps.has_target, steps.says_done
    result = {
        "samples": len(truth.image_ids),
        "images": len(np.unique(truth.source_image)),
        "objects": len(truth.ann_ids),
        "samples_with_nothing": int((counts.num == 0).sum()),
        "samples_without_prediction": len(truth.image_ids) - len(predictions),
        "samples_without_steps": int(missing.sum()),
        "samples_counted": int(counts.ran.sum()),
        "steps": len(steps),
        "steps_with_target": int(at.sum()),
        "steps_of_another_number": int((steps.num != counts.num[steps.sample]).sum()),
        "done_said_done": int((~at & says).sum()),
        "done_said_more": int((~at & ~says).sum()),
        "more_said_done": int((at & says).sum()),
        "more_said_more": int((at & ~says).sum()),
        **{f"samples_{name}": flags[name] for name in sorted({*LOOP_FLAGS, *flags})},
        **{f"status_{name}": number for name, number in sorted(status.items())},
    }
    labels = ("0_2", "2_5", "5_10", "above_10")
    errors = {"px": steps.error, "px384": steps.error384}
    for axis, name in enumerate("xy"):
        errors |= {f"px_{name}": steps.error_xy[:, axis], f"px384_{name}": steps.error384_xy[:, axis]}
    for name, error in errors.items():
        result |= {f"{name}_{label}": int(n) for label, n in zip(labels, pixel_histogram(error[at]), strict=True)}
    return result
