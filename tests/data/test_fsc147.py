from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from coordvlm.data.fsc147 import read_classes, read_division
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.layouts import picture
from tests.data.point_layouts import FSC_FILES, fsc_entry, load_fsc, write_fsc
from tests.data_root import peer_data

NAMES = ("2.jpg", "3.jpg", "5.jpg", "7.jpg")


def entries(**changes: object) -> dict[str, object]:
    """The four annotations with some replaced (``f7=...`` is 7.jpg's)."""
    return {n: fsc_entry([[3.5, 4.25], [20, 10]]) for n in NAMES} | {f"{k[1:]}.jpg": v for k, v in changes.items()}


def test_the_published_layout(tmp_path: Path) -> None:
    write_fsc(tmp_path)
    source = load_fsc(tmp_path)
    split = source.split("train")
    assert split.ids.tolist() == [7, 2]  # the numbers of the files, in the split's order
    sample = split.sample(0, 0)
    assert (sample.category, sample.image) == ("peppers", tmp_path / "images_384_VarV2" / "7.jpg")
    assert (sample.width, sample.height) == (40, 30)  # H and W of the annotation are those of the original image
    assert [o.point_px for o in sample.objects] == [(3.5, 4.25), (20.0, 10.0)]
    assert sample.meta == {"file_name": "7.jpg", "where": f"{tmp_path}/{FSC_FILES['annotations']}: 7.jpg", "split": "train"}
    assert source.truth("train").points_of(7).tolist() == [[3.5, 4.25], [20, 10]]
    assert source.truth("train").counted == ("sea shells", "peppers")
    assert source.class_names == ("birds", "go game", "peppers", "sea shells")
    assert source.split("test").sample(0, 0).category == "go game"
    assert source.dropped("train") == {}
    assert source.check_images("train", max_pixels=10**6) == []


@pytest.mark.parametrize("original", [(100, 75), (1300, 975), (469, 352), (41, 31)])
def test_the_size_is_that_of_the_resized_image(tmp_path: Path, original: tuple[int, int]) -> None:
    write_fsc(tmp_path, entries(f7=fsc_entry([[39, 29]], original=original)))
    assert load_fsc(tmp_path).split("train").num_objects().tolist() == [1, 2]


def test_original_images_do_not_fit_their_points(tmp_path: Path) -> None:
    """The published pitfall: points are made on the resized image, and a folder of the originals has the size that H and W say."""
    write_fsc(tmp_path)
    picture(tmp_path / FSC_FILES["images"] / "7.jpg", (100, 75))
    with pytest.raises(DataError, match=r"7\.jpg.*the size that is annotated, 40 x 30 px.*scale_to_image=true.*got '100 x 75 px'"):
        load_fsc(tmp_path)
    assert load_fsc(tmp_path, on_error="skip").dropped("train") == {"size_unlike_image": 1}
    scaled = load_fsc(tmp_path, scale_to_image=True)
    sample = scaled.split("train").sample(0, 0)
    assert (sample.width, sample.height) == (100, 75)
    assert [o.point_px for o in sample.objects] == [(8.75, 10.625), (50.0, 25.0)]  # 2.5 times
    assert scaled.truth("train").points_of(7).tolist() == [[8.75, 10.625], [50, 25]]
    assert scaled.truth("train").points_of(2).tolist() == [[3.5, 4.25], [20, 10]]
    assert scaled.dropped("train") == {"scaled_images": 1}
    assert "train: points of 1 images were scaled to the size of the image (data.source.scale_to_image)" in scaled.notes


def test_another_picture_is_refused_however_it_is_asked(tmp_path: Path) -> None:
    write_fsc(tmp_path)
    picture(tmp_path / FSC_FILES["images"] / "3.jpg", (75, 100))
    for options in ({}, {"scale_to_image": True}, {"on_error": "skip"}):
        with pytest.raises(DataError, match=r"3\.jpg.*its shape is another one"):
            load_fsc(tmp_path, **options)


def without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in keys}


