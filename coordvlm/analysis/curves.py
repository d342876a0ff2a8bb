"""What a group's logs say about the way there: bands over seeds, when a level was reached, snapshots at common steps, shares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordvlm.analysis.runs import Run
from coordvlm.reports.compare_data import Band, Estimate, Reach
from coordvlm.reports.tables import describe

FloatArray = NDArray[np.float64]
#: Columns with the wall time of training, if a log has one.
_TIME = ("time", "seconds")
#: Validated scores and teacher-forced diagnostics.
_SHOWN = re.compile(r"val/.+|val_total_loss|(val[_/])?coord_probe/.+")
_GRADIENT = re.compile(r"(?:train[_/])?grad(?:ient)?(?:_norm)?/(?:norm/)?(?P<term>\w+)$")
_PARTS = {"text_loss": "text", "coord_ce_loss": "slots", "coord_loss": "boxes"}
_COUNT_PARTS = {"coord_ce_loss": "slots", "coord_loss": "points", "done_loss": "done"}
_LAST = 0.1


def seconds_at(run: Run, steps: FloatArray) -> FloatArray:
    """Wall time of training at these rows of the log: logged, else spread evenly over the steps; NaN when neither is known."""
    for name in _TIME:
        if name in run.curves:
            known, seconds = run.curves[name]
            return np.interp(steps, known, seconds)
    timings = run.record.get("timings")
    total = timings.get("train") if isinstance(timings, Mapping) else None
    done = run.record.get("steps")
    if not isinstance(total, int | float) or not isinstance(done, int) or done <= 0:
        return np.full(len(steps), np.nan)
    return (steps + 1) * (float(total) / done)


def logs_time(runs: Sequence[Run]) -> bool:
    """Whether every log has wall time."""
    return all(any(name in run.curves for name in _TIME) for run in runs)


def bands(runs: Sequence[Run]) -> dict[str, Band]:
    """Column -> mean and range over seeds, at the steps that every seed logged; rows of a log are numbered from 0, bands from 1."""
    columns = [c for c in runs[0].curves if _SHOWN.fullmatch(c) and all(c in run.curves for run in runs)]
    return {c: band for c in columns if (band := _band(runs, c)) is not None}


def _band(runs: Sequence[Run], column: str) -> Band | None:
    tables = [dict(zip(*(x.tolist() for x in run.curves[column]), strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(t) for t in tables)))
    if not common:
        return None
    rows = np.asarray([[t[s] for s in common] for t in tables])
    steps = np.asarray(common)
    seconds = np.mean([seconds_at(run, steps) for run in runs], axis=0)
    return Band(steps + 1, seconds, rows.mean(0), rows.min(0), rows.max(0))


def curve_column(runs: Sequence[Run], metric: str) -> str:
    """``val/<metric>`` if every run logged it, else ``val/AP`` or ``val/acc_50``; "" without any."""
    return next((c for c in (f"val/{metric}", "val/AP", "val/acc_50") if all(c in run.curves for run in runs)), "")


def levels(groups: Sequence[Sequence[Run]], column: str, shares: Sequence[float]) -> list[float]:
    """Values to be reached: shares of the best group's mean at its last validation (of its inverse where lower is better)."""
    last = [float(np.mean([run.curves[column][1][-1] for run in runs])) for runs in groups]
    if describe(column.split("/")[-1])[1] < 0:
        return [min(last) / share for share in shares if min(last) > 0]
    return [max(last) * share for share in shares if max(last) > 0]


def reach(runs: Sequence[Run], column: str, wanted: Sequence[float]) -> list[Reach]:
    """When each level was first reached at a validation. Seeds that never did are counted, not averaged."""
    sign = -1.0 if describe(column.split("/")[-1])[1] < 0 else 1.0
    out = []
    for level in wanted:
        steps, seconds = [], []
        for run in runs:
            at, values = run.curves[column]
            hit = np.flatnonzero(sign * values >= sign * level)
            if len(hit):
                steps.append(float(at[hit[0]]) + 1)
                seconds.append(float(seconds_at(run, at[hit[:1]])[0]))
        out.append(Reach(level, len(steps), *(float(np.median(x)) if x else float("nan") for x in (steps, seconds))))
    return out


def snapshot_steps(groups: Sequence[Sequence[Run]], column: str, count: int) -> list[int]:
    """At most ``count`` steps (from 0, as logged) at which every run of every group was validated, evenly chosen, the last included."""
    common = sorted(set.intersection(*(set(run.curves[column][0].tolist()) for runs in groups for run in runs)))
    if not common:
        return []
    picked = np.unique(np.linspace(len(common) / count, len(common), count).round().astype(int)) - 1
    return [int(common[i]) for i in picked if i >= 0]


def snapshot(runs: Sequence[Run], column: str, steps: Sequence[int]) -> dict[int, Estimate]:
    """Steps done -> mean and spread over seeds."""
    out = {}
    for step in steps:
        values = np.asarray([run.curves[column][1][run.curves[column][0] == step][-1] for run in runs])
        out[step + 1] = Estimate(float(values.mean()), spread=float(values.std(ddof=1)) if len(values) > 1 else float("nan"))
    return out


def loss_share(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Part of the loss (``text``, ``slots``, ``boxes``; of counting ``slots``, ``points``, ``done``) -> its share over the whole training
    and over the last tenth of its steps."""
    parts = _COUNT_PARTS if any("train_done_loss" in run.curves for run in runs) else _PARTS
    return _shares(runs, {f"train_{column}": part for column, part in parts.items()})


def grad_share(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Term -> its share of the sum of the terms' gradient norms, if those were logged."""
    columns = {c: m["term"] for run in runs for c in run.curves if (m := _GRADIENT.fullmatch(c)) and m["term"] not in ("total", "norm")}
    return _shares(runs, columns)


def _shares(runs: Sequence[Run], columns: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    found = [_sums(run, columns) for run in runs]
    if not columns or any(f is None for f in found):
        return {}
    mean = np.mean([f for f in found if f is not None], axis=0)
    return {part: (float(whole), float(last)) for part, (whole, last) in zip(columns.values(), mean, strict=True)}


def _sums(run: Run, columns: Mapping[str, str]) -> FloatArray | None:
    """float64[parts, 2]: share of each over all logged steps and over the last tenth; None without a loss."""
    logged = [run.curves[c] for c in columns if c in run.curves]
    if not logged:
        return None
    end = max(float(steps[-1]) for steps, _ in logged)
    out = np.zeros((len(columns), 2))
    for row, column in enumerate(columns):
        if column in run.curves:
            steps, values = run.curves[column]
            size = np.abs(values)
            out[row] = size.sum(), size[steps >= end * (1 - _LAST)].sum()
    total = out.sum(0)
    return out / total if (total > 0).all() else None
