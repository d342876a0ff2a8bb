from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from coordvlm.data.jsonl import Jsonl
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.layouts import JSONL, line, load_jsonl, picture, write_jsonl

DOG, CAT = ("dog", [1.5, 2, 11.5, 22]), ("cat", [20, 5, 40.5, 15])


def test_a_sample_by_hand(tmp_path):
    write_jsonl(tmp_path, line("b.png"), line("a.png", DOG, CAT, weather="rain", split="mine"))
    source = load_jsonl(tmp_path)
    split = source.split("train")
    assert isinstance(source, DataSource)
    assert isinstance(split, Split)
    assert source.class_names == ("cat", "dog")
    assert split.ids.tolist() == [1, 2]
    empty, sample = split.sample(0, 0), split.sample(1, 0)
    assert (sample.id, sample.width, sample.height, sample.image) == (2, 40, 30, tmp_path / "a.png")
    assert [(o.desc, o.box_xyxy_px, o.category_id, o.annotation_id) for o in sample.objects] == [
        ("dog", (1.5, 2.0, 11.5, 22.0), 2, 1), ("cat", (20.0, 5.0, 40.0, 15.0), 1, 2),
    ]
    assert sample.meta == {"split": "train", "file_name": "a.png", "where": f"{tmp_path}/ann.jsonl:2", "weather": "rain"}
    assert empty.objects == ()
    assert dict(source.dropped("train")) == {"clipped": 1}
    assert source.truth("train").ann_xyxy_px.tolist() == [[1.5, 2, 11.5, 22], [20, 5, 40.5, 15]]


def test_ids_of_ones_own(tmp_path):
    write_jsonl(tmp_path, line("b.png", DOG, id=70), line("a.png", CAT, id="3"))
    source = load_jsonl(tmp_path)
    assert source.split("train").ids.tolist() == [70, 3]
    assert source.truth("train").image_ids.tolist() == [3, 70]


def test_ids_that_are_no_numbers_are_kept_aside(tmp_path):
    write_jsonl(tmp_path, "", line("b.png", DOG, id="x_1"), line("a.png", CAT, id="7"))
    source = load_jsonl(tmp_path)
    assert source.split("train").ids.tolist() == [2, 3]
    assert [source.split("train").sample(i, 0).meta["id"] for i in (0, 1)] == ["x_1", "7"]
    assert "images are numbered by line" in source.notes[0]


def test_crowds_and_areas_of_coco(tmp_path):
    data = line("a.png", DOG, CAT)
    data["objects"][0] |= {"iscrowd": 1, "area": 77.5}
    write_jsonl(tmp_path, data)
    source = load_jsonl(tmp_path)
    truth = source.truth("train")
    assert (truth.ann_iscrowd.tolist(), truth.ann_area.tolist()) == ([True, False], [77.5, 205])
    assert [o.desc for o in source.split("train").sample(0, 0).objects] == ["cat"]
    assert source.dropped("train")["crowd"] == 1


def test_shares_refer_to_the_displayed_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    write_jsonl(tmp_path, line("turned.jpg", ("dog", [0.5, 0.5, 1, 1])))
    sample = load_jsonl(tmp_path, boxes="norm").split("train").sample(0, 0)
    assert (sample.width, sample.height) == (30, 40)
    assert sample.objects[0].box_xyxy_px == (15, 20, 30, 40)
    assert load_jsonl(tmp_path, boxes="norm").check_images("train", max_pixels=10**6) == []


def test_declared_sizes_spare_the_images(tmp_path):
    write_jsonl(tmp_path, line("nowhere.png", ("dog", [0.5, 0.5, 1, 1]), width=200, height=100))
    source = load_jsonl(tmp_path, boxes="norm")
    assert source.split("train").sample(0, 0).objects[0].box_xyxy_px == (100, 50, 200, 100)
    assert re.search(r"nowhere\.png \(.*ann\.jsonl:1\): the image file must exist", str(source.check_images("train", max_pixels=1)[0]))


def test_a_declared_size_unlike_the_image(tmp_path):
    write_jsonl(tmp_path, line("a.png", DOG, width=30, height=31))
    found = load_jsonl(tmp_path).check_images("train", max_pixels=10**6)
    assert re.search(r"a\.png \(.*ann\.jsonl:1\): the image's size must be the annotated one, 30 x 31.*got '40 x 30'", str(found[0]))


