import json

import numpy as np
import pytest
import torch

from coordvlm.losses.diou import DIoU, diou_loss
from tests.batches import RAGGED, make_batch, random_logits
from tests.data_root import peer_data
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(DIoU())


def test_published_values() -> None:
    cases = json.loads((peer_data() / "peer_cases" / "box_ops.json").read_text())["cases"]
    cases = [c for c in cases if c["op"] == "diou_loss" and "expected_error" not in c]  # that one is about `reduction`
    assert len(cases) == 7
    for case in cases:
        a, b = (torch.tensor(case[k], dtype=torch.float64).view(-1, 4).requires_grad_() for k in ("boxes1_xyxy", "boxes2_xyxy"))
        loss = diou_loss(a, b)
        value = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / max(len(loss), 1)}[case["reduction"]]
        np.testing.assert_allclose(value.detach().numpy(), case["expected"], atol=case.get("tolerance", 1e-9), err_msg=case["id"])
        value.sum().backward()
        assert a.grad is not None
        assert torch.isfinite(a.grad).all()


def test_only_the_prediction_is_put_in_order() -> None:
    true = torch.tensor([[0.2, 0.1, 0.6, 0.5]])
    assert torch.allclose(diou_loss(true[:, [2, 3, 0, 1]], true), torch.zeros(1), atol=1e-6)


@pytest.mark.parametrize("pred", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0.0, 0.0, 1.0, 1.0), (0.9, 0.2, 0.1, 0.2)])
def test_degenerate_predictions_give_finite_values_and_gradients(pred: tuple[float, ...]) -> None:
    box = torch.tensor([pred], requires_grad=True)
    loss = diou_loss(box, torch.tensor([[0.1, 0.1, 0.4, 0.4]]))
    loss.sum().backward()
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()
    assert 0 <= float(loss.detach()) <= 2


def test_boxes_that_do_not_touch_are_pulled_together() -> None:
    batch = make_batch(RAGGED)
    pred = torch.tensor([[0.0, 0.0, 0.1, 0.1]], requires_grad=True)
    diou_loss(pred, torch.tensor([[0.5, 0.5, 0.9, 0.9]])).sum().backward()
    assert pred.grad is not None
    assert bool((pred.grad[0, 2:] < 0).all())  # its right lower corner grows towards the other box
    assert run(DIoU(), random_logits(batch), batch).logs == {}
