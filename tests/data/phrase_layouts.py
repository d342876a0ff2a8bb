"""Small data sets of phrases in the schemas they are published in."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coordvlm.data import rows
from coordvlm.data.phrase_file import PhraseFile
from coordvlm.data.refcoco import RefCoco
from tests.data.layouts import picture

#: Image id -> (width, height); boxes of ``instances`` lie inside.
IMAGES = {581857: (60, 40), 581858: (40, 30), 581859: (40, 30), 581860: (40, 30), 581861: (40, 30)}
SPLITS = {581857: "train", 581858: "train", 581859: "val", 581860: "testA", 581861: "testB"}


def file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def instances() -> dict[str, Any]:
    """Two boxes per image; annotation ids are 10 x position and 10 x position + 1."""
    annotations = [
        {"id": 10 * at + n, "image_id": i, "category_id": 18, "bbox": [2.5 + n, 3.0, 10.25, 12.0], "area": 99.5, "iscrowd": 0,
         "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]}
        for at, i in enumerate(IMAGES) for n in (0, 1)
    ]
    images = [
        {"license": 1, "file_name": file_name(i), "coco_url": f"http://x/{i}", "height": h, "width": w, "id": i}
        for i, (w, h) in IMAGES.items()
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}


def sentence(sent_id: int, text: str) -> dict[str, Any]:
    return {"tokens": text.lower().split(), "raw": text, "sent_id": sent_id, "sent": text.lower().rstrip(".")}


def refs() -> list[dict[str, Any]]:
    """A referring expression per box, with two sentences each; ``file_name`` carries the annotation, as UNC's does."""
    return [
        {"sent_ids": [4 * at + 2 * n, 4 * at + 2 * n + 1], "file_name": f"COCO_train2014_{i:012d}_{10 * at + n}.jpg",
         "ann_id": 10 * at + n, "ref_id": 100 + 2 * at + n, "image_id": i, "split": SPLITS[i], "category_id": 18,
         "sentences": [sentence(4 * at + 2 * n + k, f"The Dog Number {at} {n} {k}.") for k in (0, 1)]}
        for at, i in enumerate(IMAGES) for n in (0, 1)
    ]


def write_unc(
    root: Path, *, folder: str = "refcoco", by: str = "unc", given: object = None, boxes: object = None, pickled: bytes | None = None
) -> Path:
    """The two files and the images; returns the pickle."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i, size in IMAGES.items():
        picture(root / "train2014" / file_name(i), size)
    (root / folder / "instances.json").write_text(json.dumps(instances() if boxes is None else boxes))
    path = root / folder / f"refs({by}).p"
    path.write_bytes(pickle.dumps(refs() if given is None else given, protocol=2) if pickled is None else pickled)
    return path


def load_unc(root: Path, **changes: Any) -> RefCoco:
    options: dict[str, Any] = {
        "folder": "refcoco", "split_by": "unc", "images": "train2014", "text": "sent",
        "splits": {"train": {}, "val": {}, "testA": {}, "testB": {}}, "test": "testA", "allow_placeholder": False, "on_error": "raise",
    }
    return RefCoco(root=root, **{**options, **changes})


def python2_pickle(value: object) -> bytes:
    """Protocol 2 as Python 2 wrote it: ``str`` is bytes (here latin-1), not unicode."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("latin-1")
        return b"T" + struct.pack("<i", len(data)) + data
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    assert isinstance(value, Sequence)
    return b"](" + b"".join(map(_python2, value)) + b"e"


def row(phrase: object = "left dog", box: object = (2, 3, 10, 12), **more: object) -> dict[str, object]:
    """One row of a phrase file on a 40 x 30 image; xywh in pixels."""
    return {"phrase": phrase, "file_name": "a.png", "bbox": box, **more}


def write_rows(root: Path, *rows: object, name: str = "ann.jsonl") -> Path:
    """The file (text as it is, the rest as JSON) and 40 x 30 images ``a.png``, ``b.png``, ``c.png``."""
    for file in ("a.png", "b.png", "c.png"):
        if not (root / file).exists():
            picture(root / file)
    path = root / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in rows), encoding="utf-8")
    return path


def load_rows(root: Path, *, split: str = "train", file: str = "ann.jsonl", **changes: Any) -> PhraseFile:
    """``ann.jsonl`` of a folder as one split; ``rows``, ``num_phrases`` ... are the split's."""
    choice = {k: changes.pop(k) for k in ("rows", "image_ids", "num_images", "num_phrases") if k in changes}
    options: dict[str, Any] = {
        "splits": {split: {"file": file, "images": ".", **choice}}, "test": None, "boxes": "pixel", "box_format": "xywh",
        "text_field": None, "image_field": None, "box_field": None, "negatives": "refuse", "allow_placeholder": False, "on_error": "raise",
    }
    return PhraseFile(root=root, **{**options, **changes})


def write_small_phrases(kind: str, root: Path) -> list[str]:
    """A data set for ``data=<kind>`` (``phrase_file``, ``phrase_mix`` or one of UNC's); returns the overrides that train on it."""
    root.mkdir(parents=True, exist_ok=True)
    if kind == "phrase_file":
        write_rows(root, row(), row("right dog", [20, 5, 10, 10]), name="train.jsonl")
        write_rows(root, row("cat", file_name="b.png"), name="val.jsonl")
        return ["data=phrase_file", f"data.root={root}", "data.source.boxes=pixel", "data.source.box_format=xywh"]
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        given = [{**ref, "split": "test" if by == "umd" and ref["split"].startswith("test") else ref["split"]} for ref in refs()]
        write_unc(root, folder=name, by=by, given=given)
    return [f"data={kind}", f"data.root={root}"]


def png(value: int) -> bytes:
    """40 x 30 px of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def embed(patch: pytest.MonkeyPatch, root: Path, **splits: Sequence[tuple[str | None, int]]) -> PhraseFile:
    """``<split>.parquet`` with the image (its path, a ``png``) in each row, whether or not pyarrow is installed."""
    files = {
        name: [row(f"{name} thing {n}", [2, 3, 9, 9], image={"bytes": png(value), "path": path}) for n, (path, value) in enumerate(images)]
        for name, images in splits.items()
    }
    patch.setattr(rows, "_parquet", lambda path: ((n, r, ("", None)) for n, r in enumerate(files[path.stem])))
    for name in files:
        (root / f"{name}.parquet").write_bytes(b"")
    return load_rows(root, splits={name: {"file": f"{name}.parquet", "images": name} for name in files})
