"""Small data sets of points to count, in the schemas they are published in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordvlm.data.coco_points import CocoPoints
from coordvlm.data.fsc147 import Fsc147
from coordvlm.data.points_file import PointsFile
from tests.data.layouts import picture

FSC_FILES = {
    "annotations": "annotation_FSC147_384.json", "division": "Train_Test_Val_FSC_147.json", "classes": "ImageClasses_FSC147.txt",
    "images": "images_384_VarV2",
}


def points_row(points: Sequence[Sequence[float]] = ((2, 3), (30, 20)), category: str = "apple", **keys: object) -> dict[str, object]:
    """A row on ``a.png``, 40 x 30 px."""
    return {"image": "a.png", "category": category, "points": points, **keys}


def write_points(root: Path, *rows: object, name: str = "train.jsonl") -> None:
    """The file (text as it is, the rest as JSON) and 40 x 30 images ``a.png``, ``b.png``, ``c.png``."""
    for file in ("a.png", "b.png", "c.png"):
        if not (root / file).exists():
            picture(root / file)
    (root / name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in rows), encoding="utf-8")


def load_points(root: Path, *, split: str = "train", on_error: str = "raise", **options: Any) -> PointsFile:
    """``train.jsonl`` of a folder as one split."""
    chosen = {k: options.pop(k) for k in ("image_ids", "max_points", "num_images") if k in options}
    settings: dict[str, Any] = {
        "root": root, "splits": {split: {"file": "train.jsonl", "images": ".", **chosen}}, "test": None, "coordinates": "pixel",
        "scale_to_image": False, "on_error": on_error, **options,
    }
    return PointsFile(**settings)


def fsc_entry(points: Sequence[Sequence[float]], size: tuple[int, int] = (40, 30), original: tuple[int, int] = (100, 75)) -> dict[str, Any]:
    """An annotation as they are published: ``H`` and ``W`` of the original image, points on the resized one."""
    return {
        "H": original[1], "W": original[0], "box_examples_coordinates": [[[1, 1], [1, 5], [5, 5], [5, 1]]],
        "box_examples_path": ["/nfs/box_examples/1_0.jpg"], "density_path": "/nfs/1.npy", "density_path_fixed": "/nfs/1.npy",
        "img_path": "/nfs/images_384_VarV2/1.jpg", "points": points, "r": [4, 4], "ratio_h": size[1] / original[1],
        "ratio_w": size[0] / original[0],
    }


def write_fsc(
    root: Path, entries: Mapping[str, object] | None = None, *, division: Mapping[str, object] | None = None, classes: str | None = None
) -> None:
    """FSC-147 in small: 2.jpg and 7.jpg in train, 3.jpg in val, 5.jpg in test; all images are 40 x 30 px."""
    division = {"test": ["5.jpg"], "train": ["7.jpg", "2.jpg"], "val": ["3.jpg"]} if division is None else division
    names = ["2.jpg", "3.jpg", "5.jpg", "7.jpg"]
    entries = {n: fsc_entry([[3.5, 4.25], [20, 10]]) for n in names} if entries is None else entries
    for name in names:
        picture(root / FSC_FILES["images"] / name)
    (root / FSC_FILES["annotations"]).write_text(json.dumps(entries))
    (root / FSC_FILES["division"]).write_text(json.dumps(division))
    text = "2.jpg\tsea shells\n3.jpg\tbirds\n5.jpg\tgo game\n7.jpg\tpeppers\n" if classes is None else classes
    (root / FSC_FILES["classes"]).write_text(text)


def load_fsc(root: Path, *names: str, on_error: str = "raise", **options: Any) -> Fsc147:
    splits: dict[str, dict[str, object]] = {name: {} for name in names or ("train", "val", "test")}
    settings: dict[str, Any] = {
        "root": root, **FSC_FILES, "splits": splits, "test": None, "scale_to_image": False, "on_error": on_error, **options,
    }
    return Fsc147(**settings)


def counted_coco() -> dict[str, Any]:
    """Image 4: two dogs, a cat, and a crowd of sheep. Image 9: a dog. Image 2: nothing."""
    boxes = [(1, 4, 3, [2, 4, 10, 6]), (2, 4, 5, [20, 10, 5, 5]), (3, 9, 3, [0, 0, 40, 30]), (4, 4, 3, [10.5, 10, 4, 9.5])]
    annotations = [{"id": i, "image_id": m, "category_id": c, "bbox": b, "area": 9.0, "iscrowd": 0} for i, m, c, b in boxes]
    annotations.append({"id": 5, "image_id": 4, "category_id": 7, "bbox": [1, 1, 20, 20], "area": 9.0, "iscrowd": 1})
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (4, 9, 2)]
    categories = [{"id": i, "name": n} for i, n in ((3, "dog"), (5, "cat"), (7, "sheep"), (8, "cow"))]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco_points(root: Path, content: Mapping[str, Any] | None = None, name: str = "train.json") -> None:
    for image in (2, 4, 9):
        picture(root / "images" / f"{image}.png")
    (root / name).write_text(json.dumps(counted_coco() if content is None else content))


def load_coco_points(root: Path, *, split: str = "train", on_error: str = "raise", **options: Any) -> CocoPoints:
    chosen = {k: options.pop(k) for k in ("image_ids", "max_points", "num_images") if k in options}
    settings: dict[str, Any] = {
        "root": root, "splits": {split: {"json": "train.json", "images": "images", **chosen}}, "test": None, "absent": 0, "seed": 0,
        "eval_seed": 1, "replace_underscores": False, "on_error": on_error, **options,
    }
    return CocoPoints(**settings)


def write_small_points(kind: str, root: Path) -> list[str]:
    """A data set for ``data=<kind>`` (``points``, ``fsc147`` or ``coco_points``); returns the overrides that train on it."""
    root.mkdir(parents=True, exist_ok=True)
    if kind == "points":
        write_points(root, points_row(), points_row([[5, 5]], image="b.png"), points_row([], "pear"))
        write_points(root, points_row([[7, 8]], image="c.png"), name="val.jsonl")
        return ["data=points", f"data.root={root}", "data.source.coordinates=pixel"]
    if kind == "fsc147":
        write_fsc(root)
        return ["data=fsc147", f"data.root={root}"]
    write_coco_points(root)
    write_coco_points(root, name="val.json")
    splits = [f"data.source.splits.{n}.{k}={v}" for n in ("train", "val") for k, v in (("json", f"{n}.json"), ("images", "images"))]
    return ["data=coco_points", f"data.root={root}", *splits]
