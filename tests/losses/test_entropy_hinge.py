from __future__ import annotations

from typing import Any

import pytest
import torch

from coordvlm.losses.entropy_hinge import EntropyHinge, entropy_hinge
from coordvlm.utils.errors import ConfigError
from tests.losses.frames import assert_is_a_term_on_frames, clips_batch, run


def make(**changes: Any) -> EntropyHinge:
    return EntropyHinge(**{"threshold": 0.5, "arms": ["fine"], **changes})


def test_it_is_a_term_on_frames() -> None:
    entropy = torch.tensor([0.1, 0.9, 0.7, 0.3, 0.55, 1.0], dtype=torch.float64)
    assert_is_a_term_on_frames(make(), clips=3, frames=2, frame_entropy=entropy)


def test_values_and_gradients_by_hand() -> None:
    entropy = torch.tensor([0.0, 0.49, 0.75, 1.0], requires_grad=True)
    loss = entropy_hinge(entropy, 0.5)
    assert loss.tolist() == [0.0, 0.0, 0.25, 0.5]
    loss.sum().backward()
    assert entropy.grad is not None
    assert entropy.grad.tolist() == [0, 0, 1, 1]


def test_the_mean_entropy_is_logged_whatever_the_threshold() -> None:
    out = run(make(threshold=0.9), clips_batch(1, 2), frame_entropy=torch.tensor([0.25, 0.75]))
    total, number = out.logs["entropy"]
    assert (float(out.sum), float(total), number) == (0.0, 1.0, 2)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan"), True, "0.5", None])
def test_a_threshold_out_of_range_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="entropy_hinge: threshold"):
        make(threshold=threshold)


@pytest.mark.parametrize("arms", [[], ["both"], "fine", ["fine", "fine"]])
def test_arms_that_are_none_are_refused(arms: Any) -> None:
    with pytest.raises(ConfigError, match="entropy_hinge: arms"):
        make(arms=arms)
