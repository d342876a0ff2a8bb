"""A small encoder and small COCO files for the data tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from coordvlm.contracts import Batch, Encoded, Sample
from coordvlm.data.coco import Coco
from coordvlm.data.images import open_image

EMPTY = np.zeros(0, np.int64)


class FakeEncoder:
    """Writes one text token per object and none of the rest; opens the image as the real encoder does."""

    def encode(self, sample: Sample, *, epoch: int, with_answer: bool = True) -> Encoded:
        open_image(sample.image, declared=(sample.width, sample.height), max_pixels=10**7, where=f"{sample.image} (image {sample.id})")
        answer = np.full(len(sample.objects) if with_answer else 0, epoch, np.int64)
        return Encoded(
            sample.id, EMPTY, answer, np.zeros(len(answer), np.uint8), EMPTY, EMPTY.astype(np.uint8), EMPTY,
            EMPTY.astype(np.float32), EMPTY, np.zeros((1, 3, 2, 2), np.uint8), (1, 1, 1), (sample.width, sample.height),
        )

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        none = torch.zeros(0, dtype=torch.long)
        size, num = len(encoded), sum(len(e.answer_ids) for e in encoded)
        return Batch(
            torch.zeros(size, 1, dtype=torch.long), none, none, none, none, none, none, none, none, none, none, none, none, none,
            none, none, none, {"text": num}, tuple(e.id for e in encoded), tuple(e.size for e in encoded),
        )


def coco_json(**changes: object) -> dict[str, object]:
    """Two 40 x 30 images; image 7 has two boxes and a crowd, image 3 none."""
    data: dict[str, object] = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}, {"id": 3, "file_name": "b.png", "width": 40, "height": 30}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 9, "bbox": [1.5, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 10, "image_id": 7, "category_id": 2, "bbox": [20, 5, 20.5, 10], "area": 205, "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1},
        ],
    }
    return {**data, **changes}


def annotation(**changes: object) -> dict[str, object]:
    """A valid annotation with changes."""
    return {"id": 20, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0, **changes}


def write_coco(root: Path, data: object, name: str = "ann.json") -> Path:
    """The JSON, and the images of ``coco_json`` in ``images``."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(("a.png", "b.png")):
        if not (root / "images" / file).exists():
            Image.new("RGB", (40, 30), (60 * i, 90, 30)).save(root / "images" / file)
    path = root / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def load_coco(root: Path, *, on_error: str = "raise", split: str = "train", **options: object) -> Coco:
    """``ann.json`` of a folder as one split."""
    files: dict[str, Mapping[str, object] | None] = {"train": None, "val": None, "test": None}
    per_split = {k: options.pop(k) for k in ("image_ids", "max_objects_filter", "num_images") if k in options}
    files[split] = {"json": "ann.json", "images": "images", **per_split}
    defaults = {"seed": 0, "class_list": "none", "num_absent": 0, "replace_underscores": False}
    return Coco(root=root, on_error=on_error, **files, **{**defaults, **options})  # type: ignore[arg-type]
