from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from coordvlm.contracts import Record
from coordvlm.coords.grid import Digits, Grid
from coordvlm.sequence.answers import CONVENTIONS, parse_answer
from coordvlm.utils.errors import ConfigError
from tests.data_root import peer_data

#: Lines on which the outcome differs from the file, what it is instead ("status" of every record), and why.
EXCEPTIONS: dict[str, tuple[list[str], str]] = {
    "real-qwen38-over-1000": (["out_of_range"], "dropped and counted; the record keeps the unclipped box, a caller may clip it"),
    "rf-clamp": (["out_of_range"], "dropped and counted; the record keeps the unclipped box, a caller may clip it"),
    "real-gemini-duplicate-keys": (
        ["bad_arity"] * 4,
        "x, y, w, h: corner or centre is not declared, nothing is read",
    ),
    "sv-qwen-missing-keys": (
        ["ok", "bad_arity", "ok"],
        "a description may be missing without a style; a name without a box counts",
    ),
    "sv-paligemma-five-locs": (["bad_arity"], "counted, the file counts nothing"),
    "sv-paligemma-no-class": (["missing_desc"], "counted, the file counts nothing"),
    "sv-paligemma-wrong-class": (["ok"], "the reader knows no class list: metrics count unknown descriptions"),
    "sv-deepseek-only-det": (["ok"], "a box without a name is a box, as in real-swift-two-boxes"),
    "coordexp-two-containers": (["ok", "ok"], "several containers are one answer"),
    "coordexp-cut-before-terminator": (["repaired"], "the four coordinates and the name are complete, only brackets are missing"),
}
#: Lines whose labels are not compared: the name before a bare list is not looked for.
NO_LABELS = {"real-ferret-answer"}
#: Lines in a convention that is not supported.
UNSUPPORTED = {"real-kosmos2-snowman"}


