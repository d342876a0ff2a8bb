"""A prediction of the loop as a user sees it."""

from __future__ import annotations

import json

import pytest

from coordvlm.contracts import Prediction, Record
from coordvlm.sequence.count_answer import finish_count


def prediction(*statuses: str, ended: str | None) -> Prediction:
    records = tuple(Record("dot", None, 0.0, status, point_px=(float(i), 2.5)) for i, status in enumerate(statuses))
    return Prediction("a", (40, 30), records, flags=frozenset({ended} if ended else ()), timing={"seconds": 1.5})


def test_points_and_repeated_points_are_apart_and_keep_their_step() -> None:
    answer = finish_count(prediction("ok", "repeated", "ok", ended="finished"), phrase="red dot", p_done=[0.1, 0.2, 0.3, 0.9])
    assert (answer.count, answer.finished, answer.p_done) == (2, True, 0.9)
    assert json.loads(json.dumps(answer.to_json(), allow_nan=False)) == {
        "phrase": "red dot", "size": [40, 30], "count": 2, "ended": "finished",
        "points": [{"point": [0.0, 2.5], "p_done": 0.1, "step": 1}, {"point": [2.0, 2.5], "p_done": 0.3, "step": 3}],
        "repeated": [{"point": [1.0, 2.5], "p_done": 0.2, "step": 2}], "p_done": 0.9, "seconds": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("ended", ["repeated", "step_limit"])
def test_a_count_that_was_stopped_says_so(ended: str) -> None:
    answer = finish_count(prediction("ok", "repeated", ended=ended), phrase="x", p_done=[0.1, 0.2])
    assert (answer.count, answer.ended, answer.finished, answer.p_done) == (1, ended, False, None)


def test_nothing_to_count_is_a_count() -> None:
    answer = finish_count(prediction(ended="finished"), phrase="x", p_done=[0.99])
    assert (answer.count, answer.finished, answer.points) == (0, True, ())


@pytest.mark.parametrize(("ended", "p_done"), [(None, [0.1]), ("finished", [0.1]), ("step_limit", [0.1, 0.2])])
def test_a_loop_that_was_not_watched_is_refused(ended: str | None, p_done: list[float]) -> None:
    with pytest.raises(ValueError, match="ends in one way and has a probability per step"):
        finish_count(prediction("ok", ended=ended), phrase="x", p_done=p_done)
