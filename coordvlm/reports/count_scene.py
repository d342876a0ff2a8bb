"""A counted image: what was asked and answered, how to draw it and what to say of it; and single steps by their error.

Shapes: N true objects, P counted points, S single steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Asked, PointTruth, Prediction
from coordvlm.metrics.pixels import COMMON_SIDE
from coordvlm.metrics.point_outcomes import LOOP_FLAGS, SAYS_DONE
from coordvlm.metrics.point_pairs import pair_points
from coordvlm.reports.page import visible
from coordvlm.reports.point_overlay import draw_count, draw_step

FloatArray = NDArray[np.float64]
#: Within this of an object a point is on it, px on a side of 384: what ``pck384_5`` counts.
ON_OBJECT_PX = 5.0


@dataclass(frozen=True)
class CountScene:
    """One sample of counting.

    Args:
        true_px: float64[N, 2], in file order. asked: single steps with true marks.
        errors384: float64[S], px on a side of 384; NaN where nothing is left to point at.
        points_px: float64[P, 2], kept points of the loop in their order. pairs: (point, truth) within ``ON_OBJECT_PX``.
        ended: how the loop ended, "" where it was not run. dropped: reason -> records that were not counted.
    """

    sample_id: int
    category: str
    size: tuple[float, float]
    true_px: FloatArray
    asked: tuple[Asked, ...]
    errors384: FloatArray
    points_px: FloatArray
    pairs: tuple[tuple[int, int], ...]
    ended: str
    dropped: Mapping[str, int]

    @property
    def step_share(self) -> float:
        """Share of the single steps that are right: on their object and not done, or done when nothing is left. NaN without any."""
        right = [
            a.done > SAYS_DONE if a.target_px is None else a.done <= SAYS_DONE and error <= ON_OBJECT_PX
            for a, error in zip(self.asked, self.errors384.tolist(), strict=True)
        ]
        return sum(right) / len(right) if right else math.nan

    @property
    def loc_f1(self) -> float:
        """Of the loop's points; 1 where nothing was to be found and nothing was; NaN where it was not run."""
        items = len(self.points_px) + len(self.true_px)
        return math.nan if not self.ended else 2 * len(self.pairs) / items if items else 1.0

    @property
    def score(self) -> float:
        """In [0, 1]: mean of both, as far as they are there; 0 for a sample without an answer."""
        parts = [v for v in (self.step_share, self.loc_f1) if math.isfinite(v)]
        return sum(parts) / len(parts) if parts else 0.0

    def draw(self, image: Image.Image) -> Image.Image:
        """The count where there is one, else the worst single step; ``image`` is the displayed frame, without marks."""
        if self.ended or not self.asked:
            return draw_count(image, self.true_px, self.points_px, self.pairs, category=self.category, ended=self.ended, size=self.size)
        wrong = [error if math.isfinite(error) else COMMON_SIDE * (a.done <= SAYS_DONE)
                 for a, error in zip(self.asked, self.errors384.tolist(), strict=True)]
        return self.draw_step(image, int(np.argmax(wrong)))

    def draw_step(self, image: Image.Image, index: int) -> Image.Image:
        """One single step, with the marked objects ringed."""
        asked = self.asked[index]
        return draw_step(image, asked, category=self.category, marked_px=self.marked_px(asked), size=self.size)

    def marked_px(self, asked: Asked) -> FloatArray:
        """float64[k, 2], true objects that are marked in a step. Questions hold points in float32, hence the tolerance."""
        if not len(self.true_px) or not len(asked.unmarked_px):
            return self.true_px
        apart = np.abs(self.true_px[:, None] - asked.unmarked_px[None]).max(2).min(1)
        rest: FloatArray = self.true_px[apart > 1e-3 + 1e-6 * max(self.size)]
        return rest

    def facts(self) -> list[str]:
        """``12 counted, 13 true``, ``finished``, ``2 × repeated``, ``5 of 6 steps right`` and so on."""
        out = []
        if self.ended:
            out += [f"{len(self.points_px)} counted, {len(self.true_px)} true", f"F1 {self.loc_f1:.2f}", self.ended]
            out += [f"{count} × {status}" for status, count in self.dropped.items()]
        else:
            out.append(f"{len(self.true_px)} true")
        if self.asked:
            out.append(f"{round(self.step_share * len(self.asked))} of {len(self.asked)} steps right")
        known = self.errors384[np.isfinite(self.errors384)]
        if len(known):
            out.append(f"{'error' if len(known) == 1 else 'median error'} {np.median(known):.1f} px of 384")
        return out if self.ended or self.asked else [*out, "no answer"]

    def caption(self) -> str:
        """One line of plain text."""
        return " · ".join([f"{' '.join(visible(self.category).split())}, sample {self.sample_id}", *self.facts()])


