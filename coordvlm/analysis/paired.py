"""Differences of two recipes that count both kinds of chance: another training seed and another draw of test images.

A recipe is a random effect with two sources, as a diagnostic test read by several readers on the same cases: seeds are readers,
test images are cases, and all runs share the cases. With v_s the value of seed s on the full set and r_s its bootstrap
replicates (equal image weights in every run), the variance of a recipe's mean over S seeds has two parts:

    images  Var_b(mean_s r_s)                         paired: taken of the *difference* of two recipes' mean replicates
    seeds   max(0, s^2 / S - c / S)                   s^2 sample variance of v_s; c the part of it that is image noise,
                                                      c = mean_s Var_b(r_s - mean r) S / (S - 1), which the images' part holds already

The interval of a difference is ``d +- t_nu sqrt(sum of parts)``, degrees of freedom by Satterthwaite (S - 1 per recipe's seed
part, images - 1). Sources: Obuchowski & Rockette 1995; Gallas 2006 (one-shot estimate of the components); Satterthwaite 1946.

Why not resample seeds as well (a hierarchical bootstrap): with few seeds its percentile interval is too narrow. Share of 1500
simulated comparisons whose 95 % interval held the true difference, seed noise three times the image noise, 2 / 3 / 5 seeds:
hierarchical bootstrap 0.76 / 0.85 / 0.91, this 0.92 / 0.95 / 0.95; with image noise alone 0.97 / 0.98 / 0.98 and
0.97 / 0.97 / 0.96. Seeds of two recipes are not paired: equal numbers share data order, but results hardly follow it.

Shapes: S seeds, B replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

FloatArray = NDArray[np.float64]
#: A metric must be defined in this share of replicates to have an interval.
_MIN_DEFINED = 0.9


@dataclass(frozen=True)
class Seeds:
    """One metric of one recipe.

    Args:
        values: float64[S] on the full set. replicates: float64[S, B], with the image weights all recipes share.
    """

    values: FloatArray
    replicates: FloatArray

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not len(self.values) or self.replicates.shape[:1] != self.values.shape or self.replicates.ndim != 2:
            raise ValueError(f"values [S] and replicates [S, B] with S >= 1 expected, got {self.values.shape} and {self.replicates.shape}")

    @property
    def defined(self) -> bool:
        """Whether every seed has a value."""
        return bool(np.isfinite(self.values).all())

    def mean(self) -> float:
        return float(self.values.mean())

    def spread(self) -> float:
        """Standard deviation over seeds (S - 1 in the denominator); NaN for a single one."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """A mean, or a difference of two, with what is known of its chance.

    Args:
        value, low, high: with the interval; NaN ends where none can be given.
        p: two-sided, of "no difference". se: standard error. df: degrees of freedom of its t distribution.
        image_share: share of the variance that comes from images; the rest comes from seeds. NaN without variance.
    """

    value: float
    low: float
    high: float
    p: float
    se: float
    df: float
    image_share: float


def mean_interval(recipe: Seeds, *, num_images: int, coverage: float) -> Difference:
    """A recipe's mean over seeds; with one seed the interval knows image noise only."""
    return _estimate(recipe.mean(), [recipe], recipe.replicates.mean(0), num_images, coverage)


def difference(first: Seeds, second: Seeds, *, num_images: int, coverage: float) -> Difference:
    """First minus second recipe.

    A recipe with one seed has no seed part: the interval is then too narrow for a statement about the recipe, and whoever shows
    it must say so.

    Raises:
        ValueError: replicates of different number, which cannot share their images.
    """
    if first.replicates.shape[1] != second.replicates.shape[1]:
        raise ValueError(
            f"{first.replicates.shape[1]} and {second.replicates.shape[1]} replicates are not paired; evaluate with the same number"
        )
    delta = first.replicates.mean(0) - second.replicates.mean(0)
    return _estimate(first.mean() - second.mean(), [first, second], delta, num_images, coverage)


def _estimate(value: float, recipes: Sequence[Seeds], replicates: FloatArray, num_images: int, coverage: float) -> Difference:
    known = np.isfinite(replicates)
    if not math.isfinite(value) or known.sum() < max(2, _MIN_DEFINED * len(known)) or num_images < 2:
        return Difference(value, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    images = float(replicates[known].var(ddof=1)) * num_images / (num_images - 1)
    parts = [(images, num_images - 1.0)] + [(_seed_part(r), len(r.values) - 1.0) for r in recipes if len(r.values) > 1]
    variance = sum(v for v, _ in parts)
    if variance <= _rounding(recipes) ** 2:
        return Difference(value, value, value, 1.0 if abs(value) <= _rounding(recipes) else 0.0, 0.0, num_images - 1.0, math.nan)
    df = variance**2 / sum(v**2 / n for v, n in parts)
    se = math.sqrt(variance)
    half = float(stdtrit(df, (1 + coverage) / 2)) * se
    p = 2 * float(stdtr(df, -abs(value) / se))
    return Difference(value, value - half, value + half, min(1.0, p), se, df, images / variance)


def _rounding(recipes: Sequence[Seeds]) -> float:
    """Differences below this are float noise."""
    return 1e-12 * max(1.0, *(float(np.abs(r.values).max()) for r in recipes))


def _seed_part(recipe: Seeds) -> float:
    """Variance that seeds add to the mean over them, what image noise adds to their spread taken out."""
    num = len(recipe.values)
    around = recipe.replicates - recipe.replicates.mean(0)
    around = around[:, np.isfinite(around).all(0)]
    interaction = float(around.var(1, ddof=1).mean()) / (num - 1) if around.shape[1] > 1 else 0.0
    return max(0.0, float(recipe.values.var(ddof=1)) / num - interaction)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number: the chance of even one false "differs" among all stays below the level.

    An undefined one (NaN) is no comparison and does not count. Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * float(p[i])))
        out[i] = running
    return [float(v) for v in out]


def detectable(found: Difference, *, level: float, power: float, comparisons: int) -> float:
    """The true difference that would have been shown with this power, given the noise found; NaN without an interval.

    ``se (t_{1 - a/2} + t_power)`` with ``a = level / comparisons``, the strictest step of Holm's correction.
    """
    if not math.isfinite(found.se):
        return math.nan
    strict = float(stdtrit(found.df, 1 - level / max(1, comparisons) / 2))
    return found.se * (strict + float(stdtrit(found.df, power)))
