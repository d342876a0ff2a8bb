from __future__ import annotations

import pytest

from coordvlm.data.source import DataSource, Split
from coordvlm.data.voc import parse_xml
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.layouts import load_voc, picture, voc_object, voc_xml, write_voc

DOG = voc_object("dog", (1, 1, 40, 30))


def boxes(source, index=0):
    return [(o.desc, o.box_xyxy_px) for o in source.split("train").sample(index, 0).objects]


def test_a_sample_by_hand(tmp_path):
    write_voc(tmp_path, {"2008_02": voc_xml(DOG, voc_object("cat & mouse", (5, 6, 5, 6.5))), "2008_01": voc_xml()})
    source = load_voc(tmp_path)
    split = source.split("train")
    assert isinstance(source, DataSource)
    assert isinstance(split, Split)
    assert source.class_names == ("cat & mouse", "dog")
    assert split.ids.tolist() == [1, 2]
    sample = split.sample(0, 0)
    assert (sample.width, sample.height, sample.image) == (40, 30, tmp_path / "JPEGImages" / "2008_02.jpg")
    assert [(o.desc, o.box_xyxy_px, o.category_id) for o in sample.objects] == [
        ("dog", (0, 0, 40, 30), 2), ("cat & mouse", (4, 5, 5, 6.5), 1),
    ]
    assert split.sample(1, 0).objects == ()
    assert source.dropped("train") == {}


def test_extents_from_zero(tmp_path):
    write_voc(tmp_path, {"7": voc_xml(voc_object("dog", (0, 2, 40, 30)))})
    source = load_voc(tmp_path, one_based=False)
    assert boxes(source) == [("dog", (0, 2, 40, 30))]
    assert source.split("train").ids.tolist() == [7]
    counted = load_voc(tmp_path, one_based=True)  # the left edge lies one px outside then
    assert boxes(counted) == [("dog", (0, 1, 40, 30))]
    assert counted.dropped("train") == {"clipped": 1}


@pytest.mark.parametrize(
    ("difficult", "targets", "crowds"), [("ignore", ["dog"], [False, True]), ("object", ["dog", "cat"], [False, False])]
)
def test_difficult_objects(tmp_path, difficult, targets, crowds):
    write_voc(tmp_path, {"a": voc_xml(DOG, voc_object("cat", (5, 5, 9, 9), "<difficult>1</difficult>"))})
    source = load_voc(tmp_path, difficult=difficult)
    assert [desc for desc, _ in boxes(source)] == targets
    assert source.truth("train").ann_iscrowd.tolist() == crowds
    assert source.dropped("train").get("crowd", 0) == sum(crowds)


def test_parts_of_objects_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write_voc(tmp_path, {"a": voc_xml(voc_object("person", (5, 5, 9, 9), part))})
    assert boxes(load_voc(tmp_path)) == [("person", (4, 4, 9, 9))]


def test_a_size_that_is_not_written_is_the_images(tmp_path):
    write_voc(tmp_path, {"a": voc_xml(DOG, size=None)})
    sample = load_voc(tmp_path).split("train").sample(0, 0)
    assert (sample.width, sample.height) == (40, 30)


def test_images_of_other_types(tmp_path):
    write_voc(tmp_path, {"a": voc_xml(DOG)})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    picture(tmp_path / "JPEGImages" / "a.png")
    assert load_voc(tmp_path).split("train").sample(0, 0).image.name == "a.png"


BAD = [
    (voc_object("dog", (5, 6, 4, 9)), "zero_area", r"zero area.*\[5\.0, 6\.0, 4\.0, 9\.0\]"),
    (voc_object("dog", (9, 6, 4, 9)), "inverted", "inverted"),
    (voc_object("dog", (9, 6, 44, 9)), "out_of_frame", "must lie inside the image"),
    (voc_object("dog", ("x", 6, 44, 9)), "bad_bbox", r"a bndbox must have one number each of xmin, ymin, xmax, ymax.*'x'"),
    (voc_object("dog", ("nan", 6, 14, 9)), "not_finite", "finite"),
    ("<object>\n<name>dog</name></object>\n", "bad_object", r"must have a name, a bndbox.*'bndbox': 0"),
    (voc_object("dog", (1, 1, 5, 5), "<difficult>maybe</difficult>"), "bad_object", "'difficult': 'maybe'"),
    (voc_object(" ", (1, 1, 5, 5)), "empty_description", "must not be empty"),
    ("<object>\n<name>dog</name><bndbox><xmin>1</xmin></bndbox></object>\n", "bad_bbox", r"\[1\.0\]"),
]