def count_scene(
    prediction: Prediction, true_px: FloatArray, *, category: str, size: tuple[float, float], any_unmarked: bool
) -> CountScene:
    """One prediction beside its truth.

    Args:
        any_unmarked: a step is measured to the unmarked object nearest to the answer, which then stands as its target.
    """
    scale = COMMON_SIDE / np.asarray(size)
    asked = tuple(aimed(a, scale) if any_unmarked else a for a in prediction.asked)
    errors = [math.nan if a.target_px is None else float(np.hypot(*((np.subtract(a.point_px, a.target_px)) * scale))) for a in asked]
    points = np.asarray([r.point_px for r in prediction.kept if r.point_px is not None], dtype=np.float64).reshape(-1, 2)
    true = np.asarray(true_px, dtype=np.float64).reshape(-1, 2)
    left, right = pair_points(points * scale, true * scale, ON_OBJECT_PX)
    return CountScene(
        int(prediction.sample_id), category, size, true, asked, np.asarray(errors, dtype=np.float64), points,
        tuple(zip(left.tolist(), right.tolist(), strict=True)), " ".join(f for f in LOOP_FLAGS if f in prediction.flags).replace("_", " "),
        Counter(r.status for r in prediction.records if not r.kept),
    )


def aimed(asked: Asked, scale: FloatArray) -> Asked:
    """The step with the unmarked object nearest to the answer as its target. scale: source px to px on a side of 384, (x, y)."""
    if asked.target_px is None:
        return asked
    away = np.hypot(*((asked.unmarked_px - np.asarray(asked.point_px)) * scale).T)
    x, y = asked.unmarked_px[int(np.argmin(away))].tolist()
    return replace(asked, target_px=(x, y))


def count_scenes(truth: PointTruth, predictions: Sequence[Prediction], *, any_unmarked: bool = False) -> list[CountScene]:
    """Every predicted sample that the truth knows, in id order."""
    by_id = {int(p.sample_id): p for p in predictions}
    rows = zip(truth.image_ids.tolist(), truth.counted, truth.image_wh.tolist(), strict=True)
    return [
        count_scene(by_id[i], truth.points_of(i), category=category, size=(wh[0], wh[1]), any_unmarked=any_unmarked)
        for i, category, wh in rows if i in by_id
    ]


def choose_steps(items: Sequence[CountScene], each: int) -> dict[str, list[tuple[CountScene, int]]]:
    """``best``, ``median`` and ``worst`` single steps by their error on a side of 384, without overlap and one per sample in each group."""
    ranked = sorted(
        ((float(e), item.sample_id, i, item) for item in items for i, e in enumerate(item.errors384.tolist()) if math.isfinite(e)),
        key=lambda row: row[:3],
    )
    count = min(each, math.ceil(len(ranked) / 3))
    middle = sorted(range(len(ranked)), key=lambda at: abs(at - (len(ranked) - 1) / 2))
    taken: set[int] = set()
    out: dict[str, list[tuple[CountScene, int]]] = {}
    for name, order in (("worst", range(len(ranked) - 1, -1, -1)), ("best", range(len(ranked))), ("median", middle)):
        samples: set[int] = set()
        group: list[tuple[CountScene, int]] = []
        for at in order:
            _, sample, index, item = ranked[at]
            if len(group) == count:
                break
            if at not in taken and sample not in samples:
                taken.add(at)
                samples.add(sample)
                group.append((item, index))
        out[name] = group
    return {name: out[name] for name in ("best", "median", "worst")}
