from __future__ import annotations

import numpy as np
import pytest

from coordvlm.losses.coord_error import CoordError
from coordvlm.losses.point_error import PointError
from tests.batches import K9
from tests.losses.checks import decoder
from tests.losses.question_checks import assert_is_a_question_term, run
from tests.questions import RAGGED, answers_of, make_questions, random_states


def test_it_is_a_term() -> None:
    assert_is_a_question_term(PointError(K9))


def test_it_adds_the_distance_of_the_point_to_the_error_of_its_coordinates() -> None:
    batch = make_questions(RAGGED)
    states = random_states(batch)
    found, plain = run(PointError(K9), states, batch), run(CoordError(K9), states, batch)
    assert float(found.sum.detach()) == float(plain.sum.detach())
    assert set(found.logs) - set(plain.logs) == {"point_px384"}
    coords = decoder()(answers_of(states, batch).slot_logits).detach().numpy().reshape(3, 2)
    true = np.array([RAGGED[i].unmarked[0] for i in (0, 2, 4)])
    total, count = found.logs["point_px384"]
    assert count == 3
    assert float(total) == pytest.approx(np.linalg.norm(coords - true, axis=1).sum() * 384, rel=1e-5)
