import math

import torch
import torch.nn.functional as F

from coordvlm.losses.coord_ce import coord_ce
from coordvlm.losses.coord_ce_slice import CoordCESlice, coord_ce_slice
from coordvlm.losses.gate import gate
from tests.batches import NUM_TEXT, RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term


def test_it_is_a_term() -> None:
    assert_is_a_term(CoordCESlice())


def test_by_hand() -> None:
    s = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4, 3/4 among bins
    assert torch.allclose(coord_ce_slice(s, torch.tensor([1])), torch.tensor([math.log(4 / 3)]))


def test_value_and_gradient_are_those_of_cross_entropy_among_bins() -> None:
    s = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.tensor([0, 9, 4, 4, 2])
    ours, theirs = coord_ce_slice(s, y), F.cross_entropy(s, y, reduction="none")
    assert torch.allclose(ours, theirs, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(ours.sum(), s), torch.autograd.grad(theirs.sum(), s)
    assert torch.allclose(a, b, atol=1e-12)


def test_with_gate_it_is_coord_ce() -> None:
    batch = make_batch(RAGGED)
    rows = random_logits(batch).flatten(0, 1)[batch.slot_row]
    s, lse = rows[:, NUM_TEXT:], rows.logsumexp(-1)
    assert torch.allclose(coord_ce_slice(s, batch.slot_bin) + gate(s, lse), coord_ce(s, lse, batch.slot_bin), atol=1e-12)


def test_extreme_logits_stay_finite() -> None:
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = coord_ce_slice(s, torch.tensor([1]))
    loss.sum().backward()
    assert float(loss.detach()) == 2e4
    assert s.grad is not None
    assert s.grad.tolist() == [[1, -1, 0]]
