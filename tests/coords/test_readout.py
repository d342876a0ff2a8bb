import numpy as np
import pytest
import torch
from torch import Tensor

from coordvlm.coords import readout
from coordvlm.coords.grid import Grid

K999 = Grid("k999", 1000, 999)
VALUES = K999.bin_values(torch.float64)


def _bump(*centres: float, sigma: float = 2.0, heights: tuple[float, ...] = (1.0,)) -> Tensor:
    k = torch.arange(1000, dtype=torch.float64)
    p = sum(h * torch.exp(-((k - c) ** 2) / (2 * sigma**2)) for c, h in zip(centres, heights, strict=True))
    return (p + 1e-300).log()[None]


def test_the_expectation_is_the_naive_loop() -> None:
    logits = torch.randn(3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    for temperature in (1.0, 0.7):
        for row, got in zip(logits.numpy(), readout.expectation(logits, VALUES, temperature), strict=True):
            weights = [np.exp(s / temperature) for s in row]
            assert float(got) == pytest.approx(sum(w * k / 999 for k, w in enumerate(weights)) / sum(weights), abs=1e-12)


def test_the_gradient_of_the_expectation_is_p_times_the_distance_to_it() -> None:
    logits = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    c = readout.expectation(logits, VALUES)
    c.sum().backward()
    expected = logits.detach().softmax(-1) * (VALUES - c.detach()[:, None])
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-15)


def test_two_modes_blend_in_the_expectation_and_not_in_the_local_one() -> None:
    two = _bump(200.3, 800.0, heights=(0.6, 0.4))
    assert float(readout.expectation(two, VALUES)) * 999 == pytest.approx(0.6 * 200.3 + 0.4 * 800, abs=0.1)
    assert float(readout.local_expectation(two, VALUES)) * 999 == pytest.approx(200.3, abs=1e-3)
    assert float(readout.argmax(two, VALUES)) * 999 == pytest.approx(200)


@pytest.mark.parametrize("centre", [0.0, 3.0, 996.0, 999.0])
def test_the_window_is_cut_at_the_edge_not_wrapped(centre: float) -> None:
    assert abs(float(readout.local_expectation(_bump(centre, sigma=0.5), VALUES)) * 999 - centre) < 0.5


def test_the_limits_of_the_local_and_topk_readouts() -> None:
    logits = torch.randn(5, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    full, mode = readout.expectation(logits, VALUES, 0.5), readout.argmax(logits, VALUES)
    assert torch.allclose(readout.local_expectation(logits, VALUES, 999, 0.5), full)
    assert torch.allclose(readout.local_expectation(logits, VALUES, 0), mode)
    assert torch.allclose(readout.topk_expectation(logits, VALUES, 1000, 0.5), full)
    assert torch.allclose(readout.topk_expectation(logits, VALUES, 1), mode)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    logits = torch.randn(3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    through = readout.straight_through(logits, VALUES, 0.7)
    assert torch.equal(through, readout.argmax(logits, VALUES))
    (got,) = torch.autograd.grad(through.sum(), logits)
    (expected,) = torch.autograd.grad(readout.expectation(logits, VALUES, 0.7).sum(), logits)
    assert torch.equal(got, expected)


def test_half_precision_scores_and_autocast_cost_no_bins() -> None:
    logits = _bump(*[777.0], sigma=3.0).clamp(min=-60)
    exact = float(readout.expectation(logits, VALUES)) * 999
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = readout.expectation(logits.float(), VALUES.float())
    assert got.dtype == torch.float32
    assert abs(float(got) * 999 - exact) < 1e-3  # a matrix product under autocast gives 776
    assert readout.expectation(logits.bfloat16(), VALUES.float()).dtype == torch.float32


def test_mass_near_counts_the_bins_around() -> None:
    p = torch.full((1, 1000), 1e-30, dtype=torch.float64)
    p[0, 10:15] = 0.1
    lse = torch.zeros(1, dtype=torch.float64)  # the other half of the mass lies outside the coordinates
    assert float(readout.mass_near(p.log(), lse, torch.tensor([12]), 2)) == pytest.approx(0.5)
    assert float(readout.mass_near(p.log(), lse, torch.tensor([12]), 1)) == pytest.approx(0.3)


def test_leading_axes_are_free() -> None:
    logits = torch.randn(2, 4, 1000)
    for read in (readout.expectation, readout.local_expectation, readout.argmax, readout.straight_through):
        assert read(logits, VALUES).shape == (2, 4)
    assert readout.expectation(logits[:0], VALUES).shape == (0, 4)
