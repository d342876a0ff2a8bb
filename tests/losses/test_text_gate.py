import math

import numpy as np
import pytest
import torch

from coordvlm.losses.gate import gate
from coordvlm.losses.text_gate import TextGate, log1mexp, text_gate
from tests.batches import NUM_TEXT, RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(TextGate())


def test_by_hand() -> None:
    """Coordinates hold 3/8 of the mass, text 5/8."""
    assert torch.allclose(text_gate(torch.tensor([math.log(8.0)]), torch.tensor([math.log(3.0)])), torch.tensor([math.log(8 / 5)]))


def test_value_and_gradient_are_those_of_the_mass_on_text() -> None:
    batch = make_batch(RAGGED)
    rows = random_logits(batch).flatten(0, 1).detach()[batch.text_row].requires_grad_()
    ours = text_gate(rows.logsumexp(-1), rows[:, NUM_TEXT:].logsumexp(-1))
    theirs = gate(rows[:, :NUM_TEXT], rows.logsumexp(-1))  # minus the log of the mass on what is no coordinate
    assert torch.allclose(ours, theirs, atol=1e-10)
    (a,), (b,) = torch.autograd.grad(ours.sum(), rows), torch.autograd.grad(theirs.sum(), rows)
    assert torch.allclose(a, b, atol=1e-10)


def test_log1mexp_is_accurate_at_both_ends() -> None:
    """References: log(1 - e^x) = log(-x) + x/2 - ... near 0, and -e^x far out, where the plain formula has no digit left."""
    near = torch.tensor([-1e-6, -1e-5, -1e-3])
    np.testing.assert_allclose(log1mexp(near), np.log(-np.expm1(near.double().numpy())), rtol=1e-6)
    far = torch.tensor([-20.0, -50.0, -80.0])
    np.testing.assert_allclose(log1mexp(far), -np.exp(far.double().numpy()), rtol=1e-6)
    x = torch.tensor([-1e-3, -0.5, -math.log(2), -0.7, -5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, (x,), eps=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("text", "coord"), [(1e4, -1e4), (-1e4, 1e4), (0.0, 0.0), (-30.0, 30.0), (1e4, 1e4), (-1e4, -1e4), (3.0, 11.0)])
def test_extreme_logits_stay_finite_and_do_not_push_the_wrong_way(dtype: torch.dtype, text: float, coord: float) -> None:
    z = torch.tensor([[text] * 20 + [coord] * 1000], dtype=dtype, requires_grad=True)
    loss = text_gate(z.logsumexp(-1), z[:, 20:].logsumexp(-1))
    loss.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(loss).all()
    assert float(loss.detach()) >= 0
    assert torch.isfinite(z.grad).all()
    assert z.grad[0, :20].sum() <= 1e-3
    assert z.grad[0, 20:].sum() >= -1e-3
    assert z.grad.abs().sum() <= 2.5


def test_a_mass_of_text_too_small_to_be_told_from_zero_costs_what_can_be_told() -> None:
    loss = text_gate(torch.tensor([30.0, 30.0]), torch.tensor([30.0, 30.000004]))  # rounding may put the part above the whole
    assert loss.tolist() == pytest.approx([-math.log(30 * 2**-23)] * 2, abs=1e-5)
    assert float(text_gate(torch.tensor([30.0]), torch.tensor([29.99999]))) < 12


def test_float32_gradients_are_those_of_float64_until_rounding_eats_the_mass() -> None:
    """Text holds 6e-3 to 1e-6 of the mass at lse = 37, where one rounding is 4e-6. Below that the gradient fades to 0."""
    gap = torch.linspace(1, 10, 200, dtype=torch.float64)[:, None]
    z = torch.randn(200, 1020, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 30
    z[:, :20] -= gap
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = z.to(dtype).requires_grad_()
        text_gate(x.logsumexp(-1), x[:, 20:].logsumexp(-1)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.double())
    error = (gradients[0] - gradients[1]).abs().sum(-1)
    assert float(error[:100].max()) < 0.1  # of 2; mass above 7e-5
    assert bool((gradients[0][:, 20:].sum(-1) >= 0).all())
    assert float(gradients[0].abs().sum(-1).max()) < 3


def test_without_a_coordinate_column_it_is_zero() -> None:
    assert float(text_gate(torch.tensor([2.0]), torch.tensor([float("-inf")]))) == 0


def test_the_end_of_turn_is_left_out_and_not_counted() -> None:
    batch = make_batch(RAGGED)
    assert int(batch.text_is_end.sum()) == 4
    assert TextGate().count(batch) == 24
    logits = random_logits(batch)
    out = run(TextGate(), logits, batch)
    assert out.per_item is not None
    assert not out.per_item[batch.text_is_end].any()
    assert bool((out.per_item[~batch.text_is_end] > 0).all())
    out.sum.backward()
    assert logits.grad is not None
    assert not logits.grad.flatten(0, 1)[batch.text_row[batch.text_is_end]].any()
