from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from coordvlm.losses.query_contrast import QueryContrast, query_contrast
from coordvlm.utils.errors import ConfigError, ContractError
from tests.losses.frames import assert_is_a_term_on_frames, clips_batch, run


def make(**changes: Any) -> QueryContrast:
    return QueryContrast(**{"temperature": 0.5, "arms": ["fine"], **changes})


def test_it_is_a_term_on_frames() -> None:
    assert_is_a_term_on_frames(make(), clips=3, frames=2, frame_features=torch.randn(6, 5, dtype=torch.float64))


@pytest.mark.parametrize(("clips", "frames"), [(2, 2), (4, 3), (3, 5)])
def test_it_is_cross_entropy_over_the_clips_frame_by_frame(clips: int, frames: int) -> None:
    features = torch.randn(clips, frames, 7, dtype=torch.float64) * 3
    found, right = query_contrast(features, 0.2)
    for t in range(frames):
        other = t + 1 if t + 1 < frames else t - 1
        logits = functional.cosine_similarity(features[:, None, t], features[None, :, other], dim=-1) / 0.2
        assert torch.allclose(found[:, t], functional.cross_entropy(logits, torch.arange(clips), reduction="none"))
        assert right[:, t].tolist() == (logits.argmax(1) == torch.arange(clips)).tolist()


def test_values_by_hand() -> None:
    """Two clips at right angles: the right one at cosine 1, the other at 0."""
    features = torch.tensor([[[1.0, 0.0], [5.0, 0.0]], [[0.0, 2.0], [0.0, 1.0]]])
    found, right = query_contrast(features, 0.5)
    assert torch.allclose(found, torch.full((2, 2), math.log(1 + math.exp(-2))))
    assert right.all()


def test_clips_that_look_alike_cost_the_logarithm_of_their_number() -> None:
    found, right = query_contrast(torch.ones(5, 2, 3), 0.1)
    assert torch.allclose(found, torch.full((5, 2), math.log(5)))
    assert not right.any()  # a tie is not right


def test_one_clip_has_nothing_to_be_told_from() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    out = run(make(), clips_batch(1, 3), frame_features=features)
    out.sum.backward()
    assert float(out.sum.detach()) == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_the_order_of_clips_does_not_matter() -> None:
    features, order = torch.randn(4, 3, 6), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(query_contrast(features[order], 0.1)[0], query_contrast(features, 0.1)[0][order], atol=1e-6)


def test_clips_of_one_frame_are_refused() -> None:
    with pytest.raises(ContractError, match="at least 2"):
        run(make(), clips_batch(3, 1), frame_features=torch.randn(3, 4))


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), True])
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    with pytest.raises(ConfigError, match="query_contrast: temperature"):
        make(temperature=temperature)