def test_without_ratios_the_image_is_the_annotated_one_or_384_px_high(tmp_path: Path) -> None:
    bare = without(fsc_entry([[3, 4]], original=(1300, 1065)), "ratio_h", "ratio_w")
    write_fsc(tmp_path, entries(f7=bare))
    for size in ((1300, 1065), (469, 384)):
        picture(tmp_path / FSC_FILES["images"] / "7.jpg", size)
        assert load_fsc(tmp_path).split("train").sample(0, 0).width == size[0]
    picture(tmp_path / FSC_FILES["images"] / "7.jpg", (650, 533))
    for scale in (False, True):
        with pytest.raises(DataError, match=r"1300 x 1065 px or 468\.732 x 384 px.*which of these the points refer to is not said"):
            load_fsc(tmp_path, scale_to_image=scale)
    write_fsc(tmp_path, entries(f7=without(bare, "H", "W")))  # nothing is said, nothing contradicts
    assert load_fsc(tmp_path).split("train").sample(0, 0).width == 40


@pytest.mark.parametrize(("change", "key", "message"), [
    ({"division": {"train": ["2.jpg", "99.jpg"], "val": [], "test": []}}, "missing_annotation", r"must have an annotation.*'99\.jpg'"),
    ({"classes": "2.jpg\tshells\n3.jpg\tbirds\n5.jpg\tgo\n"}, "missing_category",
     r"ImageClasses_FSC147\.txt \(split train\): an image of a split must have a class.*'7\.jpg'"),
    ({"division": {"train": ["2.jpg", "2.jpg"]}}, "duplicate_image", r"must be unique in its split.*'2\.jpg'"),
    ({"entries": entries(f7={"H": 3})}, "bad_annotation", r"7\.jpg: an annotation must be an object with points.*\['H'\]"),
    ({"entries": entries(f7=[[1, 2]])}, "bad_annotation", "got 'list'"),
    ({"entries": entries(f7=fsc_entry([[1, 2]]) | {"H": 0})}, "bad_size", "positive numbers"),
    ({"entries": entries(f7=without(fsc_entry([[1, 2]]), "ratio_h"))}, "bad_size", "must be given together"),
    ({"entries": entries(f7=fsc_entry([[1, 2], [41.5, 3]]))}, "out_of_frame", r"7\.jpg: points\[1\] .*must lie inside the image.*41\.5"),
    ({"entries": entries(f7=fsc_entry([[1, 2], [8, 3], [1, 2]]))}, "duplicate_point",
     r"points\[2\] \(7\.jpg, 40 x 30 px\): a point must be"),
    ({"entries": entries(f7=fsc_entry([[1, 2], [8]]))}, "bad_point", "a point must be 2 numbers"),
])
def test_bad_input(tmp_path: Path, change: dict[str, Any], key: str, message: str) -> None:
    write_fsc(tmp_path, **change)
    with pytest.raises(DataError, match=message) as refused:
        load_fsc(tmp_path, "train")
    assert "data.on_error=skip" in str(refused.value)
    skipped = load_fsc(tmp_path, "train", on_error="skip")
    assert skipped.dropped("train") == {key: 1}
    assert 2 in skipped.split("train").ids


def test_a_missing_image_is_refused_by_name(tmp_path: Path) -> None:
    write_fsc(tmp_path)
    (tmp_path / FSC_FILES["images"] / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"3\.jpg: the image file must exist"):
        load_fsc(tmp_path, on_error="skip")


def test_nothing_to_count(tmp_path: Path) -> None:
    write_fsc(tmp_path, entries(f7=fsc_entry([])))
    source = load_fsc(tmp_path)
    assert source.split("train").sample(0, 0).objects == ()
    assert source.truth("train").points_of(7).shape == (0, 2)
    assert source.split("train").num_objects().tolist() == [0, 2]