BAD_LINES = [
    ("{oops", "bad_json", "a line must be JSON.*oops"),
    ("[1, 2]", "bad_line", "must be a JSON object with image .*'list'"),
    ({"image": "a.png", "boxes": []}, "bad_line", r"missing objects.*\['boxes', 'image'\]"),
    ({"image": "a.png", "object": []}, "bad_line", "missing objects; nearest: object"),
    ({"image": 7, "objects": []}, "bad_line", r"must be a JSON object with image.*'image': 7"),
    ({"image": "a.png", "objects": {}}, "bad_line", r"'objects': 'dict'"),
    (line("a.png", width=40), "bad_line", r"width and height must be given together.*\(40, None\)"),
    (line("a.png", width=40, height=0), "bad_line", r"positive integers.*\(40, 0\)"),
    (line("b.png"), "duplicate_image", r"an image must be unique in its file \(first at .*ann\.jsonl:1\).*'b\.png'"),
    (line("missing.png"), "unreadable_image", r"missing\.png: the image file must exist"),
    (line("ann.jsonl"), "unreadable_image", r"ann\.jsonl: the image must be readable and complete"),
]


@pytest.mark.parametrize(("text", "reason", "message"), BAD_LINES)
def test_a_broken_line_is_refused_or_counted(tmp_path, text, reason, message):
    write_jsonl(tmp_path, line("b.png", DOG), text, line("c.png", CAT))
    with pytest.raises(DataError, match=rf"ann\.jsonl:2: .*{message}") as found:
        load_jsonl(tmp_path)
    assert "data.on_error=skip trains without it" in str(found.value)
    source = load_jsonl(tmp_path, on_error="skip")
    assert dict(source.dropped("train")) == {reason: 1, "clipped": 1}
    assert source.split("train").ids.tolist() == [1, 3]
    with pytest.raises(DataError, match=r"ann\.jsonl:2: .*without it the truth is unknown"):
        load_jsonl(tmp_path, on_error="skip", split="val")


def broken(**changes):
    return {"image": "a.png", "objects": [{"desc": "dog", "bbox": [1, 2, 11, 22]}, {"desc": "cat", "bbox": [1, 2, 3, 4], **changes}]}


BAD_OBJECTS = [
    ({"bbox": [5, 6, 5, 9]}, "zero_area", r"must not have zero area.*\[5, 6, 5, 9\]"),
    ({"bbox": [9, 9, 4, 20]}, "inverted", r"bbox must not be inverted \(data\.source\.boxes=pixel, .*box_format=xyxy\).*\[9, 9, 4, 20\]"),
    ({"bbox": [35, 6, 41.5, 9]}, "out_of_frame", r"must lie inside the image.*\[35, 6, 41\.5, 9\]"),
    ({"bbox": [float("nan"), 1, 2, 3]}, "not_finite", r"must be finite.*\[nan, 1, 2, 3\]"),
    ({"bbox": [1, 2, 3]}, "bad_bbox", r"bbox must be 4 numbers: x1, y1, x2, y2.*\[1, 2, 3\]"),
    ({"bbox": {"x": 1}}, "bad_bbox", r"4 numbers.*\{'x': 1\}"),
    ({"bbox": None}, "bad_bbox", "4 numbers.*None"),
    ({"desc": " "}, "empty_description", "must not be empty.*' '"),
    ({"desc": 5}, "bad_object", r"must be a JSON object with desc \(text\) and bbox.*'desc': 5"),
    ({"iscrowd": "no"}, "bad_object", r"\{'iscrowd': 'no'\}"),
    ({"area": "big"}, "bad_area", "area must be a finite number.*'big'"),
]


@pytest.mark.parametrize(("changes", "reason", "message"), BAD_OBJECTS)
def test_a_broken_object_is_refused_or_counted(tmp_path, changes, reason, message):
    write_jsonl(tmp_path, line("b.png"), broken(**changes))
    with pytest.raises(DataError, match=rf"ann\.jsonl:2: objects\[1\] \(a\.png, 40 x 30 px\): .*{message}"):
        load_jsonl(tmp_path)
    source = load_jsonl(tmp_path, on_error="skip")
    assert dict(source.dropped("train")) == {reason: 1}
    assert [o.desc for o in source.split("train").sample(1, 0).objects] == ["dog"]


