"""A small data set, or any COCO file, written in the other formats."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

from coordvlm.data.jsonl import Jsonl
from coordvlm.data.voc import Voc
from coordvlm.data.yolo import Yolo

COMMON: dict[str, Any] = {"seed": 0, "class_list": "none", "num_absent": 0}
JSONL: dict[str, Any] = {**COMMON, "boxes": "pixel", "box_format": "xyxy", "classes": None}
YOLO: dict[str, Any] = {**COMMON, "data_yaml": "data.yaml", "path": None}
VOC: dict[str, Any] = {
    **COMMON, "image_sets": "ImageSets/Main", "annotations": "Annotations", "images": "JPEGImages", "one_based": True,
    "difficult": "ignore", "classes": None,
}
CHOICE = ("image_ids", "max_objects_filter", "num_images")


def picture(file: Path, size: tuple[int, int] = (40, 30)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (60, 90, 30)).save(file)


def line(image: str = "a.png", *objects: tuple[str, Sequence[float]], **keys: object) -> dict[str, object]:
    return {"image": image, "objects": [{"desc": desc, "bbox": list(bbox)} for desc, bbox in objects], **keys}


def write_jsonl(root: Path, *lines: object, name: str = "ann.jsonl") -> Path:
    """The file (text as it is, the rest as JSON) and 40 x 30 images ``a.png``, ``b.png``, ``c.png``."""
    for file in ("a.png", "b.png", "c.png"):
        if not (root / file).exists():
            picture(root / file)
    path = root / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def _splits(kind: Mapping[str, object], split: str, options: dict[str, Any]) -> dict[str, Any]:
    chosen = {k: options.pop(k) for k in CHOICE if k in options}
    return {"train": None, "val": None, "test": None, split: {**kind, **chosen}}


def load_jsonl(root: Path, *, split: str = "train", on_error: str = "raise", **options: Any) -> Jsonl:
    """``ann.jsonl`` of a folder as one split."""
    files = _splits({"jsonl": "ann.jsonl", "images": "."}, split, options)
    return Jsonl(root=root, on_error=on_error, **files, **{**JSONL, **options})


def write_yolo(root: Path, labels: Mapping[str, str | None], *, split: str = "train", yaml: str | None = None) -> None:
    """``data.yaml`` with dog and cat, ``images/<split>/<name>.png`` and labels (None: no file)."""
    text = yaml if yaml is not None else f"path: .\n{split}: images/{split}\nnames:\n  0: dog\n  1: cat\n"
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(text)
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    for name, label in labels.items():
        picture(root / "images" / split / f"{name}.png")
        if label is not None:
            (root / "labels" / split / f"{name}.txt").write_text(label)


def load_yolo(root: Path, *, split: str = "train", on_error: str = "raise", **options: Any) -> Yolo:
    return Yolo(root=root, on_error=on_error, **_splits({"split": split}, split, options), **{**YOLO, **options})


def voc_object(name: str, box: Sequence[object], more: str = "<difficult>0</difficult>") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>\n<name>{escape(name)}</name>{more}<bndbox>{corners}</bndbox></object>\n"


def voc_xml(*objects: str, size: tuple[object, object] | None = (40, 30)) -> str:
    written = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
    return "<annotation>\n" + written + "".join(objects) + "</annotation>\n"


def write_voc(root: Path, xml: Mapping[str, str | None], *, split: str = "train") -> None:
    """A list of all names, their annotations (None: no file) and 40 x 30 JPEG images."""
    for folder in ("ImageSets/Main", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in xml))
    for name, text in xml.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        if text is not None:
            (root / "Annotations" / f"{name}.xml").write_text(text)


def load_voc(root: Path, *, split: str = "train", on_error: str = "raise", **options: Any) -> Voc:
    return Voc(root=root, on_error=on_error, **_splits({"split": split}, split, options), **{**VOC, **options})


# ----------------------------------------------------------------- a COCO file in other words
def boxes_of(data: Mapping[str, Any], image_id: int) -> list[tuple[int, str, tuple[float, float, float, float], dict[str, Any]]]:
    """(class number from 0, name, xyxy, annotation) of an image."""
    names = {c["id"]: (i, c["name"]) for i, c in enumerate(sorted(data["categories"], key=lambda c: c["id"]))}
    found = []
    for a in data["annotations"]:
        if a["image_id"] == image_id:
            x, y, w, h = a["bbox"]
            found.append((*names[a["category_id"]], (x, y, x + w, y + h), a))
    return found


def coco_to_jsonl(data: Mapping[str, Any], file: Path, *, sizes: bool, boxes: str, box_format: str) -> None:
    """``sizes``: write width and height."""
    scale = {"pixel": None, "norm": 1.0, "norm999": 999.0, "norm1000": 1000.0}[boxes]
    lines = []
    for image in data["images"]:
        objects = []
        for _, desc, (x1, y1, x2, y2), a in boxes_of(data, image["id"]):
            numbers = {"xyxy": [x1, y1, x2, y2], "xywh": a["bbox"], "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]}[box_format]
            if scale is not None:
                numbers = [v * scale / image[side] for v, side in zip(numbers, ("width", "height") * 2, strict=True)]
            extra = {"area": a["area"]} | ({"iscrowd": 1} if a["iscrowd"] else {})
            objects.append({"desc": desc, "bbox": numbers, **extra})
        size = {"width": image["width"], "height": image["height"]} if sizes else {}
        lines.append(json.dumps({"image": image["file_name"], "objects": objects, "id": image["id"], **size}))
    file.write_text("\n".join(lines) + "\n")


def coco_to_yolo(data: Mapping[str, Any], images: Path, root: Path, split: str) -> None:
    """Links to the images and labels; the caller writes data.yaml."""
    (root / "labels" / split).mkdir(parents=True)
    (root / "images" / split).mkdir(parents=True)
    for image in data["images"]:
        os.link(images / image["file_name"], root / "images" / split / image["file_name"])
        rows = []
        for number, _, (x1, y1, x2, y2), _ in boxes_of(data, image["id"]):
            w, h = image["width"], image["height"]
            rows.append(f"{number} {(x1 + x2) / 2 / w:.8f} {(y1 + y2) / 2 / h:.8f} {(x2 - x1) / w:.8f} {(y2 - y1) / h:.8f}\n")
        (root / "labels" / split / Path(image["file_name"]).with_suffix(".txt").name).write_text("".join(rows))


def coco_to_voc(data: Mapping[str, Any], images: Path, root: Path, split: str) -> None:
    """One-based, inclusive pixels."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    stems = [Path(image["file_name"]).stem for image in data["images"]]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    for stem, image in zip(stems, data["images"], strict=True):
        os.link(images / image["file_name"], root / "JPEGImages" / f"{stem}.jpg")
        objects = [voc_object(desc, (x1 + 1, y1 + 1, x2, y2)) for _, desc, (x1, y1, x2, y2), _ in boxes_of(data, image["id"])]
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(*objects, size=(image["width"], image["height"])))


