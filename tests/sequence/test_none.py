from __future__ import annotations

import pytest

from coordvlm.contracts import TARGET, Prediction, Record
from coordvlm.sequence.none import NONE, as_grounding, says_none


@pytest.mark.parametrize(
    "text",
    [
        NONE, "None.", " none<|im_end|>", '"none"', "```json\n[]\n```<|im_end|>", "[]", "{}", '{"objects": []}', "null", "Not found.",
        "There are none.",
    ],
)
def test_what_means_that_nothing_is_there(text: str) -> None:
    assert says_none(text)


@pytest.mark.parametrize(
    "text",
    ["", "<|im_end|>", "none of them is red", "[1, 2", "[1, 2, 3, 4]", "nonesuch", "a cat", '{"objects": 3}', "none <|coord_4|>",
     "objects"],
)
def test_what_does_not(text: str) -> None:
    assert not says_none(text)


def answer(text: str, *records: Record, flags: tuple[str, ...] = ()) -> Prediction:
    return as_grounding(Prediction(1, (10, 10), records, raw_text=text, flags=frozenset(flags)))


def test_things_are_called_target_whatever_the_answer_calls_them() -> None:
    found = answer("x", Record("a red cat", (1, 2, 3, 4), 0.5, "ok"), Record("", None, 0.0, "bad_arity"))
    assert [r.desc for r in found.records] == [TARGET, TARGET]


def test_none_is_an_answer_and_neither_stray_nor_nothing() -> None:
    assert answer("none<|im_end|>", flags=("stray_text", "no_output")).flags == {"says_none"}
    assert answer("none", flags=("stray_text", "truncated")).flags == {"says_none", "truncated"}
    assert answer("hello", flags=("stray_text", "no_output")).flags == {"stray_text", "no_output"}
    assert answer("none", Record("x", (1, 2, 3, 4), 0.5, "ok"), flags=("stray_text",)).flags == {"stray_text"}
