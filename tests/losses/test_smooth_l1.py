import numpy as np
import pytest
import torch
from scipy import special

from coordvlm.losses.smooth_l1 import SmoothL1, smooth_l1
from coordvlm.utils.errors import ConfigError
from tests.losses.checks import assert_is_a_term


def test_it_is_a_term() -> None:
    assert_is_a_term(SmoothL1(beta=0.05))


def test_by_hand() -> None:
    """Errors 0.1, 0, 0.01, 0.05 at beta 0.05: 0.1 - 0.025, 0, 0.01^2 / 0.1, 0.025 (both branches agree at the border)."""
    pred, true = torch.tensor([[0.1, 0.2, 0.41, 0.55]]), torch.tensor([[0.2, 0.2, 0.4, 0.5]])
    assert torch.allclose(smooth_l1(pred, true, beta=0.05), torch.tensor([0.075 + 0.001 + 0.025]))


def test_it_is_hubers_function_over_its_border() -> None:
    error = np.random.default_rng(0).normal(0, 0.1, (50, 4))
    ours = smooth_l1(torch.from_numpy(error), torch.zeros(50, 4, dtype=torch.float64), beta=0.05)
    np.testing.assert_allclose(ours, special.huber(0.05, error).sum(-1) / 0.05, atol=1e-12)


def test_the_pull_fades_near_the_target_and_ignores_the_order_of_corners() -> None:
    pred = torch.tensor([[0.9, 0.1, 0.2, 0.425]], requires_grad=True)
    smooth_l1(pred, torch.tensor([[0.1, 0.1, 0.8, 0.4]]), beta=0.05).sum().backward()
    assert pred.grad is not None
    assert torch.allclose(pred.grad, torch.tensor([[1.0, 0.0, -1.0, 0.5]]))


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_a_border_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="smooth_l1: beta"):
        SmoothL1(beta=beta)
