import json

import numpy as np
import pytest
import torch

from coordvlm.losses.ciou import CIoU, ciou_loss
from coordvlm.losses.diou import diou_loss
from tests.batches import RAGGED, make_batch, random_logits
from tests.data_root import peer_data
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(CIoU(), gradcheck=False)  # alpha is held fixed: see test_boxes.py


def test_published_values() -> None:
    cases = json.loads((peer_data() / "peer_cases" / "box_ops.json").read_text())["cases"]
    cases = [c for c in cases if c["op"] == "ciou_loss" and "expected_error" not in c]  # that one is about `reduction`
    assert len(cases) == 7
    for case in cases:
        a, b = (torch.tensor(case[k], dtype=torch.float64).view(-1, 4).requires_grad_() for k in ("boxes1_xyxy", "boxes2_xyxy"))
        loss = ciou_loss(a, b)
        value = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / max(len(loss), 1)}[case["reduction"]]
        np.testing.assert_allclose(value.detach().numpy(), case["expected"], atol=case.get("tolerance", 1e-9), err_msg=case["id"])
        value.sum().backward()
        assert a.grad is not None
        assert torch.isfinite(a.grad).all()


def test_only_the_prediction_is_put_in_order() -> None:
    true = torch.tensor([[0.2, 0.1, 0.6, 0.5]])
    assert torch.allclose(ciou_loss(true[:, [2, 3, 0, 1]], true), torch.zeros(1), atol=1e-6)


@pytest.mark.parametrize("pred", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0.0, 0.0, 1.0, 1.0), (0.9, 0.2, 0.1, 0.2)])
def test_degenerate_predictions_give_finite_values_and_gradients(pred: tuple[float, ...]) -> None:
    box = torch.tensor([pred], requires_grad=True)
    loss = ciou_loss(box, torch.tensor([[0.1, 0.1, 0.4, 0.4]]))
    loss.sum().backward()
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()
    assert 0 <= float(loss.detach()) <= 3


def test_it_adds_the_aspect_ratio_to_diou() -> None:
    square, wide = torch.tensor([[0.3, 0.3, 0.7, 0.7]]), torch.tensor([[0.1, 0.4, 0.9, 0.6]])
    assert torch.allclose(ciou_loss(square * 0.5, square), diou_loss(square * 0.5, square))
    assert float(ciou_loss(wide, square)) > float(diou_loss(wide, square)) + 0.01


def test_it_logs_the_mean_iou() -> None:
    batch = make_batch(RAGGED)
    logits = torch.full_like(random_logits(batch), -1e4).detach()
    logits.flatten(0, 1)[batch.slot_row, 20 + batch.slot_bin] = 0
    total, count = run(CIoU(), logits, batch).logs["iou"]
    assert count == 6
    assert 0.6 < float(total) / count < 1
