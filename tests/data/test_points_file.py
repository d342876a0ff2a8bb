from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import PointTruth
from coordvlm.data.images import open_image
from coordvlm.data.point_table import repeated
from coordvlm.data.points_file import PointsFile
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.layouts import picture
from tests.data.point_layouts import load_points, points_row, write_points

FOUR = [[2, 3], [30, 20], [39, 29], [10, 10]]


def points_of(source: PointsFile, index: int = 0, split: str = "train") -> list[tuple[float, float] | None]:
    return [o.point_px for o in source.split(split).sample(index, 0).objects]


def test_one_row(tmp_path: Path) -> None:
    write_points(tmp_path, points_row([[2.25, 3], [40.5, 29]], " red apple "), "", points_row([], "pear"))
    source = load_points(tmp_path)
    assert isinstance(source, DataSource)
    split = source.split("train")
    assert isinstance(split, Split)
    first, second = split.sample(0, 0), split.sample(1, 3)
    assert (first.id, first.category, first.image, first.width, first.height) == (1, "red apple", tmp_path / "a.png", 40, 30)
    assert points_of(source) == [(2.25, 3.0), (40.0, 29.0)]  # half a pixel clipped
    assert {o.desc for o in first.objects} == {"red apple"}
    assert first.meta == {"file_name": "a.png", "where": f"{tmp_path}/train.jsonl:1", "split": "train"}
    assert (second.id, second.category, second.objects) == (2, "pear", ())  # nothing to count stays a sample
    assert source.dropped("train") == {"clipped": 1}
    assert source.class_names == ("pear", "red apple")
    assert [o.category_id for o in first.objects] == [2, 2]
    assert split.num_objects().tolist() == [2, 0]
    assert split.most_objects == 2
    assert "train: 1 of 2 samples have nothing to count" in source.notes


def test_truth_is_that_of_the_samples_and_untouched(tmp_path: Path) -> None:
    write_points(tmp_path, points_row([[1, 1]], image="b.png"), points_row(), points_row([], "pear"), points_row([[40.5, 2]], "plum"))
    source = load_points(tmp_path, split="val")
    split, truth = source.split("val"), source.truth("val")
    assert isinstance(truth, PointTruth)
    for i in range(4):
        sample = split.sample(i, 0)
        assert isinstance(sample.id, int)
        assert truth.counted[truth.image_ids.tolist().index(sample.id)] == sample.category
        expected = np.clip(truth.points_of(sample.id), 0, [40, 30])
        assert expected.tolist() == [list(o.point_px or ()) for o in sample.objects]
    assert truth.points_of(4).tolist() == [[40.5, 2]]  # as written
    assert truth.source_image.tolist() == [1, 2, 2, 2]
    assert split.image_positions().tolist() == [0, 1, 1, 1]
    assert split.image_paths() == [tmp_path / "b.png"] + [tmp_path / "a.png"] * 3
    assert source.split("test") is split
    assert any("val stands in" in note for note in source.notes)
    assert source.digests() == {"val": truth.digest()}
    assert pickle.loads(pickle.dumps(split)).sample(1, 0) == split.sample(1, 0)


def test_ids_are_those_of_the_rows(tmp_path: Path) -> None:
    write_points(tmp_path, points_row(id=70), points_row(id="5", category="pear"))
    split = load_points(tmp_path).split("train")
    assert split.ids.tolist() == [70, 5]
    truth = load_points(tmp_path).truth("train")
    assert truth.image_ids.tolist() == [5, 70]
    assert truth.counted == ("pear", "apple")
    for rows, message in (
        ((points_row(id=1), points_row(category="pear")), "either every row has an id or none"),
        ((points_row(id=1), points_row(id=1, category="pear")), r"an id must be unique.*train\.jsonl:1"),
        ((points_row(id="x"),), "id must be an integer"),
        ((points_row(id=2**63),), "id must be an integer"),
    ):
        write_points(tmp_path, *rows)
        with pytest.raises(DataError, match=message):
            load_points(tmp_path, on_error="skip")


