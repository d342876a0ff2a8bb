"""One data set in four formats is one data set: equal samples, equal truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.contracts import GroundTruth
from coordvlm.data.coco import Coco
from coordvlm.data.detection import BoxSource
from coordvlm.data.jsonl import Jsonl
from coordvlm.data.voc import Voc
from coordvlm.data.yolo import Yolo
from tests.data.layouts import COMMON, JSONL, VOC, YOLO, coco_to_jsonl, coco_to_voc, coco_to_yolo
from tests.data_root import peer_data

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def bccd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of BCCD's images beside the same annotations in every format."""
    source, root = peer_data() / "bccd", tmp_path_factory.mktemp("bccd")
    shutil.copytree(source / "images", root / "images")
    data = {name: json.loads((source / f"{name}.json").read_text()) for name in SPLITS}
    for name in SPLITS:
        (root / f"{name}.json").write_text(json.dumps(data[name]))
        coco_to_yolo(data[name], root / "images", root / "yolo", name)
        coco_to_voc(data[name], root / "images", root / "voc", name)
    names = [c["name"] for c in sorted(data["train"]["categories"], key=lambda c: c["id"])]
    (root / "yolo" / "data.yaml").write_text(f"train: ../images/train\nval: images/val\nnc: {len(names)}\nnames: {names}\n")
    return root, data


def coco(root: Path) -> Coco:
    files = {n: {"json": f"{n}.json", "images": "images"} for n in SPLITS}
    return Coco(root=root, **files, test=None, **COMMON, on_error="skip", replace_underscores=False)


def things(source: BoxSource, split: str) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """File name -> descriptions and boxes of the targets, in order."""
    found = source.split(split)
    samples = [found.sample(i, 0) for i in range(len(found))]
    return {Path(str(s.image)).name: [(o.desc, o.box_xyxy_px or ()) for o in s.objects] for s in samples}


def assert_equal(source: BoxSource, reference: BoxSource, split: str, atol: float, *, same_ids: bool) -> None:
    mine, theirs = things(source, split), things(reference, split)
    assert mine.keys() == theirs.keys()
    for name, objects in theirs.items():
        assert [desc for desc, _ in mine[name]] == [desc for desc, _ in objects]
        np.testing.assert_allclose([b for _, b in mine[name]], [b for _, b in objects], rtol=0, atol=atol)
    found, truth = source.truth(split), reference.truth(split)
    assert set(found.category_names) == set(truth.category_names)
    assert len(found.ann_ids) == len(truth.ann_ids)
    assert found.ann_iscrowd.sum() == truth.ann_iscrowd.sum()

    def rows(t: GroundTruth) -> np.ndarray:
        label = [sorted(t.category_names).index(t.category_names[t.category_ids.tolist().index(c)]) for c in t.ann_category_id.tolist()]
        known = [t.ann_image_id, t.ann_area] if same_ids else []
        values = np.column_stack([np.round(t.ann_xyxy_px, 3), label, *known])
        return values[np.lexsort(values.T)]

    np.testing.assert_allclose(rows(found), rows(truth), rtol=1e-9, atol=max(atol, 1e-3))
    if same_ids:
        assert found.image_ids.tolist() == truth.image_ids.tolist()
    keys = ("zero_area", "crowd", "clipped")
    assert {k: source.dropped(split).get(k, 0) for k in keys} == {k: reference.dropped(split).get(k, 0) for k in keys}


@pytest.mark.parametrize(
    ("boxes", "box_format", "sizes"),
    [("pixel", "xyxy", True), ("pixel", "xywh", False), ("norm", "cxcywh", True), ("norm1000", "xyxy", False), ("norm999", "xywh", True)],
)
def test_jsonl_is_coco(bccd: tuple[Path, dict[str, Any]], boxes: str, box_format: str, sizes: bool) -> None:
    root, data = bccd
    for name in SPLITS:
        coco_to_jsonl(data[name], root / f"{name}.jsonl", sizes=sizes, boxes=boxes, box_format=box_format)
    files = {n: {"jsonl": f"{n}.jsonl", "images": "images"} for n in SPLITS}
    source = Jsonl(root=root, **files, test=None, on_error="skip", **{**JSONL, "boxes": boxes, "box_format": box_format})
    for name in SPLITS:
        assert_equal(source, coco(root), name, 1e-9, same_ids=True)


def test_yolo_is_coco_up_to_its_decimals(bccd: tuple[Path, dict[str, Any]]) -> None:
    root, _ = bccd
    source = Yolo(root=root / "yolo", train={"split": "train"}, val={"split": "val"}, test={"split": "test"}, on_error="skip", **YOLO)
    assert source.class_names == coco(root).class_names
    for name in SPLITS:
        assert_equal(source, coco(root), name, 640 * 1e-8, same_ids=False)


def test_voc_is_coco(bccd: tuple[Path, dict[str, Any]]) -> None:
    root, _ = bccd
    source = Voc(root=root / "voc", train={"split": "train"}, val={"split": "val"}, test=None, on_error="skip", **VOC)
    assert source.class_names == ("Platelets", "RBC", "WBC")
    for name in SPLITS:
        assert_equal(source, coco(root), name, 1e-9, same_ids=False)


def test_tinycoco_with_crowds_as_jsonl(tmp_path: Path) -> None:
    root = peer_data() / "tinycoco"
    data = json.loads((root / "train2017.json").read_text())
    coco_to_jsonl(data, tmp_path / "train.jsonl", sizes=True, boxes="pixel", box_format="xywh")
    train = {"json": "train2017.json", "images": "images/train2017"}
    reference = Coco(root=root, train=train, val=None, test=None, **COMMON, on_error="raise", replace_underscores=False)
    files = {"jsonl": str(tmp_path / "train.jsonl"), "images": "images/train2017"}
    options = {**JSONL, "box_format": "xywh", "classes": list(reference.class_names)}
    source = Jsonl(root=root, train=files, val=None, test=None, on_error="raise", **options)
    assert source.class_names == reference.class_names
    assert_equal(source, reference, "train", 1e-9, same_ids=True)
