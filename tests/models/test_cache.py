from __future__ import annotations

import torch

from coordvlm.models.cache import RowCache


def states(b: int, t: int, value: float) -> torch.Tensor:
    return torch.full((b, 2, t, 3), value)


def test_each_row_is_written_at_its_own_place_and_sees_up_to_there() -> None:
    cache = RowCache(6)
    k, _ = cache.update(states(2, 3, 1.0), states(2, 3, 1.0), 0)
    assert k.shape[2] == 3  # the prefill attends to itself only
    mask = cache.step(torch.tensor([1, 3]), 4)  # row 0 has a prompt of one token, row 1 of three
    assert mask[:, 0, 0].tolist() == [[True, True, False, False], [True, True, True, True]]
    k, v = cache.update(states(2, 1, 7.0), states(2, 1, 8.0), 0)
    assert k[:, 0, :, 0].tolist() == [[1, 7, 1, 0], [1, 1, 1, 7]]
    assert v[:, 1, :, 2].tolist() == [[1, 8, 1, 0], [1, 1, 1, 8]]


def test_rows_that_leave_take_their_cells_with_them_in_every_layer() -> None:
    cache = RowCache(4)
    for layer in range(2):
        x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 3) + 10 * layer
        cache.update(x, -x, layer)
    cache.keep(torch.tensor([0, 2]))
    cache.step(torch.tensor([2, 2]), 3)
    for layer in range(2):
        k, v = cache.update(states(2, 1, 9.0), states(2, 1, 9.0), layer)
        assert k[:, 0, :2, 0].tolist() == [[10 * layer] * 2, [2 + 10 * layer] * 2]
        assert v[:, 0, 0, 0].tolist() == [-10 * layer, -2 - 10 * layer]