# ----------------------------------------------------------------- a small data set for tests of the configuration
def write_small(kind: str, root: Path) -> list[str]:
    """Two images in ``train``, one in ``val``; returns the overrides that train on them. ``kind``: jsonl, yolo or voc."""
    root.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        write_jsonl(root, line("a.png", ("dog", [1, 2, 20, 25]), ("cat", [20, 5, 40, 15])), line("b.png"), name="train.jsonl")
        write_jsonl(root, line("c.png", ("dog", [1, 2, 20, 25])), name="val.jsonl")
        declared = ["data.source.boxes=pixel", "data.source.box_format=xyxy"]
    elif kind == "yolo":
        yaml = "train: images/train\nval: images/val\nnames: [dog, cat]\n"
        write_yolo(root, {"a": "0 0.5 0.5 0.25 0.2\n1 0.25 0.5 0.5 1.0\n", "b": None}, yaml=yaml)
        write_yolo(root, {"c": "0 0.5 0.5 0.25 0.2\n"}, split="val", yaml=yaml)
        declared = []
    else:
        write_voc(root, {"a": voc_xml(voc_object("dog", (1, 1, 40, 30)), voc_object("cat", (5, 6, 9, 9))), "b": voc_xml()})
        write_voc(root, {"c": voc_xml(voc_object("dog", (1, 1, 40, 30)))}, split="val")
        declared = ["data.source.one_based=true"]
    return [f"data={kind}", f"data.root={root}", *declared]
