from dataclasses import replace

import torch

from coordvlm.losses.l1 import L1, l1
from coordvlm.losses.slots import Slots
from tests.batches import RAGGED, make_batch, output_of, random_logits
from tests.losses.checks import assert_is_a_term, decoder, run


def test_it_is_a_term() -> None:
    assert_is_a_term(L1())


def test_by_hand() -> None:
    pred, true = torch.tensor([[0.1, 0.2, 0.5, 0.9]]), torch.tensor([[0.2, 0.2, 0.4, 0.5]])
    assert torch.allclose(l1(pred, true), torch.tensor([0.6]))


def test_crossed_corners_are_pulled_to_their_own_targets() -> None:
    pred = torch.tensor([[0.9, 0.1, 0.2, 0.4]], requires_grad=True)
    l1(pred, torch.tensor([[0.1, 0.1, 0.8, 0.4]])).sum().backward()
    assert pred.grad is not None
    assert pred.grad.tolist() == [[1, 0, -1, 0]]


def test_the_target_is_not_quantised() -> None:
    """All mass on the right bins still costs the rounding of those bins."""
    batch = make_batch(RAGGED)
    logits = torch.full_like(random_logits(batch), -1e4).detach()
    logits.flatten(0, 1)[batch.slot_row, 20 + batch.slot_bin] = 0
    expected = (batch.slot_bin / 9 - batch.slot_value).abs().sum()
    assert float(expected) > 0.1
    assert torch.allclose(run(L1(), logits, batch).sum.float(), expected)


def test_boxes_read_their_own_slots_whatever_their_order() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = replace(batch, box_slot=batch.box_slot[order], box_sample=batch.box_sample[order])
    a = L1()(Slots(output_of(logits, batch), batch, decoder())).per_item
    b = L1()(Slots(output_of(logits, batch), shuffled, decoder())).per_item
    assert torch.equal(a[order], b)