@pytest.mark.parametrize(("file", "text", "message"), [
    ("annotations", "{", "must be JSON"), ("annotations", "[]", "must be a JSON object"),
    ("annotations", '{"2.jpg": {}, "2.jpg": {}}', r"a key must be unique.*'2\.jpg'"),
    ("division", '{"train": "2.jpg"}', "a split must be a list of file names"),
    ("classes", "2.jpg shells\n", r"ImageClasses_FSC147\.txt:1: a line of the class file must be"),
    ("classes", "2.jpg\tshells\n2.jpg\tstones\n", r":2: an image must have one class, and has 'shells'"),
    ("annotations", None, "the file must exist"), ("classes", None, "the class file must exist"),
])
def test_a_broken_file(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    write_fsc(tmp_path)
    path = tmp_path / FSC_FILES[file]
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_fsc(tmp_path, "train", on_error="skip")


def test_splits_are_those_of_the_file(tmp_path: Path) -> None:
    write_fsc(tmp_path, division={"train": ["2.jpg"], "val": ["3.jpg", "5.jpg"], "val_coco": ["5.jpg"]})
    source = load_fsc(tmp_path, "train", "val", "val_coco", test="val_coco")
    assert source.splits == ("train", "val", "val_coco")
    assert source.split("test").ids.tolist() == [5]
    with pytest.raises(ConfigError, match="got test_coco; there are train, val, val_coco"):
        load_fsc(tmp_path, "train", "test_coco")
    with pytest.raises(ConfigError, match="got none"):
        load_fsc(tmp_path, splits={})


# ----------------------------------------------------------------- the real split and class files
def real() -> Path:
    folder = peer_data() / "fsc147"
    if not (folder / FSC_FILES["division"]).is_file():
        pytest.skip(f"no {FSC_FILES['division']} in {folder}")
    return folder


def test_the_real_files_agree() -> None:
    """Figures of the paper: 6,135 images, 147 classes, and no class of one split in another."""
    division, classes = read_division(real() / FSC_FILES["division"]), read_classes(real() / FSC_FILES["classes"])
    assert {name: len(files) for name, files in division.items()} == {
        "train": 3659, "val": 1286, "test": 1190, "val_coco": 277, "test_coco": 282,
    }
    assert len(set(classes.values())) == 147
    of = {name: {classes[file] for file in files} for name, files in division.items()}
    assert [len(of[name]) for name in ("train", "val", "test")] == [89, 29, 29]
    assert not (of["train"] & of["val"]) | (of["train"] & of["test"]) | (of["val"] & of["test"])
    assert set(division["val_coco"]) < set(division["val"])


def test_the_real_splits_with_made_points(tmp_path: Path) -> None:
    """Every file name and class of the real files; one picture under all names."""
    for key in ("division", "classes"):
        shutil.copy(real() / FSC_FILES[key], tmp_path / FSC_FILES[key])
    division, classes = read_division(tmp_path / FSC_FILES["division"]), read_classes(tmp_path / FSC_FILES["classes"])
    files = [file for name in ("val", "test_coco") for file in division[name]]
    made = {file: fsc_entry([[1 + i % 30, 2.5], [5, 6 + i % 20]][: i % 3]) for i, file in enumerate(files)}
    (tmp_path / FSC_FILES["annotations"]).write_text(json.dumps(made))
    images = tmp_path / FSC_FILES["images"]
    picture(images / files[0])
    for file in files[1:]:
        os.link(images / files[0], images / file)
    source = load_fsc(tmp_path, "val", "val_coco", "test_coco")
    split, truth = source.split("val"), source.truth("val")
    assert len(split) == 1286
    assert sorted(split.ids.tolist()) == sorted(int(file.removesuffix(".jpg")) for file in division["val"])
    for index in range(0, 1286, 97):
        sample = split.sample(index, 0)
        assert isinstance(sample.id, int)
        assert sample.category == classes[f"{sample.id}.jpg"]
        assert [o.point_px for o in sample.objects] == [tuple(p) for p in made[f"{sample.id}.jpg"]["points"]]
    assert truth.ann_xyxy_px.shape == (sum(len(made[file]["points"]) for file in division["val"]), 4)
    assert set(source.split("val_coco").ids.tolist()) <= set(split.ids.tolist())
    assert len(source.split("test_coco")) == 282
