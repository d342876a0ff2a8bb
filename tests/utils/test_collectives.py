"""One process: every sum is its own. Two real ones are in ``tests/e2e/test_ddp.py``."""

from __future__ import annotations

import torch

from coordvlm.utils import collectives


def test_alone_every_sum_is_its_own() -> None:
    assert not collectives.active()
    assert collectives.rank() == 0
    assert collectives.sum_counts({"text": 3, "slot": 0}) == {"text": 3, "slot": 0}
    value = torch.tensor(2.5)
    assert collectives.sum_tensors({"a": value})["a"] is value
    assert [collectives.any_rank(flag) for flag in (True, False)] == [True, False]
    assert collectives.gather("x") == ["x"]
