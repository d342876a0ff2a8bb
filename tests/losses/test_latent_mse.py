from __future__ import annotations

import torch
from torch.nn import functional

from coordvlm.losses.latent_mse import LatentMSE, latent_mse
from tests.losses.frames import assert_is_a_term_on_frames, clips_batch, run


def test_it_is_a_term_on_frames() -> None:
    drawn, true = torch.randn(6, 4, 2, 3, dtype=torch.float64), torch.randn(6, 4, 2, 3, dtype=torch.float64)
    assert_is_a_term_on_frames(LatentMSE(), clips=2, frames=3, latent=drawn, latent_true=true)


def test_values_by_hand() -> None:
    drawn = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]], [[[1.0, 1.0]], [[1.0, 5.0]]]])  # 2 frames, 2 channels, 1 x 2 places
    true = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]], [[[1.0, 1.0]], [[1.0, 1.0]]]])
    assert latent_mse(drawn, true).tolist() == [5 / 4, 16 / 4]


def test_the_mean_over_frames_is_the_library_s() -> None:
    drawn, true = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    out = run(LatentMSE(), clips_batch(2, 2), latent=drawn, latent_true=true)
    assert torch.allclose(out.sum / 4, functional.mse_loss(drawn, true))
