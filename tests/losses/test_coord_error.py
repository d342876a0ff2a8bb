import pytest
import torch

from coordvlm.losses.coord_error import CoordError
from tests.batches import K9, RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(CoordError(K9))


def test_it_logs_the_mean_error_in_image_sides_and_in_bins() -> None:
    batch = make_batch(RAGGED)
    logits = torch.zeros_like(random_logits(batch))  # uniform: everything decodes to the middle
    logs = run(CoordError(K9), logits, batch).logs
    expected = float((batch.slot_value.double() - 0.5).abs().mean())
    assert float(logs["coordexp_l1"][0]) / logs["coordexp_l1"][1] == pytest.approx(expected, abs=1e-9)
    assert float(logs["coordexp_l1_bins"][0]) / logs["coordexp_l1_bins"][1] == pytest.approx(9 * expected, abs=1e-8)
