from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from coordvlm.data.coco import Coco
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.fakes import annotation, coco_json, load_coco, write_coco
from tests.data_root import peer_data


def with_annotation(tmp_path, **changes):
    data = coco_json()
    data["annotations"].append(annotation(**changes))
    write_coco(tmp_path, data)
    return tmp_path


def test_a_sample_by_hand(tmp_path):
    write_coco(tmp_path, coco_json())
    source = load_coco(tmp_path)
    split = source.split("train")
    assert isinstance(source, DataSource)
    assert isinstance(split, Split)
    assert source.class_names == ("cat", "dog")
    assert split.ids.tolist() == [7, 3]
    sample, empty = split.sample(0, 0), split.sample(1, 0)
    assert (sample.id, sample.width, sample.height, sample.image) == (7, 40, 30, tmp_path / "images" / "a.png")
    assert [(o.desc, o.box_xyxy_px, o.category_id, o.annotation_id, o.iscrowd) for o in sample.objects] == [
        ("dog", (1.5, 2.0, 11.5, 22.0), 9, 11, False), ("cat", (20.0, 5.0, 40.0, 15.0), 2, 10, False),
    ]
    assert (empty.id, empty.objects) == (3, ())
    assert dict(source.dropped("train")) == {"clipped": 1, "crowd": 1}
    with pytest.raises(IndexError, match="2 samples, asked for 2"):
        split.sample(2, 0)


def test_the_truth_is_the_untouched_file(tmp_path):
    write_coco(tmp_path, coco_json())
    truth = load_coco(tmp_path, split="val").truth("val")
    assert truth.image_ids.tolist() == [3, 7]
    assert truth.category_names == ("cat", "dog")
    assert truth.ann_ids.tolist() == [11, 10, 12]
    assert truth.ann_xyxy_px.tolist() == [[1.5, 2, 11.5, 22], [20, 5, 40.5, 15], [0, 0, 40, 30]]
    assert truth.ann_area.tolist() == [150, 205, 1200]
    assert truth.ann_iscrowd.tolist() == [False, False, True]


BROKEN = [
    ({"bbox": [5, 6, 0, 4]}, "zero_area", r"must not have zero area.*\[5\.0, 6\.0, 0\.0, 4\.0\]"),
    ({"bbox": [9, 9, -4, 5]}, "inverted", r"must not be inverted.*\[9\.0, 9\.0, -4\.0, 5\.0\]"),
    ({"bbox": [35, 6, 6.5, 4]}, "out_of_frame", r"must lie inside the image.*\[35\.0, 6\.0, 6\.5, 4\.0\]"),
    ({"bbox": [-1.5, 6, 6.5, 4]}, "out_of_frame", r"must lie inside the image.*\[-1\.5, 6"),
    ({"bbox": [40, 6, 0.5, 4]}, "out_of_frame", r"must lie inside the image.*\[40\.0, 6"),
    ({"bbox": [float("nan"), 1, 2, 3]}, "not_finite", r"must be finite.*\[nan, 1, 2, 3\]"),
    ({"bbox": [1, 1, float("inf"), 3]}, "not_finite", r"must be finite.*\[1, 1, inf, 3\]"),
    ({"bbox": [1, 1, 10**400, 3]}, "not_finite", "must be finite"),
    ({"bbox": [1, 2, 3]}, "bad_bbox", r"4 numbers.*got \[1, 2, 3\]"),
    ({"bbox": ["1", "2", "3", "4"]}, "bad_bbox", r"4 numbers.*\['1', '2'"),
    ({"bbox": [1, 2, True, 4]}, "bad_bbox", r"4 numbers.*True"),
    ({"bbox": None}, "bad_bbox", "4 numbers.*None"),
    ({"category_id": 77}, "unknown_category", "category_id must be one of.*got 77"),
    ({"image_id": 99}, "unknown_image", "image_id must be one of.*got 99"),
    ({"area": "big"}, "bad_area", "area must be a finite number"),
]


@pytest.mark.parametrize(("changes", "reason", "message"), BROKEN)
def test_a_broken_training_target_is_refused_or_counted(tmp_path, changes, reason, message):
    with_annotation(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"ann\.json: annotation id 20 \(image id .*{message}"):
        load_coco(tmp_path)
    source = load_coco(tmp_path, on_error="skip")
    assert source.dropped("train")[reason] == 1
    assert sum(source.dropped("train").values()) == 3  # and the crowd and the clipped box that were there before
    split = source.split("train")
    assert [o.annotation_id for i in range(2) for o in split.sample(i, 0).objects] == [11, 10]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("changes", [{"bbox": [5, 6, 0, 4]}, {"bbox": [9, 9, -4, 5]}, {"bbox": [35, 6, 9, 4]}])
