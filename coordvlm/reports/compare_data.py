"""Everything the page of a comparison is made of. Filled in by ``analysis``; nothing is computed from files here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.metrics.floor import Floor
from coordvlm.reports.gallery import Scene

if TYPE_CHECKING:
    from coordvlm.reports.foveation_data import Foveation

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A metric of a group: mean over seeds, its interval, and the standard deviation over seeds (NaN for one seed)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    spread: float = math.nan


@dataclass(frozen=True)
class Band:
    """A logged value over training, mean and range over seeds.

    Args:
        steps: float64[n], optimiser steps done. seconds: float64[n], wall time of training until then, mean over seeds.
    """

    steps: FloatArray
    seconds: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Reach:
    """When a level was reached first: medians over the seeds that reached it."""

    level: float
    reached: int
    steps: float
    seconds: float


@dataclass(frozen=True)
class GroupResult:
    """One recipe.

    Args:
        name, short: ``loss=hybrid``, ``hybrid``. readouts: read-out -> metric -> estimate without interval.
        statuses: record status or answer flag -> count over all seeds. px_error: float64, corner errors of matched boxes, all seeds; see
            ``Comparison.counting``.
        floor: None when the contract is not known. cost: name with its unit (``train_seconds``) -> mean over seeds.
        loss_share, grad_share: part (``text``, ``slots``, ``boxes``) -> (share over the whole training, over its last tenth).
        curves: column of the log -> band. reach: of ``Comparison.curve``. snapshots: step -> estimate of the same.
    """

    name: str
    short: str
    seeds: tuple[int, ...]
    estimates: Mapping[str, Estimate]
    readouts: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)
    px_error: FloatArray = field(default_factory=lambda: np.zeros(0))
    floor: Floor | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    loss_share: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    grad_share: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    curves: Mapping[str, Band] = field(default_factory=dict)
    reach: Sequence[Reach] = ()
    snapshots: Mapping[int, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class PairResult:
    """First minus second group in one metric.

    Args:
        value, low, high: difference and interval; NaN where undefined. p, p_holm: two-sided, alone and corrected over the pairs.
        detectable: the true difference that would have been shown with the comparison's power.
        image_share: share of the variance due to images, the rest is due to seeds.
        seeds: of the first and of the second group.
    """

    first: str
    second: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    se: float
    df: float
    detectable: float
    image_share: float
    seeds: tuple[int, int]

    def differs(self, level: float) -> bool:
        """Whether the corrected p value is below the level; False where it is undefined."""
        return self.p_holm < level


@dataclass(frozen=True)
class RunRow:
    """One run, for the table of runs."""

    name: str
    folder: str
    group: str
    seed: int
    started: str
    commit: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Disagreement:
    """An image on which groups differ much. ``scores``: group -> mean over seeds of the image's score; scenes: group -> one seed's."""

    image_id: int
    gap: float
    scores: Mapping[str, float]
    scenes: Mapping[str, Scene]
    seed: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """The result.

    Args:
        metric: what decides. metrics: what is compared, ``metric`` first. verdict_metrics: those named beside it in a verdict.
        pairs: every compared pair in every metric. baseline: "" or the group all others are compared with.
        readout: how numbers were read off. protocol: its values; protocol_hash: "" when predictions were read again, and where
            recipes of counting or clips train other read-outs.
        curve: the logged column that curves, levels and snapshots are about, "" without one.
        exact_time: whether wall time was logged; otherwise it is spread evenly over the steps.
        load_image: None when images cannot be had, ``no_image`` then says why.
        notes: what a reader must know before believing anything. foveation: of clips, whether looking pays.
    """

    metric: str
    metrics: Sequence[str]
    verdict_metrics: Sequence[str]
    groups: Sequence[GroupResult]
    pairs: Sequence[PairResult]
    runs: Sequence[RunRow]
    left_out: Sequence[tuple[str, str]]
    num_images: int
    coverage: float
    power: float
    baseline: str
    readout: str
    protocol: Mapping[str, object]
    protocol_hash: str
    contracts: Mapping[str, Sequence[str]]
    curve: str
    exact_time: bool
    notes: Sequence[str]
    disagreements: Sequence[Disagreement] = ()
    load_image: Callable[[int], Image.Image] | None = None
    no_image: str = ""
    command: str = ""
    foveation: Foveation | None = None

    @property
    def level(self) -> float:
        """Of significance."""
        return 1 - self.coverage

    @property
    def counting(self) -> bool:
        """Whether points were counted; errors are then those of single steps, px on a side of 384."""
        return any("pck384_5" in group.estimates for group in self.groups)

    def of(self, metric: str) -> list[PairResult]:
        """The pairs in one metric."""
        return [pair for pair in self.pairs if pair.metric == metric]

    def group_pairs(self) -> list[tuple[str, str]]:
        """(first, second) of every compared pair, once."""
        return list(dict.fromkeys((pair.first, pair.second) for pair in self.pairs))