@pytest.mark.parametrize(("element", "reason", "message"), BAD)
def test_a_broken_object_is_refused_or_counted(tmp_path, element, reason, message):
    write_voc(tmp_path, {"a": voc_xml(DOG, element)})
    with pytest.raises(DataError, match=rf"Annotations/a\.xml:5 \(a\.jpg, 40 x 30 px\): .*{message}"):
        load_voc(tmp_path)
    source = load_voc(tmp_path, on_error="skip")
    assert source.dropped("train") == {reason: 1}
    assert boxes(source) == [("dog", (0, 0, 40, 30))]


BAD_FILES = [
    (None, "missing_annotation", r"train\.txt:2: the annotation of a listed image must exist.*bad\.xml"),
    ("<annotation><object>", "bad_annotation", r"bad\.xml:1: an annotation must be XML.*no element found"),
    ("<html></html>", "bad_annotation", r"bad\.xml:1: the root element must be annotation.*'html'"),
    ("", "bad_annotation", r"bad\.xml:1: an annotation must be XML"),
    (voc_xml(DOG, size=(0, 0)), "bad_annotation", r"bad\.xml:2: size must have a width and a height.*\('0', '0'\)"),
    (voc_xml(DOG, size=("w", 9)), "bad_annotation", "size must have a width and a height"),
]


@pytest.mark.parametrize(("text", "reason", "message"), BAD_FILES)
def test_a_broken_annotation_is_refused_or_counted(tmp_path, text, reason, message):
    write_voc(tmp_path, {"a": voc_xml(DOG), "bad": text})
    with pytest.raises(DataError, match=message):
        load_voc(tmp_path)
    source = load_voc(tmp_path, on_error="skip")
    assert source.dropped("train") == {reason: 1}
    assert len(source.split("train")) == 1
    write_voc(tmp_path, {"a": voc_xml(DOG), "bad": text}, split="val")
    with pytest.raises(DataError, match="the truth is unknown"):
        load_voc(tmp_path, on_error="skip", split="val")


@pytest.mark.parametrize("declaration", [
    '<!DOCTYPE a [<!ENTITY x "aaaa"><!ENTITY y "&x;&x;&x;">]>', '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
])
def test_documents_with_entities_are_refused(tmp_path, declaration):
    write_voc(tmp_path, {"a": f'<?xml version="1.0"?>\n{declaration}<annotation><object><name>&x;</name></object></annotation>'})
    with pytest.raises(DataError, match=r"a\.xml:2: an annotation must not declare a document type or entities"):
        load_voc(tmp_path)


def test_lists(tmp_path):
    write_voc(tmp_path, {"a": voc_xml(DOG)})
    with pytest.raises(DataError, match=r"Main/val\.txt: the list of a split must exist \(lists there: train\)"):
        load_voc(tmp_path, split="val")
    for text in ("a -1\n", "a  1\n", "../a\n", "/a\n"):
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(text)
        with pytest.raises(DataError, match=r"train\.txt:1: a line must be the name of an image without suffix"):
            load_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match=r"an image must be unique in its file .*'a\.jpg'"):
        load_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="a split must not be empty"):
        load_voc(tmp_path)


def test_a_declared_size_unlike_the_image(tmp_path):
    write_voc(tmp_path, {"a": voc_xml(DOG, size=(50, 30))})
    assert "the image's size must be the annotated one, 50 x 30" in str(load_voc(tmp_path).check_images("train", max_pixels=10**6)[0])


def test_options_that_mean_nothing(tmp_path):
    write_voc(tmp_path, {"a": voc_xml(DOG)})
    with pytest.raises(ConfigError, match=r"difficult must be ignore or object, got 'drop'"):
        load_voc(tmp_path, difficult="drop")
    with pytest.raises(ConfigError, match=r"one_based must be true or false, got 'yes'"):
        load_voc(tmp_path, one_based="yes")
    with pytest.raises(DataError, match=r"an object's name must be one of data\.source\.classes; nearest: dogs.*got 'dog'"):
        load_voc(tmp_path, classes=["dogs"])


def test_elements_know_their_line_and_text():
    root = parse_xml(b"<a>\n<b>x &amp; \n y</b>\n<b/>\n</a>", "f")
    assert [(b.line, b.text) for b in root.all("b")] == [(2, "x & \n y"), (4, "")]
    assert root.value("b") is None
    assert root.value("c") is None