@pytest.mark.parametrize(("changes", "kept"), [({"bbox": [5, 6, 5, 9]}, True), ({"bbox": [35, 6, 45, 9]}, True), ({"bbox": [1]}, False),
                                               ({"desc": ""}, False)])
def test_evaluation_keeps_what_it_can_read(tmp_path, changes, kept):
    write_jsonl(tmp_path, broken(**changes))
    if kept:
        truth = load_jsonl(tmp_path, split="val", on_error="skip").truth("val")
        assert truth.ann_xyxy_px[1].tolist() == changes["bbox"]
    else:
        with pytest.raises(DataError, match=r"objects\[1\].*without which its truth is unknown"):
            load_jsonl(tmp_path, split="val", on_error="skip")


def test_an_object_that_is_none(tmp_path):
    write_jsonl(tmp_path, {"image": "a.png", "objects": ["dog"]})
    with pytest.raises(DataError, match=r"ann\.jsonl:1: objects\[0\].*must be a JSON object with desc.*'dog'"):
        load_jsonl(tmp_path)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(("lines", "options", "message"), [
    ([line("a.png", DOG, CAT)], {"boxes": "norm"}, r"ann\.jsonl:1: objects\[0\].*declared in 0\.\.1 .*2 of 2 are.*\[1\.5, 2\.0"),
    ([line("b.png"), line("a.png", ("dog", [0.1, 0.1, 0.5, 1]))], {}, r"ann\.jsonl:2: objects\[0\].*declared in pixels.*boxes=norm"),
    ([line("a.png", *[("dog", [20, 15, 35, 28])] * 4)], {"box_format": "xywh"}, "4 of 4 boxes are inverted or out of frame as declared"),
    ([], {}, "must not be empty.*'no images'"),
    ([line("a.png")], {}, "must not be empty.*'no objects'"),
    ([line("../a.png", DOG)], {}, r"ann\.jsonl:1: an image path must be relative and stay inside.*'\.\./a\.png'"),
    ([line("/etc/a.png", DOG)], {}, "an image path must be relative and stay inside"),
    ([line("a.png", DOG, id=1), line("b.png")], {}, r"ann\.jsonl:2: either every line has an id or none"),
    ([line("a.png", DOG, id=[1])], {}, r"ann\.jsonl:1: id must be an integer or text: got \[1\]"),
    ([line("a.png", DOG, id=2**70)], {}, "id must fit into 64 bits"),
    (["[", "]"], {}, r"ann\.jsonl:1: a JSONL file must hold one JSON object per line"),
])
def test_a_file_that_means_nothing_is_always_refused(tmp_path, lines, options, message, on_error):
    write_jsonl(tmp_path, *lines)
    with pytest.raises(DataError, match=message):
        load_jsonl(tmp_path, on_error=on_error, **options)


@pytest.mark.parametrize("ids", [(4, 4), ("x", "x"), (4, "4")])
def test_an_id_for_the_second_time(tmp_path, ids):
    write_jsonl(tmp_path, line("a.png", DOG, id=ids[0]), line("b.png", CAT, id=ids[1]))
    with pytest.raises(DataError, match=r"ann\.jsonl:2: an image id must be unique in its file \(first at .*:1\)"):
        load_jsonl(tmp_path)
    assert load_jsonl(tmp_path, on_error="skip").dropped("train") == {"duplicate_image_id": 1}


def test_given_classes(tmp_path):
    write_jsonl(tmp_path, line("a.png", DOG, CAT))
    source = load_jsonl(tmp_path, classes=["zebra", "dog", "cat"])
    assert source.class_names == ("zebra", "dog", "cat")
    assert source.truth("train").ann_category_id.tolist() == [2, 3]
    message = r"ann\.jsonl:1: objects\[1\].*desc must be one of data\.source\.classes; nearest: cart.*got 'cat'"
    with pytest.raises(DataError, match=message):
        load_jsonl(tmp_path, classes=["dog", "cart"])
    assert load_jsonl(tmp_path, classes=["dog"], on_error="skip").dropped("train") == {"unknown_category": 1}
    with pytest.raises(DataError, match="without which its truth is unknown"):
        load_jsonl(tmp_path, classes=["dog"], on_error="skip", split="val")
    for classes in ([], ["dog", "dog"], ["dog", ""]):
        with pytest.raises(ConfigError, match=r"data\.source\.classes must be different, non-empty names"):
            load_jsonl(tmp_path, classes=classes)


