from __future__ import annotations

import math

import pytest

from coordvlm.sequence.lenient_json import Leaf
from coordvlm.sequence.raw_record import NO_DESC, STYLES, Desc, clean, make_raw, number_groups, style_of
from coordvlm.utils.errors import ConfigError
from tests.sequence.texts import COORD_TOKEN

DOG = Desc("dog", (0, 3))


def leaves(*kinds: str) -> list[Leaf]:
    return [Leaf(k, float(i) if k in ("number", "coord", "cut") else k, i, i + 1) for i, k in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "changes", "status"),
    [(["number"] * 4, {}, "ok"),
     (["number"] * 4, {"regular": False}, "repaired"),
     (["number"] * 4, {"form": "axes", "desc": NO_DESC}, "bad_json"),  # the form is the first rule
     (["number"] * 3, {"desc": NO_DESC}, "bad_arity"),
     (["number"] * 3 + ["cut"], {}, "bad_arity"),
     (["number"] * 2, {"is_point": True}, "bad_arity"),  # boxes were asked for
     (["number"] * 3 + ["word"], {"desc": NO_DESC}, "not_a_coordinate"),
     (["coord"] * 4, {}, "not_a_coordinate"),
     (["number"] * 4, {"desc": Desc("", (0, 1), broken=True)}, "bad_json"),
     (["number"] * 4, {"desc": NO_DESC}, "missing_desc"),
     (["coord"] * 4, {"style": None}, "ok"),
     (["number", "coord"] * 2, {"style": None}, "not_a_coordinate"),
     (["number"] * 2, {"style": None, "is_point": True}, "ok"),
     (["number"] * 4, {"style": None, "desc": NO_DESC}, "ok"),
     (["number"] * 4, {"style": None, "desc": NO_DESC, "needs_desc": True}, "missing_desc")],
)  # fmt: skip
def test_the_status_is_the_first_rule_broken(kinds: list[str], changes: dict, status: str) -> None:
    given = {"desc": DOG, "style": STYLES["json_digits"], "form": "list", "span": (0, 9), "regular": True, **changes}
    assert make_raw(leaves(*kinds), given.pop("desc"), **given).status == status


def test_what_is_no_number_is_not_shown_as_one() -> None:
    r = make_raw(leaves("number", "word", "cut"), DOG, style=None, form="list", span=(0, 9), regular=True)
    assert r.values[0] == 0
    assert math.isnan(r.values[1])
    assert (len(r.values), r.value_spans) == (2, ((0, 1), (1, 2)))


@pytest.mark.parametrize(
    ("text", "groups"),
    [("(1,2),(3,4)", [[1, 2, 3, 4]]),
     ("100 200 300 400", [[100, 200, 300, 400]]),
     ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
     ("<1><2><3><4>,<5><6><7><8>", [[1, 2, 3, 4], [5, 6, 7, 8]]),
     ("<|coord_1|>, <|coord_2|>", [[1, 2]]),
     ("[1, x", [[1, "x"]]),
     ("[[220, ", [[220]]),
     ("nothing [here]", []),
     ("", [])],
)  # fmt: skip
def test_groups_of_numbers(text: str, groups: list[list[object]]) -> None:
    found = number_groups(text + " ", 0, len(text), COORD_TOKEN)
    assert [[e.value for e in g] for g in found] == groups
    assert all(
        text[e.start : e.end] in (str(e.value), f"{e.value:g}", f"<|coord_{e.value:g}|>") for g in found for e in g if e.kind != "word"
    )


def test_a_number_at_the_end_of_the_text_is_cut() -> None:
    assert [e.kind for e in number_groups("(1,2),(3,4", 0, 10, COORD_TOKEN)[0]] == ["number"] * 3 + ["cut"]


def test_descriptions_are_valid_unicode() -> None:
    assert clean("  a\ud83d\ude00 \ud83d b \udc80\n") == "a\U0001f600 \ufffd b \ufffd"
    assert clean("\t") == ""


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.style must be one of json_coord, json_digits, qwen2_box, json_unit, got 'coco'"):
        style_of("coco")
