import math

import torch
import torch.nn.functional as F

from coordvlm.losses.coord_ce import CoordCE, coord_ce
from coordvlm.losses.gate import gate
from tests.batches import NUM_TEXT, RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term


def test_it_is_a_term() -> None:
    assert_is_a_term(CoordCE())


def test_by_hand() -> None:
    s = torch.tensor([[0.0, math.log(3.0)]])  # and one other token with logit log 4: probabilities 1/8, 3/8, 4/8
    lse = torch.tensor([math.log(8.0)])
    assert torch.allclose(coord_ce(s, lse, torch.tensor([1])), torch.tensor([math.log(8 / 3)]))
    assert torch.allclose(coord_ce(s, lse, torch.tensor([0])), torch.tensor([math.log(8.0)]))


def test_value_and_gradient_are_those_of_cross_entropy_on_the_full_vocabulary() -> None:
    batch = make_batch(RAGGED)
    rows = random_logits(batch).flatten(0, 1).detach()[batch.slot_row].requires_grad_()
    ours = coord_ce(rows[:, NUM_TEXT:], rows.logsumexp(-1), batch.slot_bin)
    theirs = F.cross_entropy(rows, batch.slot_bin + NUM_TEXT, reduction="none")
    assert torch.allclose(ours, theirs, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(ours.sum(), rows), torch.autograd.grad(theirs.sum(), rows)
    assert torch.allclose(a, b, atol=1e-12)


def test_it_is_which_bin_plus_that_it_is_a_bin() -> None:
    batch = make_batch(RAGGED)
    rows = random_logits(batch).flatten(0, 1)[batch.slot_row]
    s, lse = rows[:, NUM_TEXT:], rows.logsumexp(-1)
    coord_ce_slice = F.cross_entropy(s, batch.slot_bin, reduction="none")
    assert torch.allclose(coord_ce(s, lse, batch.slot_bin), coord_ce_slice + gate(s, lse), atol=1e-12)