def test_shares_of_the_image(tmp_path: Path) -> None:
    write_points(tmp_path, points_row([[0.5, 0.5], [1, 0]]))
    assert points_of(load_points(tmp_path, coordinates="unit")) == [(20.0, 15.0), (40.0, 0.0)]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("declared", "points", "message"), [
    ("pixel", [[0.5, 0.5], [1, 0.2]], r"no number of the file is above 1; declare data\.source\.coordinates=unit"),
    ("unit", [[0.5, 0.5], [30, 20]], r"declare data\.source\.coordinates=pixel.*got \[30, 20\]"),
    ("pixel", [[3, 2], [29, 39], [1, 35], [20, 30]], "would be inside as y, x"),
    ("pixel", [[3, 2], [290, 190], [100, 35], [20, 30]], "another size of the images"),
])
def test_a_contradicted_convention_names_the_one_that_fits(
    tmp_path: Path, split: str, declared: str, points: list[list[float]], message: str
) -> None:
    write_points(tmp_path, points_row(points))
    with pytest.raises(DataError, match=message) as refused:
        load_points(tmp_path, split=split, coordinates=declared, on_error="skip")
    assert "train.jsonl:1: points[" in str(refused.value)


@pytest.mark.parametrize(("broken", "key", "message"), [
    ([41.5, 3], "out_of_frame", r"train\.jsonl:1: points\[4\] \(a\.png, 40 x 30 px\): a point must lie inside.*got \[41\.5, 3\]"),
    ([3, -1.01], "out_of_frame", "a point must lie inside"),
    ([30, 20], "duplicate_point", "a point must be unique"),
])
def test_a_point_that_can_be_read_but_not_learnt(tmp_path: Path, broken: list[float], key: str, message: str) -> None:
    write_points(tmp_path, points_row([*FOUR, broken, [6, 7], [8, 8], [9, 2], [9, 3], [9, 4]]), points_row([[1, 1]], "pear"))
    with pytest.raises(DataError, match=message) as refused:
        load_points(tmp_path)
    assert "data.on_error=skip" in str(refused.value)
    train = load_points(tmp_path, on_error="skip")
    assert len(train.split("train")) == 2
    assert [list(p or ()) for p in points_of(train)] == [*FOUR, [6, 7], [8, 8], [9, 2], [9, 3], [9, 4]]
    assert train.dropped("train") == {key: 1}
    val = load_points(tmp_path, split="val")
    assert len(val.truth("val").points_of(1)) == 10  # the file, untouched
    assert val.split("val").num_objects().tolist() == [9, 1]
    assert val.dropped("val") == {key: 1}


@pytest.mark.parametrize(("broken", "key"), [
    ("[NaN, 3]", "not_finite"), ("[3, Infinity]", "not_finite"), ("[3]", "bad_point"), ('["3", "4"]', "bad_point"), ("null", "bad_point"),
    ("[true, 3]", "bad_point"), ("[1, 2, 3]", "bad_point"), ('{"x": 1, "y": 2}', "bad_point"),
])
def test_a_point_that_nobody_can_read_takes_its_sample_along(tmp_path: Path, broken: str, key: str) -> None:
    text = json.dumps(points_row([*FOUR, [0, 0]])).replace("[0, 0]", broken)
    write_points(tmp_path, text, points_row([[1, 1]], "pear"))
    with pytest.raises(DataError, match=r"train\.jsonl:1: points\[4\].*data\.on_error=skip"):
        load_points(tmp_path)
    with pytest.raises(DataError, match="without which its truth is unknown"):
        load_points(tmp_path, split="val", on_error="skip")
    train = load_points(tmp_path, on_error="skip")
    assert train.split("train").sample(0, 0).category == "pear"  # how many apples there are is not known
    assert train.dropped("train") == {key: 1}
    assert len(train.truth("train").image_ids) == 1


