import math

import pytest
import torch

from coordvlm.losses.text_ce import TextCE
from tests.batches import RAGGED, make_batch, random_logits
from tests.losses.checks import assert_is_a_term, run


def test_it_is_a_term() -> None:
    assert_is_a_term(TextCE())


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    batch = make_batch(RAGGED)
    logits = torch.zeros_like(random_logits(batch))
    assert float(run(TextCE(), logits, batch).sum) == pytest.approx(len(batch.text_row) * math.log(30))
