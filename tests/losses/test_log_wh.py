import math

import pytest
import torch

from coordvlm.losses.log_wh import LogWH, log_wh
from coordvlm.utils.errors import ConfigError
from tests.losses.checks import assert_is_a_term


def test_it_is_a_term() -> None:
    assert_is_a_term(LogWH(beta=0.05, floor=1e-3))


def test_by_hand() -> None:
    """Twice as wide, 2 % higher: ln 2 - beta / 2, and a square below beta."""
    true = torch.tensor([[0.1, 0.1, 0.3, 0.6]], dtype=torch.float64)
    pred = torch.tensor([[0.4, 0.2, 0.8, 0.71]], dtype=torch.float64)
    expected = math.log(2) - 0.025 + math.log(1.02) ** 2 / 0.1
    assert float(log_wh(pred, true, beta=0.05, floor=1e-3)) == pytest.approx(expected, abs=1e-12)


def test_it_does_not_care_where_the_box_lies_nor_how_large_it_is() -> None:
    true = torch.tensor([[0.1, 0.1, 0.2, 0.3], [0.2, 0.2, 0.4, 0.6]], dtype=torch.float64)
    pred = torch.tensor([[0.5, 0.6, 0.65, 0.7], [0.1, 0.2, 0.4, 0.4]], dtype=torch.float64)  # 1.5 x as wide, half as high
    a, b = log_wh(pred, true, beta=0.05, floor=1e-3).tolist()
    assert a == pytest.approx(b)


@pytest.mark.parametrize("pred", [(0.5, 0.5, 0.5, 0.5), (0.9, 0.8, 0.1, 0.2), (0.2, 0.3, 0.2 + 1e-9, 0.9)])
def test_degenerate_and_crossed_boxes_stay_finite_and_count_as_the_smallest(pred: tuple[float, ...]) -> None:
    box = torch.tensor([pred], requires_grad=True)
    loss = log_wh(box, torch.tensor([[0.1, 0.1, 0.4, 0.4]]), beta=0.05, floor=1e-3)
    loss.sum().backward()
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()
    assert float(box.grad[0, 0]) == 0
    assert math.log(300) - 0.025 <= float(loss.detach()) <= 2 * math.log(300)


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"floor": 0.0}, {"floor": -1e-3}])
def test_settings_that_cannot_mean_anything_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"log_wh: {next(iter(bad))}"):
        LogWH(**{"beta": 0.05, "floor": 1e-3} | bad)