@pytest.mark.parametrize(("row", "key", "message"), [
    ("{", "bad_line", "a line must be JSON"),
    ({"image": "a.png", "point": [], "category": "x"}, "bad_line", r"missing points; nearest: point"),
    (points_row(image=7), "bad_line", "a row must have image"),
    ({"image": "a.png", "points": "none", "category": "x"}, "bad_line", "'points': 'str'"),
    (points_row(category="  "), "empty_category", "a category must not be blank"),
    (points_row(width=40), "bad_size", "must be given together"),
    (points_row(width=40, height=0), "bad_size", "positive integers"),
    (points_row(image="gone.png"), "unreadable_image", r"gone\.png: the image file must exist"),
    (points_row([[5, 5]], "pear"), "duplicate_sample", r"together once, with all points \(first at .*train\.jsonl:1\)"),
])
def test_a_bad_row(tmp_path: Path, row: Any, key: str, message: str) -> None:
    write_points(tmp_path, points_row([[5, 5]], "pear"), row)
    for split, on_error in (("train", "raise"), ("val", "raise"), ("val", "skip")):
        with pytest.raises(DataError, match=message) as refused:
            load_points(tmp_path, split=split, on_error=on_error)
        assert "train.jsonl" in str(refused.value)
    train = load_points(tmp_path, on_error="skip")
    assert train.dropped("train") == {key: 1}
    assert len(train.split("train")) == 1


@pytest.mark.parametrize(("rows", "message"), [
    ((), "must not be empty"), ((points_row([]),), "no points"), ((points_row(image="../a.png"),), "stay inside its folder"),
    ((points_row(image="/a.png"),), "stay inside its folder"), (("[",), "not one JSON document"),
    ((points_row(width=40, height=30), points_row(width=30, height=40, category="pear")), "an image has one size"),
])
def test_what_is_always_refused(tmp_path: Path, rows: tuple[object, ...], message: str) -> None:
    write_points(tmp_path, *rows)
    with pytest.raises(DataError, match=message):
        load_points(tmp_path, on_error="skip")


def test_another_size_than_the_images(tmp_path: Path) -> None:
    """Trusted until the image is opened, as everywhere; or scaled when that is asked for, and said."""
    write_points(tmp_path, points_row([[10, 10], [60, 55]], width=80, height=60), points_row([[1, 2]], image="b.png", width=40, height=30))
    sample = load_points(tmp_path).split("train").sample(0, 0)
    with pytest.raises(DataError, match="the image's size must be the annotated one, 80 x 60"):
        open_image(sample.image, declared=(sample.width, sample.height), max_pixels=10**6)
    assert "80 x 60" in str(load_points(tmp_path).check_images("train", max_pixels=10**6)[0])
    for split in ("train", "val"):
        scaled = load_points(tmp_path, split=split, scale_to_image=True)
        assert points_of(scaled, 0, split) == [(5.0, 5.0), (30.0, 27.5)]
        assert points_of(scaled, 1, split) == [(1.0, 2.0)]
        assert scaled.truth(split).points_of(1).tolist() == [[5, 5], [30, 27.5]]
        assert scaled.truth(split).image_wh.tolist() == [[40, 30]] * 2
        assert scaled.dropped(split) == {"scaled_images": 1}
        assert f"{split}: points of 1 images were scaled to the size of the image (data.source.scale_to_image)" in scaled.notes
        assert scaled.check_images(split, max_pixels=10**6) == []


def test_an_image_of_another_shape_is_not_scaled_to(tmp_path: Path) -> None:
    write_points(tmp_path, points_row(width=80, height=80))
    with pytest.raises(DataError, match=r"annotated, 80 x 80 px.*its shape is another one.*got '40 x 30 px'"):
        load_points(tmp_path, scale_to_image=True)


