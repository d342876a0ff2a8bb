"""Truth and predictions for tests: from COCO files, by hand, at random."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordvlm.contracts import GroundTruth, Prediction, Record
from coordvlm.metrics.arrays import Detections

BACKENDS = ("faster", "pycocotools")
Box = tuple[float, float, float, float]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def truth_of(data: Mapping[str, Any]) -> GroundTruth:
    """A COCO dict as the data source would hand it over; image ids written as strings become ints."""
    images = sorted(data["images"], key=lambda i: int(i["id"]))
    categories = sorted(data["categories"], key=lambda c: c["id"])
    anns = data["annotations"]
    xywh = np.array([a["bbox"] for a in anns], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        image_ids=np.array([int(i["id"]) for i in images], dtype=np.int64),
        image_wh=np.array([(i.get("width", 1), i.get("height", 1)) for i in images], dtype=np.float64).reshape(-1, 2),
        category_ids=np.array([c["id"] for c in categories], dtype=np.int64),
        category_names=tuple(str(c.get("name", c["id"])) for c in categories),
        ann_ids=np.array([a["id"] for a in anns], dtype=np.int64),
        ann_image_id=np.array([int(a["image_id"]) for a in anns], dtype=np.int64),
        ann_category_id=np.array([a["category_id"] for a in anns], dtype=np.int64),
        ann_xyxy_px=np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
        ann_area=np.array([a["area"] for a in anns], dtype=np.float64),
        ann_iscrowd=np.array([a.get("iscrowd", 0) for a in anns], dtype=np.bool_),
    )


def predictions_of(truth: GroundTruth, results: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """One prediction per image of the truth from a COCO results list, in its order."""
    names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
    records: dict[int, list[Record]] = {i: [] for i in truth.image_ids.tolist()}
    for r in results:
        x, y, w, h = r["bbox"]
        records[r["image_id"]].append(Record(names[r["category_id"]], (x, y, x + w, y + h), r["score"], "ok"))
    sizes = {i: (int(w), int(h)) for i, (w, h) in zip(truth.image_ids.tolist(), truth.image_wh, strict=True)}
    return [Prediction(i, sizes[i], tuple(r)) for i, r in records.items()]


def perfect(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations without crowds as results of score 1."""
    keys = ("image_id", "category_id", "bbox")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in data["annotations"] if not a.get("iscrowd", 0)]


def truth(*anns: tuple[int, str, Box], images: Sequence[int] = (1,), crowds: Sequence[int] = ()) -> GroundTruth:
    """By hand: (image id, class, box) in images of 200 x 100 with classes ``cat`` and ``dog``.

    ``crowds`` are positions; annotation ids count from 0.
    """
    names = ("cat", "dog")
    boxes = np.array([a[2] for a in anns], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        np.array(sorted(images), dtype=np.int64), np.tile([200.0, 100.0], (len(images), 1)), np.array([3, 7]), names,
        np.arange(len(anns)), np.array([a[0] for a in anns], dtype=np.int64),
        np.array([3 if a[1] == "cat" else 7 for a in anns], dtype=np.int64), boxes,
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.isin(np.arange(len(anns)), crowds),
    )


def predicted(image_id: int, *records: tuple[str, Box, float], flags: Sequence[str] = (), extra: Sequence[Record] = (),
              tokens: int = 0, seconds: float | None = None) -> Prediction:
    """By hand: (description, box, score), all ``ok``."""
    kept = tuple(Record(desc, box, score, "ok") for desc, box, score in records)
    timing = {} if seconds is None else {"seconds": seconds}
    return Prediction(image_id, (200, 100), (*kept, *extra), "", tuple(range(tokens)), frozenset(flags), timing)


def random_case(
    seed: int, *, num_images: int = 8, num_classes: int = 3, crowd: float = 0.1, ties: bool = False, repeats: int = 1, most: int = 6,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO dict and results of all sizes, with overlapping truths, misses, duplicates, wrong classes and false positives."""
    rng = np.random.default_rng(seed)
    anns: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        for _ in range(rng.integers(0, most)):
            w, h = np.exp(rng.uniform(np.log(8), np.log(250), 2))
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            category, crowded = int(rng.integers(1, num_classes + 1)), int(rng.random() < crowd)
            box = [float(x), float(y), float(w), float(h)]
            if anns and anns[-1]["image_id"] == image and rng.random() < 0.5:  # a neighbour that competes, or the same box again
                category = anns[-1]["category_id"]
                spread = float(rng.choice([0.0, 0.05, 0.1]))
                box = (np.array(anns[-1]["bbox"]) * (1 + spread * rng.uniform(-1, 1, 4))).tolist()
                w, h = box[2:]
            anns.append({"id": len(anns) + 1, "image_id": image, "category_id": category, "bbox": box, "area": w * h,
                         "iscrowd": crowded})
            for _ in range(repeats * int(rng.choice([0, 1, 1, 1, 2, 3]))):
                moved = np.array(box) + rng.normal(0, 0.06, 4) * [w, h, w, h]
                guess = category if rng.random() < 0.9 else int(rng.integers(1, num_classes + 1))
                results.append({"image_id": image, "category_id": guess, "bbox": moved.tolist(), "score": 0.0})
    scores = rng.permutation(len(results)) / max(1, len(results))
    for r, s in zip(results, np.round(scores, 1) if ties else scores, strict=True):
        r["score"] = float(s)
    return {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(1, num_images + 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, num_classes + 1)], "annotations": anns,
    }, results


def detections_of(truth: GroundTruth, predictions: Sequence[Prediction]) -> Detections:
    from coordvlm.metrics.arrays import flatten

    return flatten(truth, {int(p.sample_id): p for p in predictions}, casefold=False)
