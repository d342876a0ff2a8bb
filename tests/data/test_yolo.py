from __future__ import annotations

import pytest

from coordvlm.data.source import DataSource, Split
from coordvlm.data.yolo import Yolo, label_path
from coordvlm.utils.errors import DataError
from tests.data.layouts import YOLO, load_yolo, picture, write_yolo

GOOD = "0 0.5 0.5 0.25 0.2\n"  # dog: [15, 12, 25, 18]


def test_a_sample_by_hand(tmp_path):
    write_yolo(tmp_path, {"b": GOOD + "\n1 0.25 0.5 0.5 1.0\n", "a": "", "c": None})
    source = load_yolo(tmp_path)
    split = source.split("train")
    assert isinstance(source, DataSource)
    assert isinstance(split, Split)
    assert source.class_names == ("dog", "cat")
    assert split.ids.tolist() == [1, 2, 3]
    sample = split.sample(1, 0)
    assert (sample.width, sample.height, sample.image) == (40, 30, tmp_path / "images" / "train" / "b.png")
    assert [(o.desc, o.category_id, o.annotation_id) for o in sample.objects] == [("dog", 0, 1), ("cat", 1, 2)]
    assert [pytest.approx(o.box_xyxy_px) for o in sample.objects] == [(15, 12, 25, 18), (0, 0, 20, 30)]
    assert split.sample(0, 0).objects == split.sample(2, 0).objects == ()
    assert source.dropped("train") == {"no_label_file": 1}
    truth = source.truth("train")
    assert (truth.category_ids.tolist(), truth.category_names) == ([0, 1], ("dog", "cat"))


def test_file_names_that_are_numbers_are_ids(tmp_path):
    write_yolo(tmp_path, {"000042": GOOD, "7": ""})
    assert load_yolo(tmp_path).split("train").ids.tolist() == [42, 7]
    write_yolo(tmp_path, {"07": ""})
    assert load_yolo(tmp_path).split("train").ids.tolist() == [1, 2, 3]  # 7 twice


def test_polygons_become_their_bounding_box(tmp_path):
    write_yolo(tmp_path, {"a": "1 0.25 0.2 0.75 0.4 0.5 0.6\n0 0 0 1 0 1 1 0 1\n"})
    source = load_yolo(tmp_path)
    boxes = [o.box_xyxy_px for o in source.split("train").sample(0, 0).objects]
    assert boxes == [pytest.approx((10, 6, 30, 18)), pytest.approx((0, 0, 40, 30))]
    assert source.dropped("train") == {"polygon_to_box": 2}


BAD = [
    ("0 0.5 0.5 0.25", "bad_object", r"a label line must be: class cx cy width height.*'0 0\.5 0\.5 0\.25'"),
    ("0 0.5 0.5 0.25 0.2 0.9", "bad_object", "a label line must be"),
    ("0,0.5,0.5,0.25,0.2", "bad_object", "a label line must be"),
    ("dog 0.5 0.5 0.25 0.2", "bad_object", "a label line must be.*'dog"),
    ("0.5 0.5 0.5 0.25 0.2", "bad_object", "a label line must be"),
    ("2 0.5 0.5 0.25 0.2", "unknown_category", r"the class must be one of names in data\.yaml.*got 2"),
    ("0 0.5 0.5 0 0.2", "zero_area", r"zero area.*\[0\.5, 0\.5, 0\.0, 0\.2\]"),
    ("0 0.5 0.5 -0.1 0.2", "inverted", "inverted"),
    ("0 0.95 0.5 0.25 0.2", "out_of_frame", "must lie inside the image.*labels are shares"),
    ("0 nan 0.5 0.25 0.2", "not_finite", "finite"),
]


@pytest.mark.parametrize(("text", "reason", "message"), BAD)
def test_a_broken_line_is_refused_or_counted(tmp_path, text, reason, message):
    write_yolo(tmp_path, {"a": GOOD + "\n" + text + "\n"})
    with pytest.raises(DataError, match=rf"labels/train/a\.txt:3 \(images/train/a\.png, 40 x 30 px\): .*{message}"):
        load_yolo(tmp_path)
    source = load_yolo(tmp_path, on_error="skip")
    assert source.dropped("train") == {reason: 1}
    assert [o.desc for o in source.split("train").sample(0, 0).objects] == ["dog"]


def test_evaluation_keeps_what_it_can_read(tmp_path):
    write_yolo(tmp_path, {"a": GOOD + "0 0.5 0.5 0 0.2\n"}, split="val")
    assert len(load_yolo(tmp_path, split="val").truth("val").ann_ids) == 2
    write_yolo(tmp_path, {"a": GOOD + "5 0.5 0.5 0.1 0.2\n"}, split="val")
    with pytest.raises(DataError, match=r"val/a\.txt:2.*its truth is unknown"):
        load_yolo(tmp_path, split="val", on_error="skip")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_pixels_are_refused(tmp_path, on_error):
    write_yolo(tmp_path, {"a": GOOD, "b": "0 20 15 10 6\n"})
    with pytest.raises(DataError, match=r"b\.txt:1 .*declared in 0\.\.1.*another unit.*\[20\.0, 15\.0"):
        load_yolo(tmp_path, on_error=on_error)


def test_a_split_without_label_files_is_refused(tmp_path):
    write_yolo(tmp_path, {"a": None, "b": None})
    with pytest.raises(DataError, match=r"data\.yaml: train: no image of the split has a label file.*labels/train/a\.txt"):
        load_yolo(tmp_path, on_error="skip")


