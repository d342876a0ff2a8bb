"""Phrases, their truth and answers for tests: by hand and at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordvlm.contracts import Prediction, Record
from coordvlm.contracts.sample import TARGET, PhraseTruth

Box = tuple[float, float, float, float]


def phrases(*boxes: Box | None, source: Sequence[int] | None = None, size: tuple[float, float] = (200.0, 100.0),
            words: Sequence[str] | None = None) -> PhraseTruth:
    """Phrases 1, 2, .. with these boxes (None: names nothing), each on an image of its own unless ``source`` says otherwise."""
    ids = list(range(1, len(boxes) + 1))
    named = list(words) if words is not None else [f"thing {i}" for i in ids]
    return PhraseTruth.of(ids=ids, phrases=named, source_image=list(source or ids), image_wh=np.tile(size, (len(ids), 1)), boxes=boxes)


def answer(sample_id: int, *boxes: Box, none: bool = False, flags: Sequence[str] = (), dropped: Sequence[str] = (),
           attempts: int | None = None, tokens: int = 0) -> Prediction:
    """An answer of kept boxes in order, then dropped records of these statuses."""
    records = [Record(TARGET, box, 1.0, "ok") for box in boxes] + [Record(TARGET, None, 0.0, status) for status in dropped]
    found = frozenset(flags) | ({"says_none"} if none else frozenset())
    timing = {} if attempts is None else {"attempts": float(attempts)}
    return Prediction(sample_id, (200, 100), tuple(records), "", tuple(range(tokens)), found, timing)


def random_grounding(seed: int, *, num: int = 60, images: int = 12, negatives: float = 0.15) -> tuple[PhraseTruth, list[Prediction]]:
    """Answers that are close, far, missing, "none", repeated; several phrases per image; a few without any prediction."""
    rng = np.random.default_rng(seed)
    source = np.sort(rng.integers(0, images, num))
    boxes: list[Box | None] = []
    answers: list[Prediction] = []
    for i in range(1, num + 1):
        w, h = rng.uniform(20, 200, 2)
        x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
        negative = rng.random() < negatives
        boxes.append(None if negative else (float(x), float(y), float(x + w), float(y + h)))
        kind = rng.choice(["near", "far", "none", "broken", "two", "again", "absent"], p=[0.5, 0.1, 0.12, 0.1, 0.08, 0.07, 0.03])
        spread = 0.06 if kind != "far" else 1.0
        near = np.array([x, y, x + w, y + h]) + rng.normal(0, spread, 4) * [w, h, w, h]
        box = tuple(np.concatenate((np.minimum(near[:2], near[2:]), np.maximum(near[:2], near[2:]))).tolist())
        if kind == "absent":
            continue
        if kind in ("none", "broken"):
            answers.append(answer(i, none=kind == "none", dropped=["bad_arity"] * (kind == "broken")))
        else:
            answers.append(answer(i, box, *([box] if kind == "two" else []), attempts=2 if kind == "again" else 1))
    truth = PhraseTruth.of(ids=range(1, num + 1), phrases=[f"phrase {i}" for i in range(num)], source_image=source.tolist(),
                           image_wh=np.tile([640.0, 480.0], (num, 1)), boxes=boxes)
    return truth, answers
