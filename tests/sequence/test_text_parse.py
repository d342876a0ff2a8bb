from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordvlm.contracts.prediction import DROP_REASONS, KEPT
from coordvlm.sequence.raw_record import RawAnswer
from coordvlm.sequence.text_parse import read_records
from coordvlm.utils.errors import ConfigError
from tests.sequence.texts import COORD_TOKEN, DESCS, FRAGMENTS, STYLES, Values, coords, values_of, wrap, write, write_one

UNIT = {"json_unit": 10_000}


def read(text: str, style: str | None = None) -> RawAnswer:
    return read_records(text, style=style, coord_token=COORD_TOKEN)


def kept(answer: RawAnswer) -> list[tuple[str, Values]]:
    return [(r.desc, r.values) for r in answer.items if r.status in KEPT]


def three(style: str) -> list[tuple[str, Values]]:
    scale = UNIT.get(style, 1)
    return [("dog", tuple(v / scale for v in b)) for b in ((1, 2, 30, 40), (5, 6, 70, 80), (9, 10, 110, 120))]


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_written_is_read(style: str, data: st.DataObject) -> None:
    objects = data.draw(st.lists(st.tuples(DESCS, values_of(style)), max_size=4))
    for as_style in (style, None):
        answer = read(write(style, objects), as_style)
        assert [(r.desc, r.values, r.status) for r in answer.items] == [(d, v, "ok") for d, v in objects]
        assert not answer.flags or (as_style is None and style == "qwen2_box" and not objects)
        for r in answer.items:
            assert r.tokens == (style == "json_coord")


@pytest.mark.parametrize("style", STYLES)
def test_spans_point_at_what_was_read(style: str) -> None:
    objects = [("犬 and 猫", three(style)[0][1]), ("b, c", three(style)[1][1])]
    text = "👍 " + write(style, objects)
    for r, (desc, values) in zip(read(text, style).items, objects, strict=True):
        assert text[slice(*r.span)] == write_one(style, desc, values)
        assert text[slice(*r.desc_span)] == desc
        shown = [text[slice(*s)] for s in r.value_spans]
        assert [float(re.sub(r"[^0-9.]", "", s)) for s in shown] == list(values)


def test_key_order_is_reported() -> None:
    text = '{"y_min": 0.2, "x_max": 0.3, "x_min": 0.1, "y_max": 0.4}'
    (r,) = read(text, "json_unit").items
    assert r.values == (0.1, 0.2, 0.3, 0.4)
    assert r.keys == ("y_min", "x_max", "x_min", "y_max")


GOOD = '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}'
REPAIRED = {
    "single quotes": "{'bbox_2d': [5, 6, 7, 8], 'label': 'cat'}",
    "an apostrophe in single quotes": "{'bbox_2d': [5, 6, 7, 8], 'label': 'cat'}",
    "typographic quotes": "{“bbox_2d”: [5, 6, 7, 8], “label”: “cat”}",
    "no quotes around keys": '{bbox_2d: [5, 6, 7, 8], label: "cat"}',
    "no quotes around the label": '{"bbox_2d": [5, 6, 7, 8], "label": cat}',
    "trailing commas": '{"bbox_2d": [5, 6, 7, 8,], "label": "cat",}',
    "missing comma between keys": '{"bbox_2d": [5, 6, 7, 8] "label": "cat"}',
    "missing comma after the label": '{"label": "cat" "bbox_2d": [5, 6, 7, 8]}',
    "missing commas between numbers": '{"bbox_2d": [5 6 7 8], "label": "cat"}',
    "missing bracket": '{"bbox_2d": [5, 6, 7, 8, "label": "cat"}',
    "missing opening brace": '"bbox_2d": [5, 6, 7, 8], "label": "cat"}',
    "missing closing brace": '{"bbox_2d": [5, 6, 7, 8], "label": "cat"',
    "one bracket too many": '{"bbox_2d": [5, 6, 7, 8]], "label": "cat"}',
    "a tuple": '{"bbox_2d": (5, 6, 7, 8), "label": "cat"}',
    "two corners": '{"bbox_2d": [[5, 6], [7, 8]], "label": "cat"}',
    "nested once": '{"bbox_2d": [[5, 6, 7, 8]], "label": "cat"}',
    "a string": '{"bbox_2d": "5, 6, 7, 8", "label": "cat"}',
    "strings": '{"bbox_2d": ["5", "6", "7", "8"], "label": "cat"}',
    "leading zeros": '{"bbox_2d": [005, 006, 007, 008], "label": "cat"}',
    "a box object": '{"bbox": {"x1": 5, "y1": 6, "x2": 7, "y2": 8}, "label": "cat"}',
}


