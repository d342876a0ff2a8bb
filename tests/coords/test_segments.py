from __future__ import annotations

import numpy as np
import torch
from scipy import special

from coordvlm.coords import segments


def test_segments_are_independent_of_each_other_and_of_their_order() -> None:
    rng = np.random.default_rng(0)
    segment, values = rng.integers(0, 5, 40), rng.normal(0, 10, 40)
    segment[segment == 3] = 4  # one is empty
    x = torch.from_numpy(values).requires_grad_()
    found = segments.logsumexp(x, torch.from_numpy(segment), 5, empty=-7.0)
    best = segments.argmax(torch.from_numpy(values), torch.from_numpy(segment), 5).tolist()
    assert float(found.detach()[3]) == -7.0
    assert best[3] == 40
    for s in (0, 1, 2, 4):
        mine = np.flatnonzero(segment == s)
        assert abs(float(found.detach()[s]) - special.logsumexp(values[mine])) < 1e-12
        assert best[s] == mine[values[mine].argmax()]
    found.sum().backward()
    expected = np.concatenate([special.softmax(values[segment == s]) for s in (0, 1, 2, 4)])
    np.testing.assert_allclose(np.concatenate([x.grad[segment == s] for s in (0, 1, 2, 4)]), expected, atol=1e-12)


def test_values_taken_out_have_no_gradient_and_do_no_harm() -> None:
    x = torch.tensor([1e30, 1.0, 2.0, -torch.inf], requires_grad=True)
    kept = x.masked_fill(torch.tensor([True, False, False, False]), -torch.inf)
    found = segments.logsumexp(kept, torch.tensor([0, 0, 0, 1]), 2, empty=0.0)
    assert found.tolist() == [np.float32(special.logsumexp([1, 2])), 0.0]
    found.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, [0, *special.softmax([1.0, 2.0]), 0], atol=1e-6)


def test_the_first_of_equals_is_chosen() -> None:
    assert segments.argmax(torch.tensor([1.0, 3.0, 3.0, 0.0]), torch.tensor([0, 0, 0, 1]), 2).tolist() == [1, 3]


def test_nothing_at_all() -> None:
    none = torch.zeros(0)
    assert segments.logsumexp(none, none.long(), 0, empty=0.0).shape == segments.argmax(none, none.long(), 0).shape == (0,)
