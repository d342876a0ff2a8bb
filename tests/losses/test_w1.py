from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from coordvlm.coords import readout
from coordvlm.losses.soft_ce import gaussian_target
from coordvlm.losses.w1 import W1, w1
from coordvlm.utils.errors import ConfigError
from tests.batches import RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run

DELTA: dict[str, Any] = {"target": "delta", "sigma": 2.0, "radius": 8, "temperature": 1.0}
GAUSSIAN = DELTA | {"target": "gaussian"}


def _p(rows: int, bins: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(rows, bins, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3).softmax(-1)


@pytest.mark.parametrize("settings", [DELTA, GAUSSIAN, GAUSSIAN | {"temperature": 0.7, "sigma": 1.0}])
def test_it_is_a_term(settings: dict[str, Any]) -> None:
    assert_is_a_term(W1(**settings))


@pytest.mark.parametrize("bins", [2, 10, 1000])
def test_values_are_scipys(bins: int) -> None:
    p, q = _p(8, bins), _p(8, bins, seed=1)
    k = np.arange(bins)
    expected = [stats.wasserstein_distance(k, k, a, b) for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(w1(p, q), expected, rtol=1e-9)
    np.testing.assert_allclose(w1(p.float(), q.float()), expected, rtol=1e-4)  # float32 sums of 1000 bins


def test_between_two_peaks_it_is_the_bin_gap() -> None:
    peaks = torch.eye(10)
    assert torch.equal(w1(peaks[[3, 3, 0, 9]], peaks[[3, 7, 9, 8]]), torch.tensor([0.0, 4.0, 9.0, 1.0]))


def test_against_a_peak_it_is_the_mean_distance_and_bounds_the_error_of_the_expectation() -> None:
    p, y = _p(50, 10), torch.randint(0, 10, (50,), generator=torch.Generator().manual_seed(0))
    k = torch.arange(10, dtype=torch.float64)
    distance = w1(p, torch.eye(10, dtype=torch.float64)[y])
    assert torch.allclose(distance, (p * (k - y[:, None]).abs()).sum(-1))
    error = ((p * k).sum(-1) - y).abs()
    assert bool((error <= distance + 1e-12).all())
    assert bool((error < distance - 0.1).any())  # two modes around y: the mean is right, the distribution is not


def test_the_expectation_has_the_gradient_of_the_specification() -> None:
    s = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    v = torch.arange(10, dtype=torch.float64) / 9
    mean = readout.expectation(s, v)
    mean.sum().backward()
    assert s.grad is not None
    assert torch.allclose(s.grad, s.detach().softmax(-1) * (v - mean.detach()[:, None]), atol=1e-14)


def test_gradient_against_a_peak() -> None:
    """W1 = sum_k p_k |k - y|, so dW1 / ds_k = p_k (|k - y| - W1)."""
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    out = run(W1(**DELTA), logits, batch)
    out.sum.backward()
    p = logits.detach().flatten(0, 1)[batch.slot_row, 20:].softmax(-1)
    far = (torch.arange(10) - batch.slot_bin[:, None]).abs()
    assert logits.grad is not None
    expected = p * (far - (p * far).sum(-1, keepdim=True))
    assert torch.allclose(logits.grad.flatten(0, 1)[batch.slot_row, 20:], expected, atol=1e-12)


def test_against_the_gaussian_it_is_zero_where_the_prediction_is_the_gaussian() -> None:
    y = torch.tensor([0, 5, 9])
    q = gaussian_target(y, 10, sigma=1.5, radius=8, dtype=torch.float64)
    assert w1(q, q).abs().max() == 0
    assert w1(torch.eye(10, dtype=torch.float64)[y], q).min() > 0.3  # a perfect peak is too sharp for it


def test_the_temperature_divides_the_logits() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch).detach()
    hot, cold = run(W1(**DELTA | {"temperature": 0.5}), logits, batch), run(W1(**DELTA), logits * 2, batch)
    assert torch.allclose(hot.sum, cold.sum)


def test_extreme_logits_stay_finite() -> None:
    s = torch.full((2, 1000), -1e4)
    s[:, 3] = 1e4
    s.requires_grad_()
    loss = w1(s.softmax(-1), torch.eye(1000)[[3, 999]])
    loss.sum().backward()
    assert loss.tolist() == [0, 996]
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("bad", [{"target": "uniform"}, {"sigma": 0}, {"radius": -1}, {"temperature": 0.0}])
def test_settings_that_cannot_mean_anything_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"w1: {next(iter(bad))}"):
        W1(**DELTA | bad)
