"""What a counting run is to reach, item by item: passed, failed, or not measured. What is unknown never passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.metrics.pixels import TIERS

#: Name -> (steps, values) as logged.
Curve = tuple[Sequence[float], Sequence[float]]
PASS, FAIL, NOT_MEASURED = "pass", "fail", "not measured"
#: Validation loss over training loss must stay below this.
LARGEST_GAP = 3.0
#: Share of a group's looked-at steps whose gradient norm may lie outside the range.
OUTSIDE = 0.05
#: A logged loss this many times the median of the ``_BEFORE`` ones before it is a spike.
SPIKE = 5.0
_BEFORE = 10


@dataclass(frozen=True)
class Check:
    """One item.

    Args:
        name: what is checked. asks: what must hold, in words. found: what was found, in words; says why it was not measured.
        value: the number that decides, NaN when it was not measured. status: ``pass``, ``fail`` or ``not measured``.
    """

    name: str
    asks: str
    found: str
    value: float
    status: str


def checklist(evaluation: Evaluation, curves: Mapping[str, Curve], gradients: Mapping[str, object] | None) -> list[Check]:
    """Every item, in a fixed order. Pixels are on a side of 384.

    Args:
        evaluation: by ``CountingMetric``. curves: of the training's log; empty for none.
        gradients: ``gradient_health`` of run.json, of the callback that watches gradients; None where it was off.
    """
    values = {name: float(item.value) for name, item in evaluation.metrics.items()}
    return [
        *(_tier(tier, values) for tier in TIERS),
        _below("median", "median < 5 px", values.get("px384_median", math.nan), 5.0, "{:.2f} px"),
        _at_least("within 8 px", "≥ 75% within 8 px", values.get("pck384_8", math.nan), 0.75),
        _below("beyond 15 px", "< 5% beyond 15 px", 1 - values.get("pck384_15", math.nan), 0.05, "{:.1%}"),
        _gap(curves),
        _gradients(gradients),
        _spikes(curves, gradients),
    ]


def _tier(tier: str, values: Mapping[str, float]) -> Check:
    share, radius, mean = TIERS[tier]
    within, found = values.get(f"pck384_{radius}", math.nan), values.get("px384_mean", math.nan)
    asks = f"≥ {share:.0%} within {radius} px, mean < {mean:g} px"
    if math.isnan(within) or math.isnan(found):
        return _unknown(f"tier {tier}", asks, "no single step had anything left to point at")
    return Check(f"tier {tier}", asks, f"{within:.1%}, mean {found:.2f} px", within, _status(within >= share and found < mean))


def _below(name: str, asks: str, value: float, limit: float, form: str) -> Check:
    if math.isnan(value):
        return _unknown(name, asks, "no single step had anything left to point at")
    return Check(name, asks, form.format(value), value, _status(value < limit))


def _at_least(name: str, asks: str, value: float, limit: float) -> Check:
    if math.isnan(value):
        return _unknown(name, asks, "no single step had anything left to point at")
    return Check(name, asks, f"{value:.1%}", value, _status(value >= limit))


def _gap(curves: Mapping[str, Curve]) -> Check:
    """Last validation loss over the mean training loss before it: the last tenth of the logged steps, at least ten of them."""
    name, asks = "train/validation gap", f"validation loss < {LARGEST_GAP:g} × training loss"
    if "val_total_loss" not in curves or "train_total_loss" not in curves:
        return _unknown(name, asks, "no log of both losses")
    val_steps, val_values = (np.asarray(v, dtype=np.float64) for v in curves["val_total_loss"])
    steps, values = (np.asarray(v, dtype=np.float64) for v in curves["train_total_loss"])
    before = values[steps <= val_steps[-1]] if len(val_steps) else values[:0]
    if not len(before):
        return _unknown(name, asks, "no training loss before the last validation")
    train, validation = float(before[-max(10, len(before) // 10) :].mean()), float(val_values[-1])
    if not train > 0:
        return _unknown(name, asks, f"the training loss is {train:.4g}")
    gap = validation / train
    return Check(name, asks, f"{gap:.2f} × ({validation:.4g} / {train:.4g})", gap, _status(gap < LARGEST_GAP))


def _spikes(curves: Mapping[str, Curve], gradients: Mapping[str, object] | None) -> Check:
    """From the watch, which saw every step; else from the logged steps."""
    name = "loss spikes"
    tasks = [found for found in _parts(gradients, "tasks").values() if "loss_spikes" in found]
    watched = [int(found["loss_spikes"]) for found in tasks]
    if watched and gradients is not None:
        asks = f"no loss above {gradients.get('spike_factor')} × the median of the {gradients.get('spike_window')} before it"
        if (seen := max(int(found.get("steps", 0)) for found in tasks)) <= _BEFORE:  # the watch judges none of the first ones either
            return _unknown(name, asks, f"{seen} steps are too few")
        return Check(name, asks, f"{sum(watched)} in all steps", float(sum(watched)), _status(not any(watched)))
    asks = f"no logged loss above {SPIKE:g} × the median of the {_BEFORE} before it"
    if "train_total_loss" not in curves:
        return _unknown(name, asks, "no log of the training loss")
    steps, values = (np.asarray(v, dtype=np.float64) for v in curves["train_total_loss"])
    if len(values) <= _BEFORE:
        return _unknown(name, asks, f"{len(values)} logged steps are too few")
    medians = np.asarray([np.median(values[i - _BEFORE : i]) for i in range(_BEFORE, len(values))])
    at = np.flatnonzero(~(values[_BEFORE:] <= SPIKE * medians)) + _BEFORE  # NaN is a spike
    where = f", the first at step {steps[at[0]]:.0f}" if len(at) else ""
    return Check(name, asks, f"{len(at)} in {len(values)} logged steps{where}", float(len(at)), _status(len(at) == 0))


def _gradients(gradients: Mapping[str, object] | None) -> Check:
    """The group that lies outside the range most often decides."""
    name, asks = "gradients in range", f"≤ {OUTSIDE:.0%} of a group's steps outside the healthy range"
    shares = {group: float(found["share_outside"]) for group, found in _parts(gradients, "groups").items() if "share_outside" in found}
    if not shares or gradients is None:
        return _unknown(name, asks, "gradient norms were not watched")
    worst = max(shares, key=lambda group: shares[group])
    return Check(name, asks, f"{shares[worst]:.1%} of {worst} outside {gradients.get('healthy')}", shares[worst],
                 _status(shares[worst] <= OUTSIDE))  # fmt: skip


def _parts(gradients: Mapping[str, object] | None, key: str) -> Mapping[str, Mapping[str, float]]:
    found = gradients.get(key) if gradients is not None else None
    return found if isinstance(found, Mapping) else {}


def _unknown(name: str, asks: str, why: str) -> Check:
    return Check(name, asks, why, math.nan, NOT_MEASURED)


def _status(holds: bool) -> str:
    return PASS if holds else FAIL
