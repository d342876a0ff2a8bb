from __future__ import annotations

import pytest

from coordvlm.sequence.raw_record import style_of
from coordvlm.sequence.text_tags import FAMILIES, LOC, XML_POINT, TagReader, loc_record, xml_points
from tests.sequence.texts import COORD_TOKEN


def read(text: str, style: str | None = None) -> TagReader:
    reader, pos = TagReader(text, style=None if style is None else style_of(style), coord_token=COORD_TOKEN), 0
    while found := [i for t in reader.opening if (i := text.find(t, pos)) >= 0]:
        pos = reader.read(min(found))
    reader.finish()
    return reader


@pytest.mark.parametrize("family", [f[:4] for f in FAMILIES])
def test_every_family_of_markers(family: tuple[str, str, str, str]) -> None:
    ref, ref_end, box, box_end = family
    for content in ("(1,2),(3,4)", "[[1, 2, 3, 4]]", "1 2 3 4", "<1><2><3><4>"):
        text = f"{ref} a dog{ref_end}{box}{content}{box_end}"
        (r,) = read(text).records
        assert (r.desc, r.values, r.status, r.form, r.span) == ("a dog", (1, 2, 3, 4), "ok", "tag", (0, len(text)))
        assert text[slice(*r.desc_span)] == " a dog"


def test_several_boxes_of_one_description() -> None:
    (a, b) = read("<ref>dog</ref><box>(1,2),(3,4)</box>, <box>(5,6),(7,8)</box>").records
    assert (a.desc, b.desc, b.values) == ("dog", "dog", (5, 6, 7, 8))
    (a, b) = read("<ref>dog</ref><box>(1,2),(3,4)</box> and <box>(5,6),(7,8)</box>").records
    assert (a.desc, b.desc) == ("dog", "")
    assert [r.values for r in read("<ref>dog</ref><box>[[1,2,3,4],[5,6,7,8]]</box>").records] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert [r.status for r in read("<ref>dog</ref><box>[[1,2,3,4],[5,6,7]]</box>").records] == ["ok", "bad_arity"]


def test_absent_classes_and_passing_mentions_are_no_records() -> None:
    for content in ("None", "[]", ""):
        assert read(f"<ref>dog</ref><box>{content}</box>").records == []
    assert read("<ref>dog</ref> and <ref>cat</ref>").records == []
    one, two = "<|object_ref_start|>dog<|object_ref_end|>", "<|object_ref_start|>cat<|object_ref_end|><|box_start|>None<|box_end|>"
    assert [(r.desc, r.status) for r in read(one + two, "qwen2_box").records] == [("dog", "bad_arity"), ("cat", "bad_arity")]


def test_regions_without_an_end() -> None:
    text = "<|det|>[[220, <|ref|>car<|/ref|><|det|>[[220, 416, 417, 720]]<|/det|>"
    assert [(r.desc, r.status) for r in read(text).records] == [("", "bad_arity"), ("car", "ok")]
    cut = read("<ref>dog</ref><box>(1,2),(3,4)")
    assert cut.truncated
    assert [(r.desc, r.status) for r in cut.records] == [("dog", "repaired")]
    assert [r.status for r in read("<ref>dog</ref><box>(1,2),(3,4").records] == ["bad_arity"]
    cut = read("<|object_ref_start|>a do", "qwen2_box")
    assert [(r.desc, r.status) for r in cut.records] == [("", "bad_arity")]


def test_loc_tokens_put_y_first() -> None:
    text = "<loc0100><loc0200><loc0300><loc0400> dog ; <loc0001><loc0002><loc0003> cat"
    found = [loc_record(text, m)[0] for m in LOC.finditer(text)]
    assert [(r.desc, r.values, r.status) for r in found] == [("dog", (200, 100, 400, 300), "ok"), ("cat", (1, 2, 3), "bad_arity")]
    assert [text[slice(*s)] for s in found[0].value_spans] == ["0200", "0100", "0400", "0300"]
    assert found[0].keys == ("y1", "x1", "y2", "x2")


def test_xml_points() -> None:
    def points(text: str) -> list[tuple[str, tuple[float, ...], str]]:
        found = [r for m in XML_POINT.finditer(text) for r in xml_points(m)]
        assert all(text[slice(*s)] == f"{v}" for r in found for s, v in zip(r.value_spans, r.values, strict=True) if v == v)
        return [(r.desc, r.values, r.status) for r in found]

    assert points('<point x="63.5" y="44.2" alt="a dog">a dog</point>') == [("a dog", (63.5, 44.2), "ok")]
    assert points('<points x1="1.5" y1="2.5" x2="3.5" y2="4.5" alt="c">c</points>') == [("c", (1.5, 2.5), "ok"), ("c", (3.5, 4.5), "ok")]
    assert [status for *_, status in points('<points x1="1.5" y1="2.5" x2="3.5">c</points>')] == ["ok", "bad_arity"]
    assert [status for *_, status in points('<point x="1.2.3" y="2.5">c</point>')] == ["not_a_coordinate"]