@pytest.mark.parametrize("case", REPAIRED)
def test_syntax_is_repaired_and_neighbours_stay(case: str) -> None:
    text = f"[{GOOD}, {REPAIRED[case]}, {GOOD.replace('dog', 'cow')}]"
    for style in ("json_digits", None):
        answer = read(text, style)
        assert [(r.desc, r.values, r.status) for r in answer.items] == [
            ("dog", (1, 2, 3, 4), "ok"),
            ("cat", (5, 6, 7, 8), "repaired"),
            ("cow", (1, 2, 3, 4), "ok"),
        ]


BROKEN = {
    "bad_arity: three": '{"bbox_2d": [5, 6, 7], "label": "cat"}',
    "bad_arity: five": '{"bbox_2d": [5, 6, 7, 8, 9], "label": "cat"}',
    "bad_arity: none": '{"label": "cat"}',
    "bad_arity: null": '{"bbox_2d": null, "label": "cat"}',
    "bad_arity: a point": '{"point_2d": [5, 6], "label": "cat"}',
    "bad_arity: a polygon": '{"bbox_2d": [5, 6, 7, 8, 9, 10, 11, 12], "label": "cat"}',
    "not_a_coordinate: NaN": '{"bbox_2d": [NaN, 6, Infinity, 8], "label": "cat"}',
    "not_a_coordinate: a word": '{"bbox_2d": [5, six, 7, 8], "label": "cat"}',
    "not_a_coordinate: units": '{"bbox_2d": [5px, 6px, 7px, 8px], "label": "cat"}',
    "not_a_coordinate: tokens": f'{{"bbox_2d": [{coords((5, 6, 7, 8))}], "label": "cat"}}',
    "missing_desc: none": '{"bbox_2d": [5, 6, 7, 8]}',
    "missing_desc: blank": '{"bbox_2d": [5, 6, 7, 8], "label": " \\n"}',
    "missing_desc: null": '{"bbox_2d": [5, 6, 7, 8], "label": null}',
    "bad_json: no end of the label": '{"bbox_2d": [5, 6, 7, 8], "label": "cat}',
    "bad_json: another form": '{"label": "cat", "x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_has_its_status_and_leaves_its_neighbours(case: str) -> None:
    answer = read(f"[{GOOD}, {BROKEN[case]}, {GOOD.replace('dog', 'cow')}]", "json_digits")
    assert [(r.desc, r.status) for r in answer.items][::2] == [("dog", "ok"), ("cow", "ok")]
    assert answer.items[1].status == case.split(":")[0]
    assert len(answer.items) == 3


BROKEN_BOXES = {
    "repaired": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(5,6),(7,8)",
    "repaired: spaces": "<|object_ref_start|>cat<|object_ref_end|> <|box_start|>( 5 , 6 ) , ( 7 , 8 )<|box_end|>",
    "repaired: no end of the name": "<|object_ref_start|>cat<|box_start|>(5,6),(7,8)<|box_end|>",
    "bad_arity: one corner": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(5,6)<|box_end|>",
    "bad_arity: three corners": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(5,6),(7,8),(9,10)<|box_end|>",
    "bad_arity: no box": "<|object_ref_start|>cat<|object_ref_end|>",
    "not_a_coordinate": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(5,6),(seven,8)<|box_end|>",
    "missing_desc": "<|box_start|>(5,6),(7,8)<|box_end|>",
    "missing_desc: blank": "<|object_ref_start|> <|object_ref_end|><|box_start|>(5,6),(7,8)<|box_end|>",
}


@pytest.mark.parametrize("case", BROKEN_BOXES)
def test_broken_qwen2_boxes(case: str) -> None:
    one = write_one("qwen2_box", "dog", (1, 2, 3, 4))
    middle = ("x " if case.startswith("missing_desc") else "") + BROKEN_BOXES[case]
    answer = read(one + middle + one.replace("dog", "cow"), "qwen2_box")
    assert [(r.desc, r.status) for r in answer.items][::2] == [("dog", "ok"), ("cow", "ok")]
    assert answer.items[1].status == case.split(":")[0]


@pytest.mark.parametrize("style", STYLES)
def test_one_wrong_character_never_takes_a_neighbour_along(style: str) -> None:
    objects = three(style)
    first, middle, last = (write_one(style, f"{d}{i}", v) for i, (d, v) in enumerate(objects))
    ends = ("dog0", objects[0][1]), ("dog2", objects[2][1])
    for i in range(len(middle) + 1):
        for c in ("", *"\"'{}[](),:\\ \n0a<`"):
            for wrong in {middle[:i] + c + middle[i:], middle[:i] + c + middle[i + 1 :]}:  # inserted, replaced or (c empty) removed
                found = kept(read(wrap(style, [first, wrong, last]), style))
                assert (found[0], found[-1]) == ends, wrong
                assert len(found) <= 3, wrong


@pytest.mark.parametrize("style", STYLES)
def test_a_cut_answer_keeps_whole_records_and_never_a_cut_value(style: str) -> None:
    objects = [(d, v) for d, (_, v) in zip(("a dog", 'the "red", car', "犬"), three(style), strict=True)]
    text = write(style, objects)
    complete = [text.index(write_one(style, *o)) + len(write_one(style, *o)) for o in objects]
    for i in range(len(text)):
        answer = read(text[:i], style)
        found = kept(answer)
        assert found == objects[: len(found)], text[:i]
        assert len(found) >= sum(end <= i for end in complete)
        assert len(answer.items) <= 3
        last = objects[: len(kept(read(text[:i], None)))]
        assert [v for _, v in kept(read(text[:i], None))] == [v for _, v in last]


def test_a_cut_number_is_no_number() -> None:
    cut = (
        '[{"bbox_2d": [581, 587, 655, 65',
        '[{"bbox_2d": [581, 587, 655, 657, 9',
        "[581, 587, 655",
        "(581, 587), (655, 65",
        "(581, 587), (",
        "(581, 587),",
    )
    for text in (*cut, "<box>(581, 587)", '{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4'):
        assert [r.status for r in read(text).items] == ["bad_arity"], text
    assert [r.status for r in read("[[1, 2, 3, 4], [5, 6, 7, 8").items] == ["ok", "bad_arity"]
    assert [r.status for r in read('{"bbox_2d": [581, 587, 655, 657<|im_end|>').items] == ["repaired"]


@pytest.mark.parametrize(
    ("text", "style", "flags", "num"),
    [("", "json_digits", {"no_output"}, 0),
     ("", "qwen2_box", set(), 0),
     ("[]", "json_digits", set(), 0),
     ('{"objects": []}', "json_coord", set(), 0),
     ("none, so []", "json_digits", {"stray_text"}, 0),
     ("I see a dog.", "json_digits", {"stray_text", "no_output"}, 0),
     ("I see a dog.", "qwen2_box", {"stray_text", "no_output"}, 0),
     (f"```json\n[{GOOD}]\n```<|im_end|>", "json_digits", set(), 1),
     (f"Sure: [{GOOD}]", "json_digits", {"stray_text"}, 1),
     (f"[{GOOD}, ", "json_digits", {"truncated"}, 1),
     ("[{'bbox_2d': [x1, y1, x2, y2]}]", "json_digits", {"stray_text", "no_output"}, 0)],
)  # fmt: skip
def test_flags_of_an_answer(text: str, style: str, flags: set[str], num: int) -> None:
    answer = read(text, style)
    assert answer.flags == flags
    assert len(answer.items) == num


def test_drafts_are_no_answer() -> None:
    box = '{"bbox_2d": [1, 2, 3, 4], "label": "draft"}'
    assert [r.desc for r in read(f"<think>{box}</think>[{GOOD}]").items] == ["dog"]
    assert [r.desc for r in read(f"a {box} </think>[{GOOD}]").items] == ["dog"]  # the template opened the thought
    assert [r.status for r in read(f"<think>{box}").items] == ["bad_json"]
    quoted = read(f'[{GOOD}, {{"bbox_2d": [1, 2, 3, 4], "label": "a </think> sign"}}]')
    assert [r.desc for r in quoted.items] == ["dog", "a </think> sign"]


@pytest.mark.parametrize(
    ("text", "want"),
    [('{"cat": [1, 2, 3, 4], "dog": [[5, 6, 7, 8]]}', [("cat", (1, 2, 3, 4)), ("dog", (5, 6, 7, 8))]),
     ('{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [("cat", (1, 2, 3, 4)), ("cat", (5, 6, 7, 8))]),
     ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [("", (1, 2, 3, 4)), ("", (5, 6, 7, 8))]),
     ('[[1, 2, 3, 4, "cat"]]', [("cat", (1, 2, 3, 4))]),
     ("dog(1,2),(3,4)", [("", (1, 2, 3, 4))]),
     ("click(904, 196)", [("", (904, 196))]),
     (f"The [9, 9, 9, 9] is a draft: [{GOOD}]", [("dog", (1, 2, 3, 4))]),
     ('{"action": "click", "x": 10, "y": 20}', [("", (10, 20))]),
     ('{"bbox_2d": [1, 2, 3, 4], "name_zh": "米饭", "name_en": "Rice"}', [("Rice", (1, 2, 3, 4))]),
     ('{"bbox_2d": [1, 2, 3, 4], "names": {"zh": "米饭", "en": "Rice"}}', [("Rice", (1, 2, 3, 4))]),
     ('{"bbox_2d": [1, 2, 3, 4], "label": ["Rice"]}', [("Rice", (1, 2, 3, 4))]),
     ('{"bbox_2d": [1, 2, 3, 4], "label": 7}', [("7", (1, 2, 3, 4))]),
     ('{"bbox_2d": [1, 2, 3, 4], "label": "caf\\u00e9 \\ud83d\\ude00 \\ud83d"}', [("café 😀 \ufffd", (1, 2, 3, 4))]),
     ("<ref>a</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>", [("a", (1, 2, 3, 4)), ("a", (5, 6, 7, 8))]),
     ("Born on 12, 05, 2024, 18 (twice) in [1].", []),
     ('{"point_2d": [9, 9], "bbox_2d": [1, 2, 3, 4]}', [("", (1, 2, 3, 4))]),
     ('{"label": "the "big", red one", "bbox_2d": [1, 2, 3, 4]}', [('the "big", red one', (1, 2, 3, 4))]),
     ('[{"bbox_2d": [1，2，3，4]， "label"： "cat"}]', [("cat", (1, 2, 3, 4))]),
     ("<|box_start|>(904,196)<|box_end|>", [("", (904, 196))]),
     ("<point>904 196</point>", [("", (904, 196))]),
     ("- cat: [1, 2, 3, 4]\n- dog: (5,6),(7,8)", [("", (1, 2, 3, 4)), ("", (5, 6, 7, 8))]),
     ("[[[[1, 2, 3, 4]]]]", [("", (1, 2, 3, 4))])],
)  # fmt: skip
def test_other_ways_of_writing(text: str, want: list[tuple[str, tuple[float, ...]]]) -> None:
    assert kept(read(text)) == want


def check(text: str, styles: Sequence[str | None]) -> None:
    for style in styles:
        answer = read(text, style)
        assert answer.flags <= {"truncated", "no_output", "stray_text"}
        for r in answer.items:
            assert r.status in KEPT + DROP_REASONS
            json.dumps(r.desc).encode()
            r.desc.encode()
            assert 0 <= r.span[0] < r.span[1] <= len(text)
            assert all(r.span[0] <= a < b <= r.span[1] for a, b in r.value_spans if r.status in KEPT)
            if r.status in KEPT:
                assert len(r.values) == (2 if r.is_point else 4)
                assert not any(math.isnan(v) for v in r.values)
                assert r.desc or style in (None, "json_unit")


def mutations(text: str, seed: int) -> list[str]:
    """The text and nine relatives: cut, with stretches removed, doubled, swapped or replaced."""
    rng, out = Random(seed), [text]
    for _ in range(9):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        out.append(rng.choice([text[:i], text[i:], text[:i] + text[j:], text[:j] + text[i:], text[:i] + rng.choice(FRAGMENTS) + text[j:]]))
    return out


ANSWERS = st.builds(write, st.sampled_from(STYLES), st.lists(st.tuples(DESCS, values_of("")), max_size=3))
GARBAGE = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4) | ANSWERS, max_size=14).map("".join)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(GARBAGE, st.integers(0, 2**32))
def test_no_text_stops_the_reader(text: str, seed: int) -> None:
    for i, one in enumerate(mutations(text, seed)):
        check(one, (None, STYLES[i % 4]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(GARBAGE, st.integers(0, 2**32))
def test_no_text_stops_the_reader_100_000_strings(text: str, seed: int) -> None:
    for i, one in enumerate(mutations(text, seed)):
        check(one, (None, STYLES[i % 4]))


UNITS = (
    "[", "{", "[{", '{"a":', '"a":', '"', '"a ', "'a' ", "\n", '"\n', "\\", "<", "<think>", "<|box_start|>", "<ref>a", "1", "1,", "(1,2)",
    "[1,2,3,4],", "]}",
    '{"bbox_2d": [1,2,3,4', '{"bbox_2d": [1,2,3,4], "label": "a},', '"\\ud8', "a", "<loc0001>", "<point ", "“", " ",
)  # fmt: skip


def seconds(text: str, style: str | None, tries: int = 1) -> float:
    """The quickest of some tries, in time of this thread: a pause of another thread or of the garbage collector is not the reader's."""
    taken = []
    for _ in range(tries):
        begin = time.thread_time()
        read(text, style)
        taken.append(time.thread_time() - begin)
        if taken[-1] < 0.5:
            break
    return min(taken)


BEFORE = ("", '[{"label": "', "<box>[", "(([[{{")


@pytest.mark.parametrize("before", BEFORE[:2])
def test_twenty_thousand_characters_take_a_moment(before: str) -> None:
    """About 0.02 s each; a reader that was quadratic in keys needed more than 3 s."""
    for unit in UNITS:
        text = before + unit * (20_000 // len(unit))
        assert seconds(text, None, tries=4) < 1, (before, unit)


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_takes_seconds(unit: str, before: str) -> None:
    for style in (None, "json_digits", "qwen2_box"):
        assert seconds(before + unit * (1_000_000 // len(unit)), style) < 10  # 1 to 4 s; a quadratic reader needs hours


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.style must be one of json_coord, .* got 'json'"):
        read("", "json")
    with pytest.raises(ConfigError, match="coord_token must contain"):
        read_records("", style=None, coord_token="<|coord|>")
