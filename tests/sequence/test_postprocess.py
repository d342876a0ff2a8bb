"""Boxes for a user: inside the image, with an area, counted where they are left out."""

from __future__ import annotations

import json

import pytest

from coordvlm.contracts import TARGET, Prediction, Record
from coordvlm.sequence.postprocess import finish

SIZE = (100, 50)
INSIDE = (10.0, 5.0, 20.0, 50.0)


def answer(*records: Record, phrase: str | None = "it", flags: tuple[str, ...] = (), min_score: float = 0.0):
    prediction = Prediction(1, SIZE, records, "raw", (1,), frozenset(flags), {"seconds": 0.5, "new_tokens": 4.0, "attempts": 3.0})
    return finish(prediction, phrase=phrase, min_score=min_score)


@pytest.mark.parametrize(
    ("box", "status", "kept"),
    [
        (INSIDE, "ok", (INSIDE, "ok")), (INSIDE, "repaired", (INSIDE, "repaired")),
        ((-5.0, 5.0, 20.0, 80.0), "out_of_range", ((0.0, 5.0, 20.0, 50.0), "clipped")),
        ((-5.0, 5.0, 20.0, 30.0), "ok", ((0.0, 5.0, 20.0, 30.0), "clipped")),
        ((120.0, 5.0, 150.0, 30.0), "out_of_range", "degenerate"), ((20.0, 5.0, 10.0, 30.0), "out_of_range", "degenerate"),
        ((10.0, 5.0, 10.0, 30.0), "degenerate", "degenerate"), (None, "bad_arity", "bad_arity"), (INSIDE, "missing_desc", "missing_desc"),
        ((float("nan"), 5.0, 10.0, 30.0), "ok", "degenerate"), ((0.0, 0.0, float("inf"), 30.0), "out_of_range", "degenerate"),
    ],
)  # fmt: skip
def test_a_record_is_kept_clipped_or_counted(box: tuple[float, ...] | None, status: str, kept: object) -> None:
    found = answer(Record(TARGET, box, 0.5, status))  # type: ignore[arg-type]
    if isinstance(kept, str):
        assert (found.boxes, found.rejected, found.kind) == ((), {kept: 1}, "nothing")
    else:
        assert [(f.box, f.status) for f in found.boxes] == [kept]
        assert (found.rejected, found.kind, found.box) == ({}, "boxes", kept[0])  # type: ignore[index]


def test_low_scores_are_left_out_and_counted() -> None:
    records = [Record(TARGET, INSIDE, s, "ok") for s in (0.2, 0.6, 0.59, float("nan"))]
    found = answer(*records, min_score=0.6)
    assert [f.score for f in found.boxes] == [0.6]
    assert found.rejected == {"low_score": 3}


@pytest.mark.parametrize(
    ("phrase", "flags", "kind"),
    [
        ("it", ("says_none",), "none"), ("it", ("no_output",), "nothing"), ("it", (), "nothing"), (None, (), "none"),
        (None, ("no_output",), "nothing"),
    ],
)  # fmt: skip
def test_no_box_can_mean_two_things(phrase: str | None, flags: tuple[str, ...], kind: str) -> None:
    assert answer(phrase=phrase, flags=flags).kind == kind


def test_json_holds_everything_strictly() -> None:
    found = answer(Record("cat", INSIDE, 0.5, "ok"), flags=("truncated", "retried"))
    line = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert line == {
        "phrase": "it", "size": [100, 50], "answer": "boxes", "boxes": [{"box": list(INSIDE), "score": 0.5, "desc": "cat", "status": "ok"}],
        "rejected": {}, "raw_text": "raw", "flags": ["retried", "truncated"], "attempts": 3, "seconds": 0.5, "new_tokens": 4,
    }  # fmt: skip
