"""``python -m coordvlm.audit`` on data that is right and on data that is not."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm import audit as command
from coordvlm.utils.cli import run_command
from tests.data.layouts import write_small
from tests.data.phrase_layouts import row, write_small_phrases
from tests.data_root import peer_data
from tests.e2e.commands import Ran
from tests.reports.html_check import read

FEW = ("audit.num_samples=40", "audit.num_images=40")


def audit(outputs: Path, *argv: str, columns: int = 160) -> Ran:
    """``python -m coordvlm.audit argv`` in a terminal of some width."""
    out, err = io.StringIO(), io.StringIO()
    before = set((outputs / "audit").glob("*"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("COORDVLM_OUTPUTS", str(outputs))
        patch.setenv("COLUMNS", str(columns))
        status = run_command("audit", command.main, check=command.check, about=command.__doc__, argv=list(argv))
    new = sorted(set((outputs / "audit").glob("*")) - before)
    return Ran(status, out.getvalue(), err.getvalue(), new[-1] if new else None)


def findings(ran: Ran, level: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """(check, split) -> finding of audit.json; of one level, or of all."""
    return {(f["check"], f["split"]): f for f in ran.json("audit.json")["findings"] if level in (None, f["level"])}


def failed(ran: Ran) -> set[tuple[str, str]]:
    return set(findings(ran, "fail"))


def pictures(folder: Path, *names: str, seed: int = 0) -> None:
    """40 x 30 images that differ from each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 30)).save(folder / name)


def phrase_file(root: Path, *, val: str = "b.png", **texts: Mapping[int, str]) -> tuple[str, ...]:
    """30 training phrases on ``a.png`` and one on another image; the overrides that read them."""
    pictures(root, "a.png", "b.png", "c.png")
    words = {i: f"dog number {i}" for i in range(30)} | dict(texts.get("train", {}))
    (root / "train.jsonl").write_text("".join(json.dumps(row(t, (i, 3, 8, 9))) + "\n" for i, t in words.items()))
    (root / "val.jsonl").write_text(json.dumps(row("the cat", file_name=val)) + "\n")
    return "data=phrase_file", f"data.root={root}", "data.source.boxes=pixel", "data.source.box_format=xywh"


def coco_file(root: Path, name: str, boxes: Mapping[str, list[list[float]]]) -> tuple[str, ...]:
    """A COCO file of 40 x 30 images, file name -> boxes; the overrides that read it."""
    pictures(root / "images", *boxes)
    images = [{"id": i, "file_name": file, "width": 40, "height": 30} for i, file in enumerate(boxes, start=1)]
    annotations = [
        {"id": 100 * i + n, "image_id": i, "category_id": 1, "bbox": box, "area": 1.0, "iscrowd": 0}
        for i, found in enumerate(boxes.values(), start=1) for n, box in enumerate(found)
    ]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (root / f"{name}.json").write_text(json.dumps(data))
    return f"data.source.{name}.json={name}.json", f"data.source.{name}.images=images"


@pytest.mark.parametrize("data", ["shapes", "phrases"])
def test_what_the_program_makes_passes(tmp_path: Path, data: str) -> None:
    ran = audit(tmp_path, f"data={data}", *FEW)
    assert ran.status == 0, ran.err
    assert ran.json("audit.json")["level"] in ("ok", "note")
    assert "40 samples" not in ran.out
    assert ran.record["status"] == "finished"
    assert ran.record["audit"]["counts"]["fail"] == 0


def bccd(*folder: str) -> list[str]:
    root = peer_data() / "bccd"
    split = [x for s in ("train", "val") for x in (f"data.source.{s}.json={'/'.join((*folder, s))}.json", f"data.source.{s}.images=images")]
    return ["data=coco", f"data.root={root}", *split]


def test_the_anomalies_of_a_published_data_set_are_found(tmp_path: Path) -> None:
    """BCCD's list was made by eye and by hand. Two of its three kinds a program can find; of the third it can name the candidates.

    What no program could: that the cells of an image without red cells are there to be seen ("checked by eye on a montage"), and
    that there is an unannotated white cell at the left edge of BloodImage_00134.
    """
    lines = [line for line in (peer_data() / "bccd" / "anomalies.txt").read_text().splitlines() if line.startswith("{")]
    listed = [json.loads(line) for line in lines]
    ran = audit(tmp_path, *bccd(), "audit.num_examples=50", "audit.num_images=0")
    assert ran.status == 1
    assert failed(ran) == {("zero_area", "train")}  # training is refused; evaluation keeps the box and says so
    seen = findings(ran)
    assert seen["zero_area", "val"]["level"] == "warn"
    checks = {"zero_area": "zero_area", "near_duplicate_iou_gt_0.85": "near_duplicate", "no_RBC_annotated_but_many_visible": "without_RBC"}
    for kind, check in checks.items():
        for split in ("train", "val"):
            files = sorted(a["file"] for a in listed if a["kind"] == kind and a["split"] == split)
            places = [e["where"] for e in seen[check, split]["examples"]]
            assert len(places) == len(files) == seen[check, split]["value"], (kind, split)
            assert all(any(file in place for place in places) for file in files), (kind, split)
    assert {a["kind"] for a in listed} == set(checks)
    near = {round(float(e["value"].split()[1]), 3) for s in ("train", "val") for e in seen["near_duplicate", s]["examples"]}
    assert near == {a["iou"] for a in listed if "iou" in a}