def test_a_turned_image_is_read_as_annotated(tmp_path: Path) -> None:
    """EXIF says that the 40 x 30 pixels are displayed as 30 x 40; annotations may refer to either."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "x" / "t.jpg", exif=exif)
    for size in ({}, {"width": 30, "height": 40}, {"width": 40, "height": 30}):
        write_points(tmp_path, points_row([[3, 4]], image="x/t.jpg", **size))
        source = load_points(tmp_path, scale_to_image=True)
        sample = source.split("train").sample(0, 0)
        assert (sample.width, sample.height) == ((size["width"], size["height"]) if size else (30, 40))
        assert source.check_images("train", max_pixels=10**6) == []
        assert points_of(source) == [(3.0, 4.0)]


def test_choosing_samples(tmp_path: Path) -> None:
    write_points(tmp_path, points_row(image="c.png"), points_row([[1, 1]]), points_row([], "pear"), points_row([[9, 9]], image="b.png"))
    assert load_points(tmp_path, num_images=2).split("train").ids.tolist() == [1, 2, 3]
    assert load_points(tmp_path, max_points=1).split("train").ids.tolist() == [2, 3, 4]
    assert load_points(tmp_path, max_points=1, num_images=1).split("train").ids.tolist() == [2, 3]
    assert load_points(tmp_path, image_ids=[3]).split("train").ids.tolist() == [4]
    assert load_points(tmp_path, max_points=1).truth("train").image_ids.tolist() == [2, 3, 4]
    for choice, message in (
        ({"image_ids": [9]}, "ids of images"), ({"num_images": 4}, "asks for 4 images"), ({"max_points": -1}, "is left"),
    ):
        with pytest.raises(DataError, match=message):
            load_points(tmp_path, **choice)


def test_faults_of_images_that_are_not_chosen_do_not_count(tmp_path: Path) -> None:
    write_points(tmp_path, points_row(), points_row([[50, 3]], image="b.png"))
    assert len(load_points(tmp_path, num_images=1).split("train")) == 1
    with pytest.raises(DataError, match="must lie inside"):
        load_points(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "x.png")
    root = tmp_path / "data"
    root.mkdir()
    os.symlink(tmp_path / "elsewhere" / "x.png", root / "link.png")
    write_points(root, points_row(image="link.png"))
    with pytest.raises(DataError, match="also after following links"):
        load_points(root).split("train").sample(0, 0)


@pytest.mark.parametrize(("options", "message"), [
    ({"coordinates": "pixels"}, r"coordinates must be one of pixel, unit, got 'pixels'.*pixel"),
    ({"on_error": "ignore"}, r"data\.on_error must be raise or skip"),
    ({"splits": {}}, "must name a split"),
    ({"splits": {"train": {"file": "train.jsonl"}}}, r"data\.source\.splits\.train needs file and images"),
    ({"test": "testA"}, "test=testA cannot stand for test"),
])
def test_options_without_a_meaning_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_points(tmp_path, points_row())
    with pytest.raises(ConfigError, match=message):
        load_points(tmp_path, **options)
    with pytest.raises(DataError, match=r"data\.root must be a folder"):
        load_points(tmp_path / "gone")


def test_fields_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_points(tmp_path, points_row(colour="red"))
    load_points(tmp_path)
    assert "fields that are not read: colour" in caplog.text


def test_repeated_points_are_those_that_python_finds() -> None:
    rng = np.random.default_rng(0)
    sample, xy = np.sort(rng.integers(0, 4, 200)), rng.integers(0, 6, (200, 2)).astype(float)
    xy[5] = xy[6] = np.nan
    seen: set[tuple[int, float, float]] = set()
    expected = []
    for s, (x, y) in zip(sample.tolist(), xy.tolist(), strict=True):
        expected.append((s, x, y) in seen and x == x)
        seen.add((s, x, y))
    assert repeated(sample, xy).tolist() == expected


def test_rows_that_contradict_each_other_are_both_left_out(tmp_path: Path) -> None:
    """One row per point, instead of one per image: none of them knows how many there are. An equal row contradicts nothing."""
    rows = [points_row([p]) for p in FOUR]
    write_points(tmp_path, *rows, points_row([[7, 7]], "pear"), points_row([[7, 7]], "pear"))
    train = load_points(tmp_path, on_error="skip")
    assert [train.split("train").sample(i, 0).category for i in range(len(train.split("train")))] == ["pear"]
    assert train.dropped("train") == {"duplicate_sample": len(FOUR) + 1}
