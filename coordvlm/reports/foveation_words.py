"""The verdict on looking as one sentence: what was measured, and no more than its intervals say."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coordvlm.reports.compare_data import Estimate

#: What a verdict may come to.
OUTCOMES = {
    "used": "the plan is used",
    "not_the_plan": "fine is better than coarse, but not because of the plan",
    "no_difference": "no difference is shown",
    "worse": "fine is worse than coarse",
    "open": "no verdict",
}
_CONTROL_WORDS = {"swap": "swapped", "random": "random"}


def sentence(
    evidence: Mapping[str, Estimate], *, task: str, group: str, why_unmatched: str, seeds: int, alone: bool
) -> tuple[str, str]:
    """(outcome, sentence).

    Args:
        evidence: metric -> estimate: ``acc_fine`` or ``px384_median_fine``, coarse and the controls alike, ``gain_acc`` or ``px_ratio``,
            ``ratio_matched``, ``<control>_drop_acc`` or ``<control>_px_ratio``.
        task: kind of question. group: "" where there is one only. why_unmatched: "" where coarse may be compared with.
        alone: coarse and fine were trained by themselves.
    """
    points = "acc_fine" not in evidence
    metric = "px384_median" if points else "acc"
    numbers = _numbers(evidence, metric, alone)
    outcome, conclusion = _conclusion(evidence, points, why_unmatched)
    few = {1: " (one seed: the interval knows clip noise only)", 2: " (two seeds: seed noise is poorly known)"}.get(seeds, "")
    head = f"{task}, {group}" if group else task
    return outcome, f"{head}: {'; '.join(filter(None, (numbers, conclusion)))}{few}."


def _numbers(evidence: Mapping[str, Estimate], metric: str, alone: bool) -> str:
    unit = " px of 384" if metric == "px384_median" else ""
    arms = {"fine": "fine", "coarse": "coarse", "swap": "swapped", "random": "random", "no_image": "no image", "no_text": "no text"}
    parts = []
    for arm, name in arms.items():
        found = evidence.get(f"{metric}_{arm}")
        if found is not None:
            shown = _value(found, interval=arm == "fine", digits=1 if unit else 2)
            parts.append(f"{name}{' by itself' if alone and arm == 'coarse' else ''} {shown}{unit if arm == 'fine' else ''}")
    taught = {name.removeprefix("taught "): found for name, found in evidence.items() if name.startswith("taught ")}
    parts += [f"taught {queries} queries {_value(found)}" for queries, found in taught.items()]
    return ", ".join(parts)


def _conclusion(evidence: Mapping[str, Estimate], points: bool, why_unmatched: str) -> tuple[str, str]:
    name = "px_ratio" if points else "gain_acc"
    gain = evidence.get(name)
    ratio = evidence.get("ratio_matched")
    beside = f"ratio_matched {_value(ratio, interval=True)}" if ratio is not None else ""
    if why_unmatched:
        return "open", f"no verdict: {why_unmatched}"
    if gain is None:
        return "open", "no verdict: it was not evaluated in both passes"
    difference = f"{'fine / coarse' if points else 'fine − coarse'} {_value(gain, interval=True, signed=not points)}"
    told = ", ".join(filter(None, (difference, beside)))
    side = _side(gain, points)
    if side is None:
        return "open", f"{told}; no verdict: the difference has no interval"
    if side < 0:
        return "worse", f"{told}; fine is worse than coarse"
    if side == 0:
        return "no_difference", f"no difference shown: {told}{_loss_differs(ratio)}"
    return _by_controls(evidence, points, told)


def _by_controls(evidence: Mapping[str, Estimate], points: bool, told: str) -> tuple[str, str]:
    """Fine is above coarse: do controls fall?"""
    drops = {c: evidence.get(f"{c}_px_ratio" if points else f"{c}_drop_acc") for c in _CONTROL_WORDS}
    if absent := [_CONTROL_WORDS[c] for c, found in drops.items() if found is None or _side(found, points) is None]:
        return "open", f"{told}; no verdict: {' and '.join(absent)} queries were not evaluated, or have no interval"
    stays = [_CONTROL_WORDS[c] for c, found in drops.items() if found is not None and (_side(found, points) or 0) <= 0]
    if stays:
        return "not_the_plan", f"{told}; but with {' and '.join(stays)} queries it is not shown to be worse: the plan is not what helps"
    return "used", f"{told}; the plan is used"


def _side(found: Estimate, ratio: bool) -> int | None:
    """+1: fine is better beyond noise, -1 worse, 0 neither; None without an interval. ratio: of errors, below 1 is better."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    low, high = (1 - found.high, 1 - found.low) if ratio else (found.low, found.high)
    return 1 if low > 0 else -1 if high < 0 else 0


def _loss_differs(ratio: Estimate | None) -> str:
    if ratio is None or not math.isfinite(ratio.low) or ratio.low <= 1 <= ratio.high:
        return ""
    return f", though the loss of {'fine' if ratio.low > 1 else 'coarse'} is lower"


def _value(found: Estimate, *, interval: bool = False, signed: bool = False, digits: int = 2) -> str:
    """``0.98 [0.97, 0.99]``."""
    if not math.isfinite(found.value):
        return "–"
    text = f"{found.value:{'+' if signed else ''}.{digits}f}"
    if interval and math.isfinite(found.low) and math.isfinite(found.high):
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text.replace("-", "−")
