from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.seeds import choose_seed, seed_everything, seed_rank


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_zero_is_a_seed() -> None:
    assert seed_everything(0) == 0
    first = draw()
    draw()
    assert seed_everything(0) == 0
    assert draw() == first
    seed_everything(1)
    assert draw() != first


def test_none_chooses_a_seed_that_can_be_used_again() -> None:
    used = seed_everything(None)
    first = draw()
    assert seed_everything(used) == used
    assert draw() == first
    assert len({choose_seed(None) for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3", True])
def test_other_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed="):
        seed_everything(seed)  # type: ignore[arg-type]


def test_ranks_draw_differently_and_the_first_one_as_alone() -> None:
    def draw(rank: int) -> float:
        seed_everything(3)
        seed_rank(3, rank)
        return torch.rand(1).item()

    seed_everything(3)
    alone = torch.rand(1).item()
    assert draw(0) == alone
    assert len({draw(rank) for rank in range(4)}) == 4
