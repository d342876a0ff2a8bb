"""What a comparison found, in sentences: one per pair, that says no more than the interval does."""

from __future__ import annotations

import math
import re

from coordvlm.reports.compare_data import Comparison, Estimate, PairResult
from coordvlm.reports.tables import describe, in_pixels

#: Metrics named by what they are about.
_NAMES = {
    "duplicate_rate": "duplicates", "parse_rate": "parse rate", "truncation_rate": "truncation", "absent_class_rate": "absent classes",
    "px_mean": "mean pixel error", "px_median": "median pixel error",
    "done_acc": "done accuracy", "done_acc_end": "done accuracy at the end", "count_mae": "mean count error",
    "detection_rate": "detection rate", "extra_box_rate": "further boxes", "iou_mean_all": "mean IoU",
}
_SHARES = re.compile(r"(AP|AR|F1|pck|acc)(_|\d|$)|_rate$|^iou_|^reject_|point_in_box|on_unmarked|^loc_|^count_(exact|within)")


def scale(metric: str) -> tuple[float, str]:
    """(factor, unit) in which a metric's differences are shown: shares in points of 100, pixels in px."""
    if _SHARES.search(metric):
        return 100.0, "" if metric.startswith(("AP", "AR", "F1", "acc_", "reject_f1")) else "points"
    if metric.startswith("px384"):
        return 1.0, "px of 384"
    return 1.0, "px" if in_pixels(metric) else "s" if metric.startswith("seconds") else ""


def amount(metric: str, value: float, *, signed: bool = False, unit: bool = True) -> str:
    """A value as shown: ``3.1 AP``, ``1.2 points duplicates`` without the name, ``0.41 px``; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    factor, name = scale(metric)
    shown = value * factor
    digits = 1 if factor == 100 else 2 if abs(shown) < 100 else 0
    if shown and abs(shown) < 0.5 * 10**-digits:
        digits += 1
    text = f"{shown:+.{digits}f}" if signed else f"{shown:.{digits}f}"
    text = text.replace("-", "−")
    words = name or (metric if factor == 100 else "")
    return f"{text} {words}".rstrip() if unit else text


def span(metric: str, low: float, high: float) -> str:
    """``[1.2, 5.0]``, or "" where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{amount(metric, low, unit=False)}, {amount(metric, high, unit=False)}]"


def estimate(metric: str, found: Estimate) -> str:
    """``63.1 ± 0.8``: mean and standard deviation over seeds."""
    spread = f" ± {amount(metric, found.spread, unit=False)}" if math.isfinite(found.spread) else ""
    return f"{amount(metric, found.value, unit=False)}{spread}"


def title(metric: str) -> str:
    """The metric with its unit, for a column: ``AP (%)``, ``px_mean (px)``."""
    factor, unit = scale(metric)
    return f"{metric} (%)" if factor == 100 else f"{metric} ({unit})" if unit else metric


def lead(c: Comparison) -> str:
    """The state of affairs in one sentence: who is ahead, of whom that is shown, of whom it is not; "" for two groups or a baseline."""
    if len(c.groups) < 3 or c.baseline:
        return ""
    sign = _better(c.metric) or 1
    known = [g for g in c.groups if math.isfinite(g.estimates[c.metric].value)]
    if len(known) < 2:
        return ""
    best = max(known, key=lambda g: sign * g.estimates[c.metric].value)
    beaten: list[str] = []
    open_: list[str] = []
    for pair in c.of(c.metric):
        if best.short in (pair.first, pair.second):
            other = pair.second if pair.first == best.short else pair.first
            (beaten if pair.differs(c.level) else open_).append(other)
    value = amount(c.metric, best.estimates[c.metric].value)
    word = "highest" if sign > 0 else "lowest"
    parts = [f"{best.short} has the {word} {c.metric} ({value.removesuffix(c.metric).strip()})"]
    parts += [f"it beats {_and(beaten, 'and')}"] if beaten else []
    parts += [f"a lead over {_and(open_, 'or')} is not shown"] if open_ else []
    return "; ".join(parts) + "."


def verdict(comparison: Comparison, pair: PairResult) -> str:
    """One sentence for a pair: the deciding metric with its interval, then what is named beside it."""
    beside = [other for name in comparison.verdict_metrics for other in comparison.of(name)
              if name != pair.metric and (other.first, other.second) == (pair.first, pair.second)]
    subject = _ordered(pair)[0] if pair.differs(comparison.level) else ""
    better: dict[str, list[str]] = {}
    silent: list[str] = []
    equal: list[str] = []
    unknown: list[str] = []
    for other in beside:
        name = _NAMES.get(other.metric, other.metric)
        if not math.isfinite(other.p):
            unknown.append(name)
        elif other.differs(comparison.level):
            winner, loser, _ = _ordered(other)
            told = f"{subject} worse" if subject == loser else "also better" if subject == winner else f"{winner} better"
            better.setdefault(told, []).append(f"{name} by {amount(other.metric, abs(other.value))}")
        else:
            (equal if other.se == 0 else silent).append(name)
    parts = [_headline(comparison, pair), *(f"{told} in {_and(found, 'and')}" for told, found in better.items())]
    for words, names, last in (("no difference shown in", silent, "or"), ("equal in", equal, "and"), ("undefined:", unknown, "and")):
        if names:
            parts.append(f"{words} {_and(names, last)}")
    return "; ".join(parts) + _seeds(pair) + "."


def _headline(c: Comparison, pair: PairResult) -> str:
    metric = pair.metric
    if not math.isfinite(pair.value):
        return f"{pair.first} and {pair.second} cannot be compared: {metric} is undefined in some of their runs"
    winner, loser, sign = _ordered(pair)
    low, high = sorted((sign * pair.low, sign * pair.high)) if math.isfinite(pair.low) else (math.nan, math.nan)
    if not math.isfinite(pair.p):
        return f"{winner} has {amount(metric, abs(pair.value))} more than {loser}, but {metric} has no interval"
    if pair.differs(c.level):
        word = "beats" if _better(metric) else "is above"
        return f"{winner} {word} {loser} by {amount(metric, abs(pair.value))} {span(metric, low, high)}"
    if pair.se == 0:
        return f"{pair.first} and {pair.second} are equal in {metric}"
    seen = f"a difference of {amount(metric, pair.detectable)} would have been seen with {c.power * 100:g}\u00a0%"
    found = f"{winner} {amount(metric, sign * pair.value, signed=True, unit=False)} {span(metric, low, high)}"
    if pair.p < c.level:
        many = len(c.of(metric))
        return f"no difference shown between {winner} and {loser} in {metric} once {many} comparisons are allowed for ({found}; {seen})"
    return f"no difference shown between {winner} and {loser} in {metric} ({found}; {seen})"


def _ordered(pair: PairResult) -> tuple[str, str, int]:
    """(better, worse, sign) where sign turns the difference into better minus worse as shown: an amount by which it wins."""
    better = _better(pair.metric) or 1
    if pair.value * better >= 0:
        return pair.first, pair.second, better
    return pair.second, pair.first, -better


def _better(metric: str) -> int:
    """+1 higher is better, -1 lower, 0 unknown."""
    known = describe(metric)[1]
    if known:
        return known
    return 1 if re.match(r"(AP|AR|F1)", metric) else -1 if metric in ("tokens_per_image", "seconds_per_image") else 0


def _seeds(pair: PairResult) -> str:
    few = min(pair.seeds)
    if few >= 3:
        return ""
    if few == 1:
        return " (one seed: the interval knows image noise only)"
    return " (two seeds: seed noise is poorly known)"


def _and(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
