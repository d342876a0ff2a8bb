import math

import torch

from coordvlm.losses.gate import Gate, gate
from tests.batches import RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(Gate())


def test_by_hand() -> None:
    s = torch.tensor([[0.0, math.log(3.0)]])
    assert torch.allclose(gate(s, torch.tensor([math.log(8.0)])), torch.tensor([math.log(2.0)]))  # half the mass is text
    assert torch.allclose(gate(s, s.logsumexp(-1)), torch.zeros(1), atol=1e-7)


def test_it_ignores_which_bin_is_likely() -> None:
    s = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lse = torch.full((3,), 5.0, dtype=torch.float64)
    assert torch.allclose(gate(s, lse), gate(s.flip(-1), lse))


def test_it_logs_the_mass_on_coordinates() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    total, count = run(Gate(), logits, batch).logs["coord_mass"]
    p = logits.flatten(0, 1)[batch.slot_row].softmax(-1)[:, 20:].sum(-1)
    assert count == 24
    assert torch.allclose(total, p.sum())


def test_large_logits_do_not_overflow() -> None:
    s = torch.tensor([[900.0, 899.0]])
    assert torch.isfinite(gate(s, torch.tensor([1000.0]))).all()
