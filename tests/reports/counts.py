"""Counting by hand: images of dots, and answers of a wanted quality with single steps and a loop."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from coordvlm.contracts import Asked, PointTruth, Prediction, Record

WIDTH, HEIGHT = 192, 96
CATEGORIES = ("red dot", "blue <b>dot</b>")
COLOURS = {"red dot": (200, 40, 40), "blue <b>dot</b>": (40, 60, 200)}


def dots(num: int, *, seed: int = 0, most: int = 9) -> PointTruth:
    """``num`` samples, two of each image (one of each category); sample 0 has no objects."""
    rng = np.random.default_rng(seed)
    points = [rng.uniform((8, 8), (WIDTH - 8, HEIGHT - 8), (0 if i == 0 else int(rng.integers(1, most)), 2)) for i in range(num)]
    return PointTruth.of(
        ids=range(num), categories=[CATEGORIES[i % 2] for i in range(num)], source_image=[i // 2 for i in range(num)],
        image_wh=np.tile([float(WIDTH), float(HEIGHT)], (num, 1)), points=points,
    )


def answers(truth: PointTruth, *, noise_px: float, wrong_done: float = 0.0, seed: int = 0, loop: bool = True) -> list[Prediction]:
    """Every step answered with normal noise; done is wrong with a probability; the loop misses the last object of every fifth sample."""
    rng = np.random.default_rng(seed)
    out = []
    for i, category in zip(truth.image_ids.tolist(), truth.counted, strict=True):
        points = truth.points_of(i)
        asked = []
        for k in sorted({0, len(points) // 2, max(len(points) - 1, 0), len(points)}):
            target = tuple(points[k].tolist()) if k < len(points) else None
            around = points[k] if k < len(points) else np.array([5.0, 5.0])
            right = float(rng.uniform()) >= wrong_done
            done = float(rng.uniform(0.6, 1)) if right == (target is None) else float(rng.uniform(0, 0.4))
            point = (around + rng.normal(0, noise_px, 2)).tolist()
            asked.append(Asked(k, len(points), target, points[k:], (point[0], point[1]), done))  # type: ignore[arg-type]
        found = points[: len(points) - (i % 5 == 4)] + rng.normal(0, noise_px / 2, (len(points) - (i % 5 == 4 and len(points) > 0), 2))
        records = [Record(category, None, float(rng.uniform(0.6, 1)), "ok", point_px=(x, y)) for x, y in found.tolist()]
        records += [Record(category, None, 0.7, "repeated", point_px=records[-1].point_px)] if i % 7 == 3 and records else []
        flags = frozenset({"repeated" if i % 7 == 3 else "finished"}) if loop else frozenset()
        out.append(Prediction(i, (WIDTH, HEIGHT), tuple(records) if loop else (), flags=flags, timing={"seconds": 0.01, "new_tokens": 3.0},
                              asked=tuple(asked)))
    return out


def draw(truth: PointTruth, sample_id: int) -> Image.Image:
    """The image of a sample with its own dots."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (130, 125, 118))
    pen = ImageDraw.Draw(image)
    colour = COLOURS[truth.counted[int(np.searchsorted(truth.image_ids, sample_id))]]
    for x, y in truth.points_of(sample_id).tolist():
        pen.ellipse((x - 4.5, y - 4.5, x + 3.5, y + 3.5), fill=colour)
    return image