def test_an_image_that_is_none(tmp_path):
    write_yolo(tmp_path, {"a": GOOD, "b": GOOD})
    (tmp_path / "images" / "train" / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"labels/train/b\.txt: .*b\.png: the image must be readable and complete"):
        load_yolo(tmp_path)
    assert load_yolo(tmp_path, on_error="skip").dropped("train") == {"unreadable_image": 1}
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt: a label file must be text"):
        load_yolo(tmp_path)


def test_lists_of_images_and_several_entries(tmp_path):
    yaml = "train: [list.txt, images/more]\nnames: [dog, cat]\n"
    write_yolo(tmp_path, {"b": GOOD, "a": GOOD}, yaml=yaml)
    picture(tmp_path / "images" / "more" / "deep" / "c.JPG")
    (tmp_path / "list.txt").write_text(f"./images/train/b.png\n\n{tmp_path}/images/train/a.png\n")
    split = load_yolo(tmp_path).split("train")
    names = ["images/train/b.png", "images/train/a.png", "images/more/deep/c.JPG"]
    assert [split.sample(i, 0).meta["file_name"] for i in range(3)] == names
    (tmp_path / "list.txt").write_text("images/train/b.png\nimages/train/b.png\n")
    with pytest.raises(DataError, match=r"an image must be unique in its file .*'images/train/b\.png'"):
        load_yolo(tmp_path)
    (tmp_path / "list.txt").write_text("../secret.png\n")
    with pytest.raises(DataError, match=r"list\.txt:1: an image path must be relative and stay inside"):
        load_yolo(tmp_path)


@pytest.mark.parametrize(("path", "train", "place"), [
    ("path: .\n", "images/train", ""), ("", "../images/train", ""), ("path: coco8\n", "images/train", ""),
    ("path: ../coco8\n", "./images/train", ""), ("path: nested\n", "images/train", "nested"),
])
def test_where_data_yaml_says_the_images_are(tmp_path, path, train, place):
    root = tmp_path / "coco8"
    write_yolo(root / place, {"a": GOOD})
    (root / "data.yaml").write_text(f"{path}train: {train}\nnames: [dog, cat]\n")
    assert load_yolo(root).split("train").sample(0, 0).image.exists()


def test_a_folder_of_the_users_choice(tmp_path):
    write_yolo(tmp_path / "disk", {"a": GOOD})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data.yaml").write_text("path: ../disk\ntrain: images/train\nnames: [dog, cat]\n")
    with pytest.raises(DataError, match=r"data\.yaml: path: path must be a folder inside data\.root.*set data\.source\.path.*'\.\./disk'"):
        load_yolo(tmp_path / "root")
    assert load_yolo(tmp_path / "root", path=str(tmp_path / "disk")).split("train").sample(0, 0).image.exists()
    with pytest.raises(DataError, match=r"data\.source\.path must be a folder"):
        load_yolo(tmp_path / "root", path="nowhere")


@pytest.mark.parametrize(("yaml", "message"), [
    ("names: [", r"data\.yaml: the data set's YAML file must be readable"),
    ("[1]", r"must be a mapping with names, train and val: got 'list'"),
    ("train: x\n", r"must be a mapping with names.*\['train'\]"),
    ("train: images/train\nnames: [dog, dog]\n", "a class name must be unique.*'dog'"),
    ("train: images/train\nnames: {a: dog}\n", "names must be a list of class names"),
    ("train: images/train\nnames: []\n", "names must be a list of class names"),
    ("train: images/train\nnames: [dog]\nnc: 2\n", "nc must be the number of names, 1: got 2"),
    ("train: images/train\nnames: [dog]\nkpt_shape: [17, 3]\n", "keypoint labels cannot be told from polygons"),
    ("train: 5\nnames: [dog]\n", r"train: a split must be a path"),
    ("train: nowhere\nnames: [dog]\n", r"train: a split must be a folder of images or a \.txt file.*nowhere"),
    ("vla: images/train\nval: images/train\nnames: [dog]\n", r"data\.yaml must have the split: got 'train'"),
    ("train: labels\nnames: [dog]\n", "a split must name at least one image"),
    ("train: images/train\nnames: [dog]\npath: 7\n", "path must be a folder"),
])
def test_a_data_yaml_that_means_nothing(tmp_path, yaml, message):
    write_yolo(tmp_path, {"a": GOOD}, yaml=yaml)
    with pytest.raises(DataError, match=message):
        load_yolo(tmp_path, on_error="skip")


def test_a_missing_data_yaml(tmp_path):
    with pytest.raises(DataError, match=r"data\.yaml: the data set's YAML file must exist"):
        load_yolo(tmp_path)


def test_a_test_split_is_used_where_there_is_one(tmp_path):
    yaml = "train: images/train\nval: images/val\nnames: [dog, cat]\n"
    for split in ("train", "val", "test"):
        write_yolo(tmp_path, {"a": GOOD}, split=split, yaml=yaml)
    splits = {name: {"split": name} for name in ("train", "val", "test")}
    source = Yolo(root=tmp_path, on_error="raise", **splits, **YOLO)
    assert source.split("test").name == "val"
    assert "val stands in" in source.notes[0]
    (tmp_path / "data.yaml").write_text(yaml + "test: images/test\n")
    assert Yolo(root=tmp_path, on_error="raise", **splits, **YOLO).split("test").name == "test"


def test_the_label_of_an_image(tmp_path):
    assert label_path(tmp_path / "images" / "x" / "images" / "a.b.jpg") == tmp_path / "images" / "x" / "labels" / "a.b.txt"
    assert label_path(tmp_path / "a.jpg") == tmp_path / "a.txt"