def test_categories_are_those_of_all_splits(tmp_path):
    for name, thing in (("train", DOG), ("val", CAT), ("test", ("bird", [1, 1, 2, 2]))):
        write_jsonl(tmp_path, line("a.png", thing), name=f"{name}.jsonl")
    files = {n: {"jsonl": f"{n}.jsonl", "images": "."} for n in ("train", "val", "test")}
    source = Jsonl(root=tmp_path, **files, on_error="raise", **JSONL)
    assert source.class_names == source.truth("test").category_names == ("bird", "cat", "dog")
    assert len(set(source.digests().values())) == 3
    with pytest.raises(ConfigError, match=r"needs jsonl and images and knows .*'json'"):
        Jsonl(root=tmp_path, train={"json": "a", "images": "b"}, val=None, test=None, on_error="raise", **JSONL)
    with pytest.raises(ConfigError, match=r"data\.source\.val must be a mapping.*got 'val\.jsonl'; is data\.source\.val\.jsonl=val\.jsonl"):
        Jsonl(root=tmp_path, train=None, val="val.jsonl", test=None, on_error="raise", **JSONL)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs at least one of train, val and test"):
        Jsonl(root=tmp_path, train=None, val=None, test=None, on_error="raise", **JSONL)


def test_bytes_of_other_programs(tmp_path):
    text = "\ufeff" + json.dumps(line("a.png", DOG)) + "\r\n\r\n" + json.dumps(line("b.png", ("gato ñ", [1, 1, 5, 5])), ensure_ascii=False)
    path = write_jsonl(tmp_path)
    path.write_bytes(text.encode())
    assert load_jsonl(tmp_path).split("train").sample(1, 0).objects[0].desc == "gato ñ"
    path.write_bytes(text.encode("latin-1", "replace").replace(b"\xf1", b"\xff"))
    with pytest.raises(DataError, match=r"ann\.jsonl:(1|3): a line must be JSON"):
        load_jsonl(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"ann\.jsonl: the annotation file must exist"):
        load_jsonl(tmp_path)


def test_keys_of_objects_that_are_not_read_are_named(tmp_path, caplog):
    data = line("a.png", DOG)
    data["objects"][0]["is_crowd"] = 1
    write_jsonl(tmp_path, data)
    load_jsonl(tmp_path)
    assert "keys of objects that are not read: is_crowd" in caplog.text


def test_choosing_images(tmp_path):
    write_jsonl(tmp_path, line("a.png", DOG, CAT), line("b.png", DOG), line("c.png", CAT))
    assert load_jsonl(tmp_path, image_ids=[3]).split("train").ids.tolist() == [3]
    few = load_jsonl(tmp_path, max_objects_filter=1, num_images=1)
    assert few.split("train").ids.tolist() == few.truth("train").image_ids.tolist() == [2]
    assert load_jsonl(tmp_path, class_list="present").split("train").sample(0, 0).class_list == ("cat", "dog")


def test_ten_thousand_lines_take_less_than_two_seconds(tmp_path):
    """Measured 0.15 s; the bar only catches what grows with the square."""
    import time

    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 30, (10_000, 2, 2)), axis=1).reshape(-1, 4) + np.asarray([0, 0, 1, 1])
    write_jsonl(tmp_path, *(line(f"{i}.png", ("dog", box), width=40, height=31) for i, box in enumerate(boxes.tolist())))
    start = time.thread_time()
    assert len(load_jsonl(tmp_path).split("train")) == 10_000
    assert time.thread_time() - start < 2


def test_pictures_in_folders(tmp_path):
    picture(tmp_path / "sub" / "deep.png", (50, 20))
    write_jsonl(tmp_path, line("sub/deep.png", ("dog", [1, 1, 50, 20])))
    assert load_jsonl(tmp_path).split("train").sample(0, 0).image == tmp_path / "sub" / "deep.png"