def cases() -> list[dict[str, Any]]:
    lines = (peer_data() / "peer_cases" / "grounding_outputs.visible.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def text_of(case: dict[str, Any]) -> str:
    if "text" in case:
        return case["text"]
    g = case["generate"]
    return g["prefix"] + g["unit"] * g["repeat"] + g["suffix"]


def read(case: dict[str, Any], **sizes: Any) -> list[Record]:
    coords = case.get("coords")
    size = tuple(case.get("image_wh") or (1000, 1000))
    known = {"size": size, "model_size": tuple(case.get("input_wh") or ((4000, 4000) if coords == "abs" else size))}
    return parse_answer(text_of(case), coords=coords if coords in {*CONVENTIONS, "kosmos2_32"} else "norm1000", **{**known, **sizes})


def assert_expected(records: list[Record], case: dict[str, Any]) -> None:
    assert len(records) == len(case["expected"])
    for r, want in zip(records, case["expected"], strict=True):
        assert (r.point_px is not None) == (want["type"] == "point")
        if want["px"] is not None:
            np.testing.assert_allclose(r.point_px or r.box_xyxy_px, want["px"], atol=1e-3)
        if case["coords"] not in ("norm1", "norm100"):
            assert [s.bin for s in r.slots] == want["raw"]
        if case["id"] not in NO_LABELS:
            assert r.desc == (want["label"] or "")


def test_every_published_answer_gives_its_boxes_or_a_documented_status() -> None:
    seen = set()
    for case in cases():
        name = case["id"]
        try:
            if "expected" not in case or name in UNSUPPORTED:
                continue  # below
            records = read(case)
            kept = [r for r in records if r.kept]
            if name in EXCEPTIONS:
                seen.add(name)
                assert [r.status for r in records] == EXCEPTIONS[name][0]
                if "clipped_px" in case:
                    assert_expected(records, case)
                    clipped = np.clip(records[0].box_xyxy_px, 0, np.tile(case["image_wh"], 2))
                    np.testing.assert_allclose(clipped, case["clipped_px"], atol=1e-3)
            else:
                assert_expected(kept, case)
                assert len(records) - len(kept) == case["n_dropped"]
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert seen == set(EXCEPTIONS)


def test_the_lines_without_boxes_behave_as_they_say() -> None:
    named = {c["id"]: c for c in cases()}
    assert len(named) == 86
    special = {name for name, c in named.items() if "expected" not in c}
    assert special == {"sv-qwen-bad-sizes", "own-stress-repeat-2000", "own-stress-deep-brackets"}
    bad = named["sv-qwen-bad-sizes"]
    for sizes in bad["cases"]:
        with pytest.raises(ValueError, match="must be positive"):
            read(bad, size=sizes["image_wh"], model_size=sizes["input_wh"])
    records = read(named["own-stress-repeat-2000"])
    assert [r.status for r in records] == ["ok"] * 2000 + ["bad_arity"]
    assert len({r.box_xyxy_px for r in records[:2000]}) == 1
    assert read(named["own-stress-deep-brackets"]) == []
    for name in UNSUPPORTED:
        with pytest.raises(ConfigError, match="'kosmos2_32'"):
            read(named[name])


def test_what_a_number_means_is_declared() -> None:
    text = '[{"bbox_2d": [100, 200, 500, 400], "label": "cat"}]'
    want = {
        "norm1000": (64, 96, 320, 192), "norm999": (64 / 0.999, 96 / 0.999, 320 / 0.999, 192 / 0.999), "abs": (50, 100, 250, 200),
    }  # fmt: skip
    for name, box in want.items():
        for coords in (name, CONVENTIONS[name]):
            (r,) = parse_answer(text, coords=coords, size=(640, 480), model_size=(1280, 960))
            np.testing.assert_allclose(r.box_xyxy_px, box)
            assert (r.status, r.desc, r.score) == ("ok", "cat", 1.0)
    (r,) = parse_answer(text, coords="norm1", size=(640, 480))
    assert r.status == "out_of_range"


@pytest.mark.parametrize(
    ("coords", "inside", "outside"),
    [("norm1000", 1000, 1001), ("norm999", 999, 1000), ("norm100", 100, 100.5), ("norm1", 1, 1.01), ("abs", 640, 641)],
)
def test_the_far_edge_belongs_to_the_range(coords: str, inside: float, outside: float) -> None:
    for value, status in ((inside, "ok"), (outside, "out_of_range"), (-0.5, "out_of_range")):
        numbers = [0, 0, value, value / 2] if value > 0 else [value, 0, inside, inside / 2]
        (r,) = parse_answer(json.dumps({"bbox_2d": numbers}), coords=coords, size=(640, 640), model_size=(640, 640))
        assert r.status == status
        assert r.box_xyxy_px is not None


@pytest.mark.parametrize("box", [[5, 1, 5, 9], [1, 9, 5, 9], [5, 1, 1, 9], [1, 9, 5, 1]])
def test_no_corner_is_swapped(box: list[int]) -> None:
    (r,) = parse_answer(json.dumps({"bbox_2d": box}), coords="norm1000", size=(10, 10))
    assert r.status == "degenerate"
    assert [s.bin for s in r.slots] == box


def test_numbers_beyond_any_range_are_out_of_range_and_do_no_harm() -> None:
    for huge in ("9" * 5000, "1e400", "-1e400"):
        (r,) = parse_answer(f'{{"bbox_2d": [1, 2, 3, {huge}]}}', coords="norm1000", size=(10, 10))
        assert (r.status, r.box_xyxy_px, r.slots) == ("out_of_range", None, ())


def test_a_convention_that_the_text_contradicts_is_no_reading() -> None:
    loc = "<loc0100><loc0200><loc0300><loc0400> dog"
    (r,) = parse_answer(loc, coords="norm1000", size=(640, 480))
    assert r.status == "not_a_coordinate"
    (r,) = parse_answer(loc, coords="loc1024_yx", size=(640, 480))
    np.testing.assert_allclose(r.box_xyxy_px, (125, 46.875, 250, 140.625))  # y first
    tokens = '{"bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]}'
    assert parse_answer(tokens, coords=Digits("qwen1000"), size=(640, 480))[0].status == "not_a_coordinate"
    assert parse_answer(tokens, coords=Grid("k999", 1000, 999), size=(640, 480))[0].status == "ok"
    assert parse_answer(tokens.replace("coord", "c"), coords="norm999", size=(9, 9), coord_token="<|c_{k}|>")[0].status == "ok"


#: Siblings of published answers: (text, [(status, description, numbers rounded; a point has two)]).
SIBLINGS: dict[str, tuple[str, list[tuple[str, str, list[int]]]]] = {
    "two points are no box": (
        '{"points": [[1, 2], [30, 40]], "label": "cell"}', [("repaired", "cell", [1, 2]), ("repaired", "cell", [30, 40])],
    ),
    "a polygon is one broken box": ('{"bbox_2d": [[1, 2], [30, 2], [30, 40], [1, 40]], "label": "a"}', [("bad_arity", "a", [])]),
    "corners": ('{"label": "a", "top_left": [1, 2], "bottom_right": [30, 40]}', [("repaired", "a", [1, 2, 30, 40])]),
    "corners are no points": (
        '{"label": "a", "bbox": {"top_left": {"x": 1, "y": 2}, "bottom_right": {"x": 30, "y": 40}}}', [("repaired", "a", [1, 2, 30, 40])],
    ),
    "one corner": ('{"label": "a", "top_left": [1, 2]}', [("bad_arity", "a", [])]),
    "half a corner": ('{"label": "a", "top_left": [1], "bottom_right": [30, 40]}', [("bad_arity", "a", [])]),
    "another key": ('{"bbox_xyxy": [1, 2, 30, 40], "label": "a"}', [("ok", "a", [1, 2, 30, 40])]),
    "an undeclared key counts": ('[{"bbox_xywh": [1, 2, 30, 40], "label": "a"}]', [("bad_arity", "a", [])]),
    "an undeclared key is no label": ('{"bbox_xywh": [1, 2, 30, 40]}', []),
    "a list of labels": (
        "{'<OD>': {'bboxes': [[1, 2, 30, 40], [5, 6, 70, 80]], 'labels': ['car', 'door']}}",
        [("repaired", "car", [1, 2, 30, 40]), ("repaired", "door", [5, 6, 70, 80])],
    ),
    "boxes between semicolons": ("[[001,002,030,040;005,006,070,080]]", [("ok", "", [1, 2, 30, 40]), ("ok", "", [5, 6, 70, 80])]),
    "a broken one after a semicolon": (
        '{"boxes": [1,2,30,40; 5,6,70], "label": "a"}', [("repaired", "a", [1, 2, 30, 40]), ("bad_arity", "a", [])],
    ),
    "semicolons for commas": ('{"bbox_2d": [1; 2; 30; 40], "label": "a;1"}', [("repaired", "a;1", [1, 2, 30, 40])]),
    "enumeration commas": ('{"bbox_2d": [1、2、30、40], "label": "a"}', [("repaired", "a", [1, 2, 30, 40])]),
    "full-width parentheses": ("<ref>a</ref><box>（1，2），（30，40）</box>", [("ok", "a", [1, 2, 30, 40])]),
    "quotes of code": ("{`bbox_2d`: [1, 2, 30, 40]}", [("repaired", "", [1, 2, 30, 40])]),
}  # fmt: skip


@pytest.mark.parametrize("case", SIBLINGS)
def test_siblings_of_published_answers(case: str) -> None:
    text, want = SIBLINGS[case]
    records = parse_answer(text, coords="norm1000", size=(9, 9))
    assert [(r.status, r.desc, [s.bin for s in r.slots]) for r in records] == want
    assert all((r.point_px is not None) == (len(r.slots) == 2) for r in records)


def test_markers_with_spaces_masks_and_single_quotes() -> None:
    for text, status in (("<loc0001> <loc0002> <loc0003> <loc0004> a", "repaired"), (4 * "<loc0001>" + "<seg001><seg002> a", "degenerate")):
        (r,) = parse_answer(text, coords="loc1024_yx", size=(9, 9))
        assert (r.status, r.desc) == (status, "a")
    for x, status in (("63.5", "ok"), ("-3.5", "out_of_range")):
        (r,) = parse_answer(f"<point x='{x}' y='44.2' alt='a'>a</point>", coords="norm100", size=(9, 9))
        assert (r.status, r.desc) == (status, "a")


def test_a_style_demands_its_own_form() -> None:
    text = "[1, 2, 3, 4]"
    assert parse_answer(text, coords="norm1000", size=(9, 9), style="json_digits") == []
    (r,) = parse_answer('{"bbox_2d": [1, 2, 3, 4]}', coords="norm1000", size=(9, 9), style="json_digits")
    assert r.status == "missing_desc"


def test_a_size_that_is_needed_must_be_given() -> None:
    with pytest.raises(ValueError, match="model_size is needed"):
        parse_answer("[1, 2, 3, 4]", coords="abs", size=(9, 9))
    with pytest.raises(ConfigError, match=r"one of norm1, .* got 'xywh'"):
        parse_answer("[1, 2, 3, 4]", coords="xywh", size=(9, 9))
