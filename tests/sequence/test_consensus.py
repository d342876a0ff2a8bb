"""The vote against a brute force of its rule."""

from __future__ import annotations

import numpy as np
import pytest

from coordvlm.contracts import TARGET, Alternative, Prediction, Record
from coordvlm.sequence.consensus import alternative, consensus, is_answered

Box = tuple[float, float, float, float]
A, NEAR_A, B = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0), (50.0, 50.0, 60.0, 60.0)
NONE, SILENT = "none", "silent"


def answer(what: Box | str, score: float = 0.5) -> Prediction:
    if what == NONE:
        return Prediction(1, (100, 100), (), flags=frozenset({"says_none"}))
    if what == SILENT:
        return Prediction(1, (100, 100), (Record(TARGET, A, 0.9, "bad_arity"),), flags=frozenset({"truncated"}))
    assert not isinstance(what, str)
    records = (Record(TARGET, None, 0.1, "bad_arity"), Record(TARGET, what, score, "ok"), Record(TARGET, B, 1.0, "ok"))
    return Prediction(1, (100, 100), records)


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([A], 0), ([B, A, NEAR_A], 1), ([A, B], 0), ([B, B, A, A], 0), ([NEAR_A, A, A, B], 1),
        ([A, NONE, NONE], 1), ([NONE, A, A], 1), ([NONE, A], 0), ([A, NONE], 0), ([SILENT, NONE, A], 1), ([SILENT, SILENT], 0),
        ([SILENT, SILENT, B], 2), ([SILENT, NONE], 1), ([NONE, B, A, NEAR_A], 2), ([NONE, NONE, A, NEAR_A], 0),
    ],
)  # fmt: skip
def test_the_vote(answers: list[Box | str], chosen: int) -> None:
    assert consensus([answer(a) for a in answers]) == chosen


def iou(a: np.ndarray, b: np.ndarray) -> float:
    side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = float(side.clip(0).prod())
    return inter / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - inter)


def test_the_box_with_most_agreement_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = rng.uniform(0, 60, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (6, 2))], 1)
        want = max(range(6), key=lambda i: sum(iou(boxes[i], boxes[j]) for j in range(6) if j != i))
        assert consensus([answer(tuple(b.tolist())) for b in boxes]) == want


def test_what_counts_as_an_answer_and_what_is_kept_of_it() -> None:
    assert [is_answered(answer(a)) for a in (A, NONE, SILENT)] == [True, True, False]
    assert alternative(answer(A, 0.25)) == Alternative(A, 0.25, False)
    assert alternative(answer(NONE)) == Alternative(None, 0.0, True)
    assert alternative(answer(SILENT)) == Alternative(None, 0.0, False)
