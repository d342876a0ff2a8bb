from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from coordvlm.contracts import PointTruth
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.point_layouts import counted_coco, load_coco_points, write_coco_points


def changed(annotation: int, **values: object) -> dict[str, Any]:
    content = copy.deepcopy(counted_coco())
    content["annotations"][annotation].update(values)
    return content


def test_boxes_become_centre_points(tmp_path: Path) -> None:
    write_coco_points(tmp_path)
    source = load_coco_points(tmp_path)
    split = source.split("train")
    found = [(s.category, s.image, [o.point_px for o in s.objects]) for s in (split.sample(i, 0) for i in range(len(split)))]
    four, nine = tmp_path / "images" / "4.png", tmp_path / "images" / "9.png"
    assert found == [  # categories in the order of their ids; sheep, a crowd, are not asked for, and image 2 has nothing
        ("dog", four, [(7.0, 7.0), (12.5, 14.75)]), ("cat", four, [(22.5, 12.5)]), ("dog", nine, [(20.0, 15.0)]),
    ]
    assert source.dropped("train") == {"crowd": 1}
    assert split.ids.tolist() == [1, 2, 5]
    assert split.sample(1, 0).meta == {"file_name": "4.png", "where": f"{tmp_path}/train.json: image id 4, cat", "split": "train"}
    assert source.class_names == ("cat", "dog")
    assert source.check_images("train", max_pixels=10**6) == []


def test_truth_is_that_of_the_samples(tmp_path: Path) -> None:
    write_coco_points(tmp_path)
    source = load_coco_points(tmp_path, split="val", absent=2)
    split, truth = source.split("val"), source.truth("val")
    assert isinstance(truth, PointTruth)
    for i in range(len(split)):
        sample = split.sample(i, 0)
        assert isinstance(sample.id, int)
        assert truth.points_of(sample.id).tolist() == [list(o.point_px or ()) for o in sample.objects]
        assert truth.counted[truth.image_ids.tolist().index(sample.id)] == sample.category
        assert truth.source_image[truth.image_ids.tolist().index(sample.id)] == int(Path(str(sample.meta["file_name"])).stem)


def test_absent_categories_have_nothing_to_count(tmp_path: Path) -> None:
    write_coco_points(tmp_path)
    plain = load_coco_points(tmp_path).split("train")
    split = load_coco_points(tmp_path, absent=1).split("train")
    assert len(split) == len(plain) + 3
    samples = [split.sample(i, 0) for i in range(len(split))]
    names = {(Path(str(s.meta["file_name"])).stem, s.category) for s in samples if not s.objects}
    assert {image for image, _ in names} == {"4", "9", "2"}
    assert ("4", "cow") in names  # a crowd of sheep is no absence, so nothing else is left
    assert set(plain.ids.tolist()) < set(split.ids.tolist())
    again = load_coco_points(tmp_path, absent=1).split("train")
    assert again.ids.tolist() == split.ids.tolist()
    drawn = {tuple(load_coco_points(tmp_path, absent=1, seed=s).split("train").ids.tolist()) for s in range(8)}
    assert len(drawn) > 1
    val = [load_coco_points(tmp_path, split="val", absent=1, seed=s).split("val").ids.tolist() for s in range(4)]
    assert all(ids == val[0] for ids in val)  # drawn with eval_seed
    everything = load_coco_points(tmp_path, absent=9).split("train")
    assert len(everything) == 3 * 4 - 1  # all but the crowd
    assert everything.num_objects().sum() == 4


@pytest.mark.parametrize(("content", "key", "message"), [
    (changed(3, bbox=[10, 10, 0, 5]), "zero_area", r"annotation id 4 \(image id 4.*must not have zero area"),
    (changed(3, bbox=[38, 10, 8, 5]), "out_of_frame", "must lie inside the image"),
    (changed(3, bbox=[2, 4, 10, 6]), "duplicate_point", r"annotation id 4 .*the centre of a box must be unique"),
])
def test_a_broken_box_is_left_out_alone(tmp_path: Path, content: dict[str, Any], key: str, message: str) -> None:
    write_coco_points(tmp_path, content)
    with pytest.raises(DataError, match=message):
        load_coco_points(tmp_path)
    train = load_coco_points(tmp_path, on_error="skip")
    assert train.split("train").num_objects().tolist() == [1, 1, 1]
    assert train.dropped("train") == {"crowd": 1, key: 1}
    val = load_coco_points(tmp_path, split="val")
    assert len(val.truth("val").points_of(1)) == 2  # the file, untouched


@pytest.mark.parametrize(("content", "key", "left"), [
    (changed(3, bbox=[1, 2, "x", 4]), "bad_bbox", [2, 5]), (changed(3, bbox=[float("nan"), 2, 3, 4]), "not_finite", [2, 5]),
    (changed(3, id=1), "duplicate_annotation_id", [2, 5]), (changed(3, image_id=77), "unknown_image", [1, 2, 5]),
    (changed(3, category_id=77), "unknown_category", [1, 2, 5]),
])
def test_what_cannot_be_read(tmp_path: Path, content: dict[str, Any], key: str, left: list[int]) -> None:
    write_coco_points(tmp_path, content)
    for split, on_error in (("train", "raise"), ("val", "skip")):
        with pytest.raises(DataError, match=r"train\.json: annotation id"):
            load_coco_points(tmp_path, split=split, on_error=on_error)
    train = load_coco_points(tmp_path, on_error="skip")
    assert train.split("train").ids.tolist() == left
    assert train.dropped("train") == {"crowd": 1, key: 1}


def test_a_bad_area_does_not_matter(tmp_path: Path) -> None:
    write_coco_points(tmp_path, changed(0, area="large"))
    assert load_coco_points(tmp_path).dropped("train") == {"crowd": 1}


def test_choosing_samples(tmp_path: Path) -> None:
    write_coco_points(tmp_path)
    assert load_coco_points(tmp_path, image_ids=[9]).split("train").ids.tolist() == [5]
    assert load_coco_points(tmp_path, max_points=1).split("train").ids.tolist() == [2, 5]
    assert load_coco_points(tmp_path, num_images=1).split("train").ids.tolist() == [1, 2]


def test_crowds_alone_are_refused(tmp_path: Path) -> None:
    content = counted_coco()
    content["annotations"] = content["annotations"][-1:]
    write_coco_points(tmp_path, content)
    with pytest.raises(DataError, match="something to count"):
        load_coco_points(tmp_path)


def test_lvis_names_its_images_by_url(tmp_path: Path) -> None:
    content = counted_coco()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    content["categories"][0]["name"] = "guard_dog"
    write_coco_points(tmp_path, content)
    sample = load_coco_points(tmp_path, replace_underscores=True).split("train").sample(0, 0)
    assert (sample.image, sample.category) == (tmp_path / "images" / "4.png", "guard dog")


def test_names_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    content = counted_coco()
    content["images"][0]["file_name"] = "../4.png"
    write_coco_points(tmp_path, content)
    with pytest.raises(DataError, match="stay inside its folder"):
        load_coco_points(tmp_path)


@pytest.mark.parametrize(("options", "message"), [
    ({"absent": -1}, "absent must not be negative"), ({"splits": {}}, "must name a split"),
    ({"splits": {"train": {"json": "train.json"}}}, "needs json and images"),
])
def test_options_without_a_meaning_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_coco_points(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_coco_points(tmp_path, **options)
