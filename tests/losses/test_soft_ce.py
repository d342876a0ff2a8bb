from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from coordvlm.losses.coord_ce_slice import coord_ce_slice
from coordvlm.losses.soft_ce import SoftCE, gaussian_target, soft_ce
from coordvlm.utils.errors import ConfigError
from tests.batches import RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run

Y = torch.tensor([0, 9, 4, 1])


def _logits(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_a_term(temperature: float) -> None:
    assert_is_a_term(SoftCE(sigma=1.5, radius=3, temperature=temperature))


def test_the_target_is_a_truncated_normal_curve() -> None:
    q = gaussian_target(Y, 10, sigma=1.5, radius=3, dtype=torch.float64).numpy()
    for row, y in zip(q, Y.tolist(), strict=True):
        curve = np.array([stats.norm.pdf(k, y, 1.5) if abs(k - y) <= 3 else 0.0 for k in range(10)])
        np.testing.assert_allclose(row, curve / curve.sum(), atol=1e-12)


def test_value_and_gradient_against_scipy() -> None:
    s, q = _logits(), gaussian_target(Y, 10, sigma=1.5, radius=3, dtype=torch.float64)
    loss = soft_ce(s, q, temperature=0.7)
    loss.sum().backward()
    scaled = s.detach().numpy() / 0.7
    np.testing.assert_allclose(loss.detach(), -(q.numpy() * special.log_softmax(scaled, axis=-1)).sum(-1), atol=1e-12)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad, (special.softmax(scaled, axis=-1) - q.numpy()) / 0.7, atol=1e-12)


def test_towards_sigma_zero_it_is_coord_ce_slice() -> None:
    s, exact = _logits(), coord_ce_slice(_logits(), Y)
    targets = [gaussian_target(Y, 10, sigma=sigma, radius=8, dtype=torch.float64) for sigma in (1, 0.4, 0.1, 1e-6, 1e-30)]
    gaps = [float((soft_ce(s, q, temperature=1.0) - exact).detach().abs().max()) for q in targets]
    assert gaps[0] > gaps[1] > 1e-3
    assert max(gaps[2:]) < 1e-12


def test_it_is_smallest_where_the_prediction_is_the_target() -> None:
    q = gaussian_target(Y, 10, sigma=1.5, radius=9, dtype=torch.float64)  # no bin at 0, whose log no model gives
    s = q.log().requires_grad_()
    loss = soft_ce(s, q, temperature=1.0)
    np.testing.assert_allclose(loss.detach(), stats.entropy(q.numpy(), axis=-1), atol=1e-12)
    loss.sum().backward()
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-12


def test_a_neighbouring_bin_costs_less_than_a_far_one() -> None:
    peaks = 5 * torch.eye(10, dtype=torch.float64)
    q = gaussian_target(torch.full((10,), 4), 10, sigma=1.0, radius=8, dtype=torch.float64)
    loss = soft_ce(peaks, q, temperature=1.0).tolist()
    assert loss[4] < loss[5] < loss[6] < loss[7]


def test_extreme_logits_stay_finite() -> None:
    s = torch.tensor([[1e4, -1e4] + [0.0] * 8], requires_grad=True)
    loss = soft_ce(s, gaussian_target(torch.tensor([1]), 10, sigma=2.0, radius=8), temperature=0.7)
    loss.sum().backward()
    assert s.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(s.grad).all()


def test_the_term_reads_its_settings() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch).detach()
    settings = [(2, 8, 1), (1, 8, 1), (2, 1, 1), (2, 8, 0.7)]
    values = {round(float(run(SoftCE(sigma=s, radius=r, temperature=t), logits, batch).sum), 6) for s, r, t in settings}
    assert len(values) == 4


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"sigma": 0.0}, r"soft_ce: sigma .* above 0, got 0\.0"), ({"sigma": -1}, "sigma"), ({"sigma": float("nan")}, "sigma .* nan"),
        ({"sigma": "2"}, "sigma"), ({"temperature": 0}, "temperature"), ({"temperature": float("inf")}, "temperature"),
        ({"radius": -1}, "radius .* at least 0, got -1"), ({"radius": 2.5}, "radius"), ({"radius": True}, "radius"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SoftCE(**{"sigma": 2.0, "radius": 8, "temperature": 1.0} | bad)
