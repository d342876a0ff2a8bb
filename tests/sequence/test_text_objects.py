from __future__ import annotations

import json

import pytest

from coordvlm.sequence.lenient_json import Reader
from coordvlm.sequence.raw_record import RawRecord, style_of
from coordvlm.sequence.text_objects import AXIS_KEYS, BOX_KEYS, EITHER_KEYS, POINT_KEYS, ObjectCollector
from tests.sequence.texts import COORD_TOKEN


def collect(text: str, style: str | None = None) -> ObjectCollector:
    found = ObjectCollector(text, style=None if style is None else style_of(style), coord_token=COORD_TOKEN)
    Reader(text, found.on_close, coord_token=COORD_TOKEN, stops=()).read(0)
    return found


def one(value: object, style: str | None = None) -> RawRecord:
    (record,) = collect(json.dumps(value), style).records
    return record


def test_spellings_of_a_box() -> None:
    for key in BOX_KEYS | EITHER_KEYS:
        for spelling in (key, key.title(), key.replace("_", "-"), key.replace("_", " ")):
            r = one({spelling: [1, 2, 3, 4], "label": "a"})
            assert (r.values, r.status, r.form, r.is_point, r.keys) == ((1, 2, 3, 4), "ok", "list", False, (spelling, "label"))
    for names in zip(*(sorted(k) for k in AXIS_KEYS), strict=True):
        axes = dict(zip((next(iter(k & {n})) for k, n in zip(AXIS_KEYS, names, strict=True)), (1, 2, 3, 4), strict=True))
        assert (one(axes).values, one(axes).form, one(axes).status) == ((1, 2, 3, 4), "axes", "ok")


def test_spellings_of_a_point() -> None:
    for key in POINT_KEYS | EITHER_KEYS:
        r = one({key: [1, 2]})
        assert (r.values, r.status, r.is_point) == ((1, 2), "ok", True)
    assert one({"point": {"x": 1, "y": 2}}).values == (1, 2)
    assert one({"point_2d": [1]}).status == "bad_arity"


@pytest.mark.parametrize(
    "key", ["label", "desc", "description", "class_name", "class", "category", "object_name", "name", "phrase", "Label"]
)
def test_spellings_of_a_description(key: str) -> None:
    assert one({"bbox_2d": [1, 2, 3, 4], key: "a cat"}).desc == "a cat"


def test_the_first_spelling_wins() -> None:
    assert one({"name_zh": "b", "description": "c", "label": "a", "bbox": [1, 2, 3, 4]}).desc == "a"
    assert one({"name_zh": "b", "bbox": [1, 2, 3, 4]}).desc == "b"
    assert one({"bbox": [1, 2, 3, 4], "color": "red"}).desc == ""


def test_wrappers_and_settings_are_no_records() -> None:
    inner = {"bbox_2d": [1, 2, 3, 4], "label": "a"}
    for wrapper in (
        {"objects": [inner]},
        {"name": "tool", "arguments": inner},
        {"result": {"detections": [inner], "count": 1}},
        {"label": "all", "items": [inner]},
    ):
        r = one(wrapper)
        assert (r.desc, r.status) == ("a", "ok")
        assert json.dumps(wrapper)[slice(*r.span)] == json.dumps(inner)
    assert collect('{"confidence": 1, "size": [640, 480]}').records == []


def test_a_width_and_height_are_not_guessed_about() -> None:
    assert one({"label": "a", "x": 1, "y": 2, "w": 3, "h": 4}).status == "bad_arity"
    assert collect('{"x": 1, "y": 2, "width": 3, "height": 4}').records == []


def test_repeated_keys_are_several_objects() -> None:
    text = '{"label": "a", "bbox": [1, 2, 3, 4], "label": "b", "bbox": [5, 6, 7, 8], "label": "c", "bbox": [9'
    records = collect(text).records
    assert [(r.desc, r.status) for r in records] == [("a", "repaired"), ("b", "repaired"), ("c", "bad_arity")]
    assert text[slice(*records[1].span)] == '"label": "b", "bbox": [5, 6, 7, 8]'


def test_a_style_takes_its_own_form_only() -> None:
    box, axes = {"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"label": "a", "x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}
    for style, value, status in (
        ("json_digits", box, "ok"), ("json_digits", axes, "bad_json"), ("json_unit", axes, "ok"), ("json_unit", box, "bad_json"),
        ("json_coord", box, "not_a_coordinate"), (None, box, "ok"), (None, axes, "ok"),
    ):  # fmt: skip
        assert one(value, style).status == status
    assert collect('{"cat": [1, 2, 3, 4]}', "json_digits").records == []
    assert collect("[[1, 2, 3, 4]]", "json_digits").bare == []


def test_a_template_is_no_record() -> None:
    found = collect("[{'bbox_2d': [x1, y1, x2, y2], 'label': '...'}]")
    assert found.records == []
    assert found.template
    assert collect("[{'bbox_2d': [NaN, NaN, NaN, NaN]}]").records[0].status == "not_a_coordinate"


def test_bare_lists() -> None:
    found = collect('[[1, 2, 3, 4], [5, 6, 7, 8, "cat"], [1, 2, 3], (9, 8), (7, 6), [1, 2, 3, 4, 5]]')
    assert [(r.desc, r.values) for r in found.bare_records()] == [("", (1, 2, 3, 4)), ("cat", (5, 6, 7, 8)), ("", (9, 8, 7, 6))]
    assert [r.is_point for r in collect("[(1, 2)]").bare_records()] == [True]
    assert [r.status for r in collect("[(1, 2), (3, 4), (5, 6)]").bare_records()] == ["bad_arity"]
    assert collect("[]").empty_list
