"""A small COCO folder: coloured boxes on grey, as JPEG files of different sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((64, 48), (48, 80), (96, 96), (33, 57), (120, 40), (70, 70))


def content(num: int = 6, *, first_id: int = 1) -> dict[str, Any]:
    """Images with 2, 0, 1, 2, 0, 1 ... boxes (the second one is empty) and one crowd region on the first."""
    images, annotations = [], []
    for i in range(num):
        width, height = SIZES[i % len(SIZES)]
        image = {"id": first_id + i, "file_name": f"{first_id + i:06d}.jpg", "width": width, "height": height}
        images.append(image)
        for j in range((2, 0, 1)[i % 3]):
            box = [round(0.1 * width + j * 0.4 * width, 2), 0.2 * height, 0.35 * width, 0.5 * height]
            annotations.append({"id": 100 * first_id + len(annotations), "image_id": image["id"], "category_id": 3 + 4 * j, "bbox": box,
                                "area": box[2] * box[3], "iscrowd": 0})
    crowd = {"id": 100 * first_id + 90, "image_id": first_id, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 600, "iscrowd": 1}
    categories = [{"id": 3, "name": "red box"}, {"id": 7, "name": "blue box"}]
    return {"images": images, "annotations": [*annotations, crowd], "categories": categories}


def write(root: Path, **splits: Mapping[str, Any]) -> tuple[str, ...]:
    """``<split>.json`` and ``images/``; returns the overrides that train on them."""
    overrides = ["data=coco", f"data.root={root}"]
    for name, data in splits.items():
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps(data))
        overrides += [f"data.source.{name}.json={name}.json", f"data.source.{name}.images=images"]
        for image in data["images"]:
            pixels = np.full((image["height"], image["width"], 3), 128, np.uint8)
            for a in data["annotations"]:
                if a["image_id"] == image["id"] and not a.get("iscrowd"):
                    paint(pixels, a["bbox"], (220, 30, 30) if a["category_id"] == 3 else (30, 30, 220))
            Image.fromarray(pixels).save(root / "images" / image["file_name"], quality=95)
    return tuple(overrides)


def paint(pixels: np.ndarray, bbox: Sequence[float], colour: tuple[int, int, int]) -> None:
    if np.isfinite(bbox).all():
        x, y, w, h = (round(v) for v in bbox)
        pixels[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = colour