def test_evaluation_keeps_a_box_that_cannot_be_learnt(tmp_path, changes, on_error):
    with_annotation(tmp_path, **changes)
    source = load_coco(tmp_path, split="val", on_error=on_error)
    x, y, width, height = changes["bbox"]
    assert source.truth("val").ann_xyxy_px[-1].tolist() == [x, y, x + width, y + height]
    assert source.split("val").sample(1, 0).objects == ()
    assert sum(source.dropped("val").values()) == 3


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("changes", [{"bbox": [1, 2, 3]}, {"bbox": [float("nan"), 1, 2, 3]}, {"category_id": 77}, {"image_id": 99}])
def test_evaluation_refuses_what_cannot_be_read(tmp_path, changes, on_error):
    with_annotation(tmp_path, **changes)
    with pytest.raises(DataError, match=r"annotation id 20.*its truth is unknown"):
        load_coco(tmp_path, split="val", on_error=on_error)


def test_a_duplicate_annotation_id(tmp_path):
    with_annotation(tmp_path, id=11)
    with pytest.raises(DataError, match=r"annotation id 11 \(image id 3, b\.png.*must be unique.*got 11"):
        load_coco(tmp_path)
    source = load_coco(tmp_path, on_error="skip")
    assert source.dropped("train")["duplicate_annotation_id"] == 1
    assert source.split("train").sample(1, 0).objects == ()


def test_a_duplicate_image_id(tmp_path):
    data = coco_json()
    data["images"].append({"id": 3, "file_name": "c.png", "width": 40, "height": 30})
    write_coco(tmp_path, data)
    with pytest.raises(DataError, match=r"ann\.json: images: an image id must be unique in its file: got 3"):
        load_coco(tmp_path)
    source = load_coco(tmp_path, on_error="skip")
    assert source.split("train").ids.tolist() == [7, 3]
    assert source.dropped("train")["duplicate_image_id"] == 1
    with pytest.raises(DataError, match="an image id must be unique"):
        load_coco(tmp_path, split="val", on_error="skip")


def test_an_empty_description(tmp_path):
    write_coco(tmp_path, coco_json(categories=[{"id": 9, "name": " "}, {"id": 2, "name": "cat"}]))
    with pytest.raises(DataError, match=r"annotation id 11 \(image id 7.*category id 9\).*must not be empty.*' '"):
        load_coco(tmp_path)
    assert load_coco(tmp_path, on_error="skip").dropped("train")["empty_description"] == 1


@pytest.mark.parametrize(("content", "message"), [
    ("{not json", r"ann\.json: the annotation file must be JSON"),
    ("[1, 2]", r"ann\.json: a COCO file must be a JSON object.*'list'"),
    ('{"images": [], "info": 1}', r"missing annotations, categories: got \['images', 'info'\]"),
    (coco_json(images={"id": 1}), r"images: must be a list of JSON objects: got 'dict'"),
    (coco_json(annotations=[5]), "annotations: must be a list of JSON objects"),
    (coco_json(images=[]), "must not be empty.*'no images'"),
    (coco_json(annotations=[]), "must not be empty.*'no annotations'"),
    (coco_json(categories=[]), "must not be empty.*'no categories'"),
    (coco_json(categories=[{"id": 1}]), "category id 1: a category must have a name"),
    (coco_json(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "category id must be unique.*got 1"),
    (coco_json(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "category name must be unique.*'a'"),
    (coco_json(images=[{"id": 7, "file_name": "a.png"}]), r"image id 7: an image must have a width.*\(None, None\)"),
    (coco_json(images=[{"id": 7, "file_name": "a.png", "width": -1, "height": 3}]), r"image id 7: an image must have a width.*\(-1, 3\)"),
    (coco_json(images=[{"id": 7, "width": 40, "height": 30}]), "image id 7: an image must have a file_name or a coco_url"),
    (coco_json(images=[{"id": "x7", "file_name": "a.png"}]), r"images\[0\]: id must be given, an integer: got 'x7'"),
    (coco_json(images=[{"id": 7.5, "file_name": "a.png"}]), r"images\[0\]: id must be given, an integer: got 7\.5"),
    (coco_json(images=[{"id": 2**70, "file_name": "a.png"}]), "id must fit into 64 bits"),
])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_that_means_nothing_is_always_refused(tmp_path, content, message, on_error):
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message):
        load_coco(tmp_path, on_error=on_error)


def test_a_missing_annotation_file_or_root(tmp_path):
    with pytest.raises(DataError, match=r"ann\.json: the annotation file must exist"):
        load_coco(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: data\.root must be a folder"):
        load_coco(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "x/../../secret.png", "..\\secret.png"])
def test_a_path_outside_the_root_is_refused(tmp_path, name):
    write_coco(tmp_path, coco_json(images=[{"id": 7, "file_name": name, "width": 40, "height": 30}]))
    with pytest.raises(DataError, match=r"ann\.json: image id 7: an image path must stay inside.*secret"):
        load_coco(tmp_path, on_error="skip")


def test_a_link_out_of_the_root_is_refused(tmp_path):
    write_coco(tmp_path / "root", coco_json())
    outside = tmp_path / "outside.png"
    Image.new("RGB", (40, 30)).save(outside)
    link = tmp_path / "root" / "images" / "a.png"
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError, match=r"image id 7: an image path must stay inside.*outside\.png"):
        load_coco(tmp_path / "root").split("train").sample(0, 0)


