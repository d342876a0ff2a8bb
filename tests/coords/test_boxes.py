import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from coordvlm.coords import boxes
from tests.data_root import peer_data

OPS = {"iou": boxes.pairwise_iou, "giou": boxes.pairwise_giou, "diou": boxes.pairwise_diou, "ciou": boxes.pairwise_ciou}
PREDICTED = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.6, 0.6, 0.9, 0.8], [0.2, 0.2, 0.3, 0.9]], dtype=torch.float64)
TRUE = torch.tensor([[0.2, 0.3, 0.9, 0.5], [0.1, 0.1, 0.2, 0.7], [0.1, 0.4, 0.9, 0.6]], dtype=torch.float64)


def _cases(kind: str) -> list[dict[str, Any]]:
    return json.loads((peer_data() / "peer_cases" / "box_ops.json").read_text())[kind]


def _pairwise(case: dict[str, Any], op: str, dtype: torch.dtype) -> np.ndarray:
    return OPS[op](torch.tensor(case["boxes1_xyxy"], dtype=dtype), torch.tensor(case["boxes2_xyxy"], dtype=dtype)).numpy()


@pytest.mark.parametrize("op", OPS)
def test_published_pairwise_values(op: str) -> None:
    cases = [c for c in _cases("cases") if c["op"] == f"pairwise_{op}"]
    assert len(cases) >= 3
    for case in cases:
        np.testing.assert_allclose(_pairwise(case, op, torch.float64), case["expected_float64"], atol=1e-9, err_msg=case["id"])
        np.testing.assert_allclose(_pairwise(case, op, torch.float32), case["expected"], atol=case["tolerance"], err_msg=case["id"])
        if "int16" in case["note"]:
            for dtype in (torch.int16, torch.int32, torch.int64):
                np.testing.assert_allclose(_pairwise(case, op, dtype), case["expected"], atol=case["tolerance"], err_msg=case["id"])


@pytest.mark.parametrize("op", OPS)
def test_published_means_over_matched_boxes(op: str) -> None:
    cases = [c for c in _cases("cases") if c["op"] == f"mean_of_matched_{op}"]
    assert cases
    for case in cases:
        a, b = (torch.tensor(case[key], dtype=torch.float64) for key in ("boxes1_xyxy", "boxes2_xyxy"))
        assert getattr(boxes, op)(a, b).mean().numpy() == pytest.approx(case["expected"], abs=case["tolerance"])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_tiny_and_huge_boxes(op: str, dtype: torch.dtype) -> None:
    for case in _cases("derived_cases"):
        got, expected = _pairwise(case, op, dtype), case["expected"][op]
        assert np.isfinite(got).all(), case["id"]
        if expected is not None:
            np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=case["id"])


def test_published_areas_also_in_half_precision() -> None:
    cases = [c for c in _cases("cases") if c["op"] == "box_area"]
    assert len(cases) == 3
    for case in cases:
        dtype = torch.float16 if case.get("dtype") == "float16" else torch.float64
        got = boxes.area(torch.tensor(case["boxes"], dtype=dtype)).numpy()
        np.testing.assert_allclose(got, case["expected"], atol=case.get("tolerance", 1e-9), err_msg=case["id"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_the_area_of_a_large_box_does_not_leave_a_narrow_type(dtype: torch.dtype) -> None:
    box = torch.tensor([0, 0, 1024, 1024], dtype=dtype)
    assert boxes.area(box) == 1024**2
    assert boxes.iou(box, box) == 1


def test_crossed_corners_have_no_area_until_they_are_ordered() -> None:
    crossed = torch.tensor([0.5, 0.1, 0.2, 0.4])
    assert boxes.area(crossed) == 0
    assert boxes.order_corners(crossed).tolist() == pytest.approx([0.2, 0.1, 0.5, 0.4])


def test_ordering_hands_each_gradient_back_to_its_own_corner() -> None:
    crossed = torch.tensor([0.5, 0.1, 0.2, 0.4], requires_grad=True)
    boxes.order_corners(crossed)[0].backward()
    assert crossed.grad is not None
    assert crossed.grad.tolist() == [0, 0, 1, 0]


def test_iou_agrees_with_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = np.sort(rng.integers(0, 40, (2, 2, 2)), 1).reshape(2, 4)  # two boxes (low xy, high xy)
        masks = np.zeros((2, 40, 40), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
            mask[y1:y2, x1:x2] = True
        union = (masks[0] | masks[1]).sum()
        expected = (masks[0] & masks[1]).sum() / union if union else 0.0
        assert float(boxes.iou(*torch.tensor(corners))) == pytest.approx(expected, abs=1e-6)


def test_giou_has_the_gradient_of_finite_differences() -> None:
    a = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.6, 0.6, 0.9, 0.8]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.3, 0.3, 0.8, 0.9], [0.1, 0.1, 0.3, 0.3]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: boxes.giou(x, b), (a,))


def test_diou_has_the_gradient_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda x: boxes.diou(x, TRUE), (PREDICTED.clone().requires_grad_(),))


def _ciou_by_hand(a: np.ndarray, b: np.ndarray, alpha: float | None = None) -> tuple[float, float]:
    """CIoU and alpha of one pair of boxes with area, step by step as the paper defines them."""
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    iou = inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
    rho2 = ((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2) ** 2 + ((a[1] + a[3]) / 2 - (b[1] + b[3]) / 2) ** 2
    c2 = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    v = 4 / np.pi**2 * (np.arctan((b[2] - b[0]) / (b[3] - b[1])) - np.arctan((a[2] - a[0]) / (a[3] - a[1]))) ** 2
    alpha = v / (1 - iou + v) if alpha is None else alpha
    return iou - rho2 / c2 - alpha * v, alpha


def test_ciou_is_the_papers_and_its_gradient_holds_alpha_fixed() -> None:
    pred = PREDICTED.clone().requires_grad_()
    value = boxes.ciou(pred, TRUE)
    value.sum().backward()
    assert pred.grad is not None
    for i, (a, b) in enumerate(zip(PREDICTED.numpy(), TRUE.numpy(), strict=True)):
        expected, alpha = _ciou_by_hand(a, b)
        assert float(value[i].detach()) == pytest.approx(expected, abs=1e-12)
        assert alpha > 1e-3  # else holding it fixed would not show
        steps = np.eye(4) * 1e-6
        slope = [(_ciou_by_hand(a + s, b, alpha)[0] - _ciou_by_hand(a - s, b, alpha)[0]) / 2e-6 for s in steps]
        np.testing.assert_allclose(pred.grad[i], slope, atol=1e-7)


@pytest.mark.parametrize("op", [boxes.iou, boxes.giou, boxes.diou, boxes.ciou])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_without_area_have_finite_gradients(op: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    thin = [(0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0.2, 0.3, 0.9, 0.3), (0.1, 0.1, 0.1 + 1e-30, 0.1 + 1e-30), (0.3, 0.3, 0.6, 0.8)]
    pred = torch.tensor(thin, dtype=dtype)[:, None].repeat(1, len(thin), 1).requires_grad_()
    value = op(pred, torch.tensor(thin, dtype=dtype))
    value.sum().backward()
    assert pred.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize("op", [boxes.iou, boxes.giou, boxes.diou, boxes.ciou])
def test_a_nan_box_is_not_passed_off_as_a_miss(op: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert op(torch.tensor([0.0, float("nan"), 1.0, 1.0]), box).isnan()


def test_a_wrong_last_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        boxes.iou(torch.zeros(3, 5), torch.zeros(3, 5))
