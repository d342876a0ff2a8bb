import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coordvlm.coords import readout
from coordvlm.losses.coord_exp import READS, CoordExp
from coordvlm.utils.errors import ConfigError
from tests.batches import K9, K999, NUM_TEXT, RAGGED, make_batch, random_logits
from tests.losses.checks import decoder

COORD_IDS = torch.arange(NUM_TEXT, NUM_TEXT + 10)


def _naive(logits: Tensor, b: int, t: int) -> float:
    """Softmax over ten columns of the row before token t, then the mean of k / 9."""
    weights = [np.exp(float(logits.detach()[b, t - 1, 20 + k])) for k in range(10)]
    return sum(w * k / 9 for k, w in enumerate(weights)) / sum(weights)


def test_from_logits_is_the_naive_loop_for_pairs_and_for_flat_positions() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    flat = batch.slot_row + 1  # where the coordinate tokens themselves stand
    pairs = torch.stack((flat // logits.shape[1], flat % logits.shape[1]), -1)
    expected = torch.tensor([_naive(logits, b, t) for b, t in pairs.tolist()], dtype=torch.float64)
    decode = decoder()
    assert torch.allclose(decode.from_logits(logits, flat, COORD_IDS), expected, atol=1e-12)
    boxes = decode.from_logits(logits, pairs[batch.box_slot], COORD_IDS)
    assert boxes.shape == (6, 4)
    assert torch.allclose(boxes, expected[batch.box_slot], atol=1e-12)
    assert torch.allclose(decode.from_logits(logits, batch.slot_row, COORD_IDS, shifted=True), expected, atol=1e-12)


def test_from_logits_maps_bins_to_scattered_ids_and_carries_a_gradient() -> None:
    ids = torch.tensor([7, 3, 29, 11, 2, 0, 25, 19, 13, 5])
    logits = torch.zeros(1, 4, 30, requires_grad=True)
    coord = decoder().from_logits(logits, torch.tensor([[0, 2]]), ids)
    assert float(coord.detach()) == pytest.approx(0.5)
    coord.sum().backward()
    assert logits.grad is not None
    assert logits.grad.nonzero()[:, 1].unique().tolist() == [1]  # the row before token 2
    assert sorted(logits.grad.nonzero()[:, 2].tolist()) == sorted(ids.tolist())


@pytest.mark.parametrize(
    ("positions", "ids", "match"),
    [
        (torch.tensor([0]), COORD_IDS, r"\[1, 5\)"),  # nothing predicts the first token
        (torch.tensor([[0, 5]]), COORD_IDS, r"\[\[0, 5\]\]"),
        (torch.tensor([10]), COORD_IDS, r"\[\[2, 0\]\]"),
        (torch.tensor([-1]), COORD_IDS, r"-1"),
        (torch.zeros(2, 3, dtype=torch.long), COORD_IDS, r"\(2, 3\)"),
        (torch.tensor([1]), COORD_IDS[:9], "10 distinct"),
        (torch.tensor([1]), COORD_IDS.clamp(max=25), "10 distinct"),
        (torch.tensor([1]), COORD_IDS + 5, r"\[0, 30\)"),
    ],
)
def test_from_logits_refuses_what_it_would_misread(positions: Tensor, ids: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        decoder().from_logits(torch.zeros(2, 5, 30), positions, ids)


@pytest.mark.parametrize("read", READS)
def test_every_read_is_its_pure_function(read: str) -> None:
    s = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = K9.bin_values(torch.float64)
    expected = {
        "expectation": readout.expectation(s, values, 0.7),
        "argmax": readout.argmax(s, values),
        "straight_through": readout.straight_through(s, values, 0.7),
        "topk": readout.topk_expectation(s, values, 3, 0.7),
        "local": readout.local_expectation(s, values, 2, 0.7),
    }[read]
    got = decoder(read, 0.7)(s)
    assert torch.equal(got, expected)
    assert decoder(read)(s[:0]).shape == (0,)


@pytest.mark.parametrize("read", ["expectation", "local", "topk"])
def test_gradients_match_finite_differences(read: str) -> None:
    s = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(decoder(read, 0.7), (s,))


def test_casting_the_module_to_bf16_does_not_blur_the_bins() -> None:
    decode = CoordExp(K999, read="argmax", temperature=1.0, window=16, top_k=8)
    blurred = copy.deepcopy(decode).to(torch.bfloat16)
    s = torch.eye(1000)
    assert torch.equal(blurred(s), decode(s))
    assert len(blurred(s).unique()) == 1000
    assert not decode.state_dict()


@pytest.mark.parametrize(
    "bad", [{"read": "mean"}, {"temperature": 0.0}, {"temperature": float("nan")}, {"window": -1}, {"top_k": 0}, {"top_k": 11}]
)
def test_settings_that_cannot_mean_anything_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        CoordExp(K9, **{"read": "expectation", "temperature": 1.0, "window": 2, "top_k": 3} | bad)


def test_logits_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="11 columns"):
        decoder()(torch.zeros(2, 11))