def test_a_linked_image_folder_is_the_users_choice(tmp_path):
    write_coco(tmp_path / "disk", coco_json())
    write_coco(tmp_path / "root", coco_json())
    for file in ("a.png", "b.png"):
        (tmp_path / "root" / "images" / file).unlink()
    (tmp_path / "root" / "images").rmdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "disk" / "images")
    assert load_coco(tmp_path / "root").split("train").sample(0, 0).image.exists()


def test_check_images_reports_every_bad_image(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2, 3, 4, 7)]
    write_coco(tmp_path, coco_json(images=images))
    for i in (1, 2, 4, 7):
        Image.new("RGB", (40, 30) if i != 4 else (30, 40), (10 * i, 0, 0)).save(tmp_path / "images" / f"{i}.jpg")
    os.truncate(tmp_path / "images" / "2.jpg", 400)
    source = load_coco(tmp_path, on_error="skip")
    errors = [str(e) for e in source.check_images("train", max_pixels=10**6)]
    assert len(errors) == 3
    assert "2.jpg (image id 2): the image must be readable and complete" in errors[0]
    assert "3.jpg (image id 3): the image file must exist" in errors[1]
    assert "4.jpg (image id 4): the image's size must be the annotated one" in errors[2]
    assert len(source.check_images("train", max_pixels=100)) == 5


def test_lvis_files(tmp_path):
    urls = ["http://images.cocodataset.org/train2017/a.png", "http://images.cocodataset.org/val2017/b.png"]
    data = coco_json(
        images=[{"id": i, "coco_url": url, "width": 40, "height": 30} for i, url in zip((7, 3), urls, strict=True)],
        categories=[{"id": 1, "name": "traffic_light", "synset": "x"}],
        annotations=[{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1.0, 1.0, 4.0, 4.0], "area": 9.5, "segmentation": []}],
    )
    write_coco(tmp_path, data)
    (tmp_path / "images" / "train2017").mkdir()
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "train2017" / "a.png")
    split = load_coco(tmp_path).split("train")
    assert split.sample(0, 0).image == tmp_path / "images" / "train2017" / "a.png"
    assert split.sample(1, 0).image == tmp_path / "images" / "b.png"
    assert split.sample(0, 0).objects[0].desc == "traffic_light"
    assert load_coco(tmp_path, replace_underscores=True).class_names == ("traffic light",)
    truth = load_coco(tmp_path, split="val").truth("val")
    assert (truth.ann_area.tolist(), truth.ann_iscrowd.tolist()) == ([9.5], [False])


def test_ids_written_as_strings(tmp_path):
    data = coco_json()
    data["images"][0]["id"] = "7"
    data["annotations"][1]["image_id"] = 7.0
    write_coco(tmp_path, data)
    sample = load_coco(tmp_path).split("train").sample(0, 0)
    assert (sample.id, len(sample.objects)) == (7, 2)
    assert type(sample.id) is int


def test_class_lists_name_absent_classes(tmp_path):
    categories = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}] + [{"id": 20 + i, "name": f"c{i}"} for i in range(8)]
    write_coco(tmp_path, coco_json(categories=categories))
    split = load_coco(tmp_path, class_list="with_absent", num_absent=3).split("train")
    lists = [split.sample(0, epoch).class_list for epoch in range(5)]
    assert all(len(names) == 5 and {"cat", "dog"} <= set(names) for names in lists)
    assert len(set(lists)) > 1
    assert lists == [split.sample(0, epoch).class_list for epoch in range(5)]
    assert load_coco(tmp_path, class_list="present").split("train").sample(0, 0).class_list == ("cat", "dog")
    assert load_coco(tmp_path, class_list="present").split("train").sample(1, 0).class_list == ()


def test_choosing_images(tmp_path):
    write_coco(tmp_path, coco_json())
    assert load_coco(tmp_path, image_ids=[3]).split("train").ids.tolist() == [3]
    few = load_coco(tmp_path, max_objects_filter=1, split="val")
    assert few.split("val").ids.tolist() == few.truth("val").image_ids.tolist() == [3]
    assert load_coco(tmp_path, num_images=1).split("train").ids.tolist() == [7]
    with pytest.raises(DataError, match=r"image_ids must be image ids of the file: got \[5\]"):
        load_coco(tmp_path, image_ids=[3, 5])
    with pytest.raises(DataError, match="num_images asks for 3 images: got 2"):
        load_coco(tmp_path, num_images=3)
    with pytest.raises(DataError, match="no image is left"):
        load_coco(tmp_path, max_objects_filter=1, image_ids=[7])


