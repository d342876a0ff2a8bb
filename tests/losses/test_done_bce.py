from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from coordvlm.contracts import ModelOutput
from coordvlm.losses.done_bce import DoneBCE, done_bce
from coordvlm.losses.slots import Slots
from tests.losses.question_checks import assert_is_a_question_term
from tests.questions import RAGGED, make_questions


def test_it_is_a_term() -> None:
    assert_is_a_question_term(DoneBCE())


def test_it_is_the_negative_log_probability_of_what_is_true() -> None:
    logit, done = np.array([0.0, 2.0, -3.0, 800.0, -800.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    expected = -np.where(done == 1, special.log_expit(logit), special.log_expit(-logit))
    x = torch.from_numpy(logit).requires_grad_()
    found = done_bce(x, torch.from_numpy(done))
    np.testing.assert_allclose(found.detach(), expected, atol=1e-12)
    found.sum().backward()
    np.testing.assert_allclose(x.grad, special.expit(logit) - done, atol=1e-12)


def test_only_questions_of_the_done_head_count() -> None:
    batch = make_questions(RAGGED)  # done: no, yes, not learned, not learned, no
    logit = torch.tensor([-1.0, -1.0, 5.0, 5.0, -2.0], requires_grad=True)
    out = DoneBCE()(Slots(ModelOutput(done_logit=logit), batch))
    out.sum.backward()
    assert logit.grad is not None
    assert logit.grad.bool().tolist() == [True, True, False, False, True]
    total, count = out.logs["done_acc"]
    assert (float(total), count) == (2, 3)
    assert float(out.sum.detach()) == pytest.approx(-special.log_expit([1.0, -1.0, 2.0]).sum())