def test_the_cleaned_data_set_passes(tmp_path: Path) -> None:
    ran = audit(tmp_path, *bccd("clean"), "audit.full=true")
    assert ran.status == 0
    warned = findings(ran, "warn")
    assert {check for check, _ in warned} == {"one_based", "looks_alike"}  # VOC's pixels, and one field of view photographed twice
    assert "BloodImage_00037.jpg" in warned["looks_alike", "train/val"]["examples"][0]["where"]
    assert "BloodImage_00038.jpg" in warned["looks_alike", "train/val"]["examples"][0]["value"]


def test_skipping_what_is_broken_is_no_failure(tmp_path: Path) -> None:
    ran = audit(tmp_path, *bccd(), "data.on_error=skip", "audit.num_images=0")
    assert ran.status == 0
    assert findings(ran)["zero_area", "train"]["level"] == "warn"


def test_real_phrases_pass(tmp_path: Path) -> None:
    root = peer_data() / "refcoco_sample"
    given = ("data=phrase_file", f"data.root={root}", "data.source.boxes=pixel", "data.source.box_format=xywh")
    ran = audit(tmp_path, *given, "data.source.splits.train={file: with_images.jsonl, images: images}", "data.source.splits.val=null")
    assert ran.status == 0, ran.out
    assert findings(ran)["unique", "train"]["details"]["count"] == 46
    assert ran.json("audit.json")["looked_at"] == {"train": "46 phrases, 3 images, 8 boxes"}


def test_phrases_of_ones_own_pass(tmp_path: Path) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data"))
    assert (ran.status, failed(ran)) == (0, set())


@pytest.mark.parametrize("allowed", ["", "data.source.allow_placeholder=true"])
def test_placeholder_phrases_fail_whether_they_are_allowed_or_not(tmp_path: Path, allowed: str) -> None:
    question = "Please carefully observe the area circled in the image and come up with a caption for the area."
    given = phrase_file(tmp_path / "data", train=dict.fromkeys(range(30), question))
    ran = audit(tmp_path, *given, *([allowed] if allowed else []))
    assert ran.status == 1
    assert {("unique", "train"), ("top", "train"), ("placeholder", "train")} <= failed(ran)
    assert (("refused", "all") in failed(ran)) is not bool(allowed)
    assert question[:40] in ran.out


def test_one_placeholder_among_real_phrases_is_found(tmp_path: Path) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data", train={3: "caption"}))
    place = findings(ran)["placeholder", "train"]
    assert (ran.status, place["value"], place["examples"][0]["value"]) == (1, 1, "caption")
    assert place["examples"][0]["where"].endswith("train.jsonl:4 (a.png, 40 x 30 px)")


def test_a_leak_between_splits_fails(tmp_path: Path) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data", val="a.png"))
    assert (ran.status, failed(ran)) == (1, {("same_file", "train/val"), ("same_content", "train/val")})
    assert "same file in train/val: 1 (100 %)" in ran.out


def test_a_copied_image_of_a_coco_file_fails(tmp_path: Path) -> None:
    root = tmp_path / "data"
    given = [*coco_file(root, "train", {"a.png": [[1, 1, 9, 9]]}), *coco_file(root, "val", {"copy.png": [[1, 1, 9, 9]]})]
    (root / "images" / "copy.png").write_bytes((root / "images" / "a.png").read_bytes())
    ran = audit(tmp_path, "data=coco", f"data.root={root}", *given)
    assert (ran.status, failed(ran)) == (1, {("same_content", "train/val")})


def test_broken_boxes_of_a_split_that_cannot_be_evaluated_are_still_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    broken: dict[str, list[list[float]]] = {"b.png": [[1, 1, float("inf"), 9], [2, 2, 5, 5]]}
    given = [*coco_file(root, "train", {"a.png": [[1, 1, 9, 9]]}), *coco_file(root, "val", broken)]
    ran = audit(tmp_path, "data=coco", f"data.root={root}", *given)
    assert ran.status == 1
    assert failed(ran) == {("refused", "all"), ("not_finite", "val")}
    assert findings(ran)["not_finite", "val"]["examples"][0]["where"].endswith("annotation id 100 (image id 1, b.png, 40 x 30 px)")
    assert findings(ran)["zero_area", "train"]["value"] == 0