def test_val_stands_in_for_a_missing_test(tmp_path, caplog):
    write_coco(tmp_path, coco_json())
    source = load_coco(tmp_path, split="val")
    assert source.split("test").name == "val"
    assert source.truth("test").digest() == source.truth("val").digest() == source.digests()["val"]
    assert "val stands in" in source.notes[0]
    assert "val stands in" in caplog.text
    with pytest.raises(ConfigError, match=r"data\.source\.train is not set; there are val"):
        source.split("train")


def test_options_that_mean_nothing(tmp_path):
    write_coco(tmp_path, coco_json())
    with pytest.raises(ConfigError, match="raise or skip, got 'ignore'"):
        load_coco(tmp_path, on_error="ignore")
    with pytest.raises(ConfigError, match=r"data\.source\.train needs json and images.*'jsn'"):
        Coco(root=tmp_path, train={"jsn": "a", "images": "b"}, val=None, test=None, seed=0, class_list="none", num_absent=0,
             on_error="raise", replace_underscores=False)


def bccd(on_error, **split):
    root = peer_data() / "bccd"
    files = {n: {"json": f"{n}.json", "images": "images", **split} for n in ("train", "val")}
    return Coco(root=root, **files, test=None, seed=0, class_list="none", num_absent=0, on_error=on_error, replace_underscores=False)


def test_bccd():
    message = r"train\.json: annotation id \d+ .*BloodImage_00343\.jpg.*zero area.*\[181\.0, 329\.0, 0\.0, 0\.0\]"
    with pytest.raises(DataError, match=message):
        bccd("raise")
    source = bccd("skip")
    assert (len(source.split("train")), len(source.split("val"))) == (205, 87)
    assert source.class_names == ("RBC", "WBC", "Platelets")
    assert source.dropped("train")["zero_area"] == source.dropped("val")["zero_area"] == 1
    truth = source.truth("val")
    assert len(truth.ann_ids) == 1138
    assert ((truth.ann_xyxy_px[:, 2:] - truth.ann_xyxy_px[:, :2]).min(1) == 0).sum() == 1
    assert sum(len(source.split("val").sample(i, 0).objects) for i in range(87)) == 1137
    assert source.check_images("val", max_pixels=10**6)[:1] == []


def test_the_first_eight_bccd_images_with_few_cells():
    source = bccd("raise", max_objects_filter=8, num_images=8)
    counts = [len(source.split("train").sample(i, 0).objects) for i in range(8)]
    assert max(counts) <= 8
    assert len(source.truth("train").ann_ids) == sum(counts)


def test_tinycoco():
    root = peer_data() / "tinycoco"
    files = {n: {"json": f"{n}2017.json", "images": f"images/{n}2017"} for n in ("train", "val")}
    source = Coco(root=root, **files, test=None, seed=0, class_list="all", num_absent=0, on_error="raise", replace_underscores=False)
    truth = source.truth("train")
    assert (len(source.split("train")), len(truth.ann_ids), len(source.class_names)) == (32, 288, 80)
    raw = json.loads((root / "train2017.json").read_text())
    assert truth.ann_iscrowd.sum() == sum(a["iscrowd"] for a in raw["annotations"]) == source.dropped("train")["crowd"] > 0
    samples = [source.split("train").sample(i, 0) for i in range(32)]
    assert sum(len(s.objects) for s in samples) == 288 - truth.ann_iscrowd.sum()
    assert sum(not s.objects for s in samples) >= 2
    first = next(a for a in raw["annotations"] if not a["iscrowd"])
    found = next(o for s in samples for o in s.objects if o.annotation_id == first["id"])
    x, y, width, height = first["bbox"]
    assert np.allclose(found.box_xyxy_px, [x, y, x + width, y + height], atol=1e-9)
    assert source.check_images("train", max_pixels=10**6) == []


def test_a_published_file_with_mixed_ids():
    path = peer_data() / "peer_cases" / "coco_eval" / "fce_ignore_flag"
    source = Coco(root=path, train=None, val={"json": "gt.json", "images": "."}, test=None, seed=0, class_list="none", num_absent=0,
                  on_error="raise", replace_underscores=False)
    truth = source.truth("val")
    assert truth.image_ids.tolist() == [2299]
    assert len(truth.ann_ids) == 14
    assert set(truth.ann_image_id.tolist()) == {2299}
    assert truth.ann_iscrowd.sum() == 1
