"""Points, their truth and answers to counting for tests: by hand and at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordvlm.contracts import Asked, Evaluation, Prediction, Record
from coordvlm.contracts.sample import PointTruth
from coordvlm.metrics.counting import CountingMetric

Point = tuple[float, float]


def points(*samples: Sequence[Point], source: Sequence[int] | None = None, size: Point = (384.0, 384.0),
           categories: Sequence[str] | None = None) -> PointTruth:
    """Samples 1, 2, .. with these points, each on an image of its own unless ``source`` says otherwise."""
    ids = list(range(1, len(samples) + 1))
    return PointTruth.of(
        ids=ids, categories=list(categories) if categories is not None else ["dot"] * len(ids), source_image=list(source or ids),
        image_wh=np.tile(size, (len(ids), 1)), points=[np.asarray(s, dtype=np.float64).reshape(-1, 2) for s in samples],
    )


def step(true: Sequence[Point], k: int, at: Point = (0.0, 0.0), done: float = 0.0) -> Asked:
    """The first k are marked; the answer is ``at``."""
    left = np.asarray(true[k:], dtype=np.float64).reshape(-1, 2)
    return Asked(k, len(true), (float(left[0, 0]), float(left[0, 1])) if len(left) else None, left, at, done)


def reply(sample_id: int, *asked: Asked, loop: Sequence[Point] | None = None, flag: str = "finished",
          repeated: Sequence[Point] = (), seconds: float | None = None) -> Prediction:
    """Answers to single steps and, where ``loop`` is given, its marked points and then those on marks."""
    records = [Record("dot", None, 1.0, "ok", point_px=p) for p in loop or ()]
    records += [Record("dot", None, 1.0, "repeated", point_px=p) for p in repeated]
    flags = frozenset() if loop is None else frozenset({flag})
    timing = {} if seconds is None else {"seconds": seconds}
    return Prediction(sample_id, (384, 384), tuple(records), flags=flags, asked=asked, timing=timing)


def random_counting(seed: int, *, num: int = 40, images: int = 9, most: int = 25) -> tuple[PointTruth, list[Prediction]]:
    """Images of 640 x 480; answers near, on another object, far; wrong and right about the end; counts off by some; a few unanswered."""
    rng = np.random.default_rng(seed)
    wh = np.array([640.0, 480.0])
    true = [(rng.uniform(0, 1, (int(rng.integers(0, most + 1)), 2)) * wh) for _ in range(num)]
    truth = PointTruth.of(
        ids=range(1, num + 1), categories=rng.choice(["red dot", "blue dot"], num).tolist(),
        source_image=rng.integers(0, images, num).tolist(), image_wh=np.tile(wh, (num, 1)), points=true,
    )
    answers = []
    for i, xy in enumerate(true, 1):
        if rng.random() < 0.08:
            continue
        asked = []
        for k in sorted(set(rng.integers(0, len(xy) + 1, 4).tolist()) | {len(xy)}):
            left = xy[k:]
            base = left[0 if rng.random() < 0.8 else -1] if len(left) else wh / 2
            at = base + rng.normal(0, rng.choice([1.0, 6.0, 60.0]), 2)
            asked.append(Asked(k, len(xy), tuple(left[0].tolist()) if len(left) else None, left, tuple(at.tolist()), float(rng.uniform())))
        found = xy[rng.random(len(xy)) < 0.85] + rng.normal(0, 4, 2)
        extra = rng.uniform(0, 1, (int(rng.integers(0, 3)), 2)) * wh
        flag = str(rng.choice(["finished", "repeated", "step_limit"], p=[0.8, 0.1, 0.1]))
        answers.append(reply(i, *asked, loop=[tuple(p) for p in np.concatenate((found, extra)).tolist()], flag=flag, seconds=1.0))
    return truth, answers


def evaluate(gt: PointTruth, answers: Sequence[Prediction], *, num_replicates: int = 0, seed: int = 0, any_unmarked: bool = False,
             tolerance_px: float = 5.0, done_taught: bool = True) -> Evaluation:
    """What the metric says of these answers."""
    metric = CountingMetric(
        num_replicates=num_replicates, seed=seed, tolerance_px=tolerance_px, any_unmarked=any_unmarked, done_taught=done_taught, truth=gt
    )
    metric.update(answers)
    return metric.compute()


def values(gt: PointTruth, answers: Sequence[Prediction], **options: Any) -> dict[str, float]:
    """Metric -> its value."""
    return {name: interval.value for name, interval in evaluate(gt, answers, **options).metrics.items()}