def test_boxes_in_another_convention_are_refused_with_the_reason(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, "a.png", "b.png")
    boxes = [[25, 20, 8, 9], [30, 20, 5, 6], [28, 15, 4, 4], [20, 21, 3, 7], [22, 20, 10, 3]]
    for name, file in (("train", "a.png"), ("val", "b.png")):
        (root / f"{name}.jsonl").write_text(json.dumps({"image": file, "objects": [{"desc": "dog", "bbox": b} for b in boxes]}) + "\n")
    ran = audit(tmp_path, "data=jsonl", f"data.root={root}", "data.source.boxes=pixel", "data.source.box_format=xyxy")
    assert (ran.status, failed(ran)) == (1, {("refused", "all")})
    assert "5 of 5 boxes are inverted or out of frame as declared" in ran.out
    read(ran.run / "audit.html")


@pytest.mark.parametrize("kind", ["jsonl", "yolo", "voc"])
def test_every_format_of_boxes_can_be_audited(tmp_path: Path, kind: str) -> None:
    ran = audit(tmp_path, *write_small(kind, tmp_path / "data"))
    assert failed(ran) == {("same_content", "train/val")}  # all of these pictures are one colour
    assert (("no_label_file", "train") in findings(ran, "note")) is (kind == "yolo")


def test_missing_data_is_a_finding(tmp_path: Path) -> None:
    ran = audit(tmp_path, "data=coco", f"data.root={tmp_path / 'nowhere'}")
    assert (ran.status, failed(ran)) == (1, {("refused", "all")})
    assert ran.json("audit.json")["looked_at"] == {}
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(("argv", "message"), [
    (("data=cocoo",), "no option 'cocoo' in group data"),
    (("data=jsonl",), "no value for data.source.box_format, data.source.boxes"),
    (("audit.num_image=3",), "no such key audit.num_image; nearest: audit.num_images"),
    (("audit.num_images=-1",), "audit.num_images must be an integer of at least 0, got -1"),
    (("data=dots",), "audit looks at boxes and phrases; points to count (task=count) are checked when they are read"),
    (("data=grid_symbols",), "audit looks at boxes and phrases in images; clips (task=video) are checked when they are read"),
    (("audit.full=maybe",), "audit.full must be true or false, got 'maybe'"),
    (("audit.near_duplicate_iou=0",), "audit.near_duplicate_iou must be above 0 and at most 1, got 0"),
])
def test_a_command_that_cannot_be_meant_is_refused(tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    ran = audit(tmp_path, *argv)
    assert ran.status == 2
    assert message in ran.err
    assert ran.folder is None


def test_a_source_that_cannot_be_meant_is_refused_too(tmp_path: Path) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data"), "data.source.negatives=perhaps")
    assert ran.status == 2
    assert "data.source.negatives must be one of" in ran.err


def test_the_parts_of_a_mix_are_looked_at_one_by_one(tmp_path: Path) -> None:
    ran = audit(tmp_path, *write_small_phrases("phrase_mix", tmp_path / "data"))
    looked_at = ran.json("audit.json")["looked_at"]
    assert list(looked_at) == [
        "refcoco_train", "refcoco+_train", "refcocog_train", "refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco+_val",
        "refcoco+_testA", "refcoco+_testB", "refcocog_val", "refcocog_test",
    ]
    pairs = {split for check, split in findings(ran) if check == "same_file"}
    assert "refcoco_train/refcocog_test" in pairs
    assert not {p for p in pairs if p.startswith("refcoco_val/refcoco+")}  # what two data sets score may be the same images
    assert {check for check, split in failed(ran) if "/" in split} == set()  # the mix has left those images out already


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_table_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data", val="a.png", train={1: "\x1b[31mred <|im_end|>"}), columns=columns)
    lines = ran.out[ran.out.index("Audit of") :].split("written: ")[0].splitlines()
    assert max(map(len, lines)) <= columns
    assert "\x1b" not in ran.out
    fails = [line for line in lines if line.startswith(" fail")]
    assert len(fails) == 2
    assert "an image must not be in two splits" in " ".join(" ".join(lines).split())


def test_the_page_has_all_places(tmp_path: Path) -> None:
    ran = audit(tmp_path, *phrase_file(tmp_path / "data", train={i: f"<b>{i}<|im_end|>" for i in range(6)}))
    page = "".join(read(ran.run / "audit.html").text)
    assert page.count("<|im_end|>") >= 6
    assert "Words per phrase: train" in page
    assert f"report: {ran.run / 'audit.html'}" in ran.out
