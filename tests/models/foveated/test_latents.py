"""What is drawn of frames: encoders, the head, and the way into the model's output."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from coordvlm.losses.latent_mse import LatentMSE
from coordvlm.losses.slots import Slots
from coordvlm.models.foveated.latents import FixedEncoder, KLEncoder, LatentHead, Latents
from coordvlm.utils.errors import ConfigError
from tests.clips import SIZE, WIDTH, tiny_clips

NEEDS = {"text_nll", "latent", "latent_true"}


def latents(**changes: Any) -> Latents:
    given = {"encoder": FixedEncoder(channels=4, size=6, seed=0), "frame_size": SIZE, "channels": 8, "blocks": 2, "seed": 0}
    return Latents(WIDTH, **{**given, **changes})


def test_fixed_latents_are_mean_colours_turned_without_stretching() -> None:
    encoder = FixedEncoder(channels=5, size=3, seed=1)
    frames = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    found = encoder(frames)
    means = torch.stack([  # by hand: 4 x 4 px per place
        torch.stack([frames[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].float().mean((2, 3)) for j in range(3)], -1) for i in range(3)
    ], -2)
    means = means / 127.5 - 1
    assert found.shape == (2, *encoder.shape(12)) == (2, 5, 3, 3)
    assert torch.allclose(found.square().sum(1), means.square().sum(1), atol=1e-5)
    assert torch.allclose((found[0] - found[1]).square().sum(0), (means[0] - means[1]).square().sum(0), atol=1e-5)
    assert torch.equal(found, FixedEncoder(channels=5, size=3, seed=1)(frames))
    assert not torch.equal(found, FixedEncoder(channels=5, size=3, seed=2)(frames))


@pytest.mark.parametrize(("setting", "value"), [("channels", 2), ("channels", True), ("size", 0), ("size", 2.5)])
def test_settings_of_the_fixed_encoder_are_checked(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        FixedEncoder(**{"channels": 4, "size": 4, "seed": 0, setting: value})


def test_more_places_than_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="size=50"):
        latents(encoder=FixedEncoder(channels=4, size=50, seed=0))


def test_the_head_draws_by_the_state_and_is_seeded() -> None:
    before = torch.get_rng_state()
    head = LatentHead(WIDTH, shape=(4, 5, 6), channels=8, blocks=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    states = torch.randn(3, WIDTH)
    drawn = head(states)
    assert drawn.shape == (3, 4, 5, 6)
    assert not torch.allclose(drawn[0], drawn[1])
    assert torch.equal(drawn, LatentHead(WIDTH, shape=(4, 5, 6), channels=8, blocks=2, seed=3)(states))
    assert head.to(torch.bfloat16).grid.dtype == torch.float32
    assert head(states.to(torch.bfloat16)).dtype == torch.float32


def test_the_head_can_learn_frames_from_states() -> None:
    torch.manual_seed(0)
    head, states, true = LatentHead(8, shape=(3, 4, 4), channels=16, blocks=2, seed=0), torch.randn(4, 8), torch.randn(4, 3, 4, 4)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    first = float((head(states) - true).square().mean().detach())
    for _ in range(150):
        optimiser.zero_grad()
        loss = (head(states) - true).square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1 * first


def test_the_encoder_is_neither_trained_nor_cast_nor_saved() -> None:
    made = latents()
    assert not any("encoder" in name for name in (*made.state_dict(), *(n for n, _ in made.named_parameters())))
    made.to(torch.bfloat16)
    assert made.encoder.mix.dtype == torch.float32  # type: ignore[attr-defined]
    assert not made.targets(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).requires_grad


def test_the_state_at_a_frame_draws_that_frame() -> None:
    """Frame t's latents change with frame t alone, and what is drawn at t with frames up to t alone."""
    clips = tiny_clips(latents=latents(), needs=NEEDS)
    batch = clips.batch()
    frames, number = batch.num_frames, len(batch)
    assert batch.counts["latent"] == number * frames
    changed = batch.frames.clone()
    changed[:, 1] = 255 - changed[:, 1]
    with torch.no_grad():
        one = clips.model(batch, NEEDS)["fine"][-1]
        two = clips.model(replace(batch, frames=changed), NEEDS)["fine"][-1]
    assert one.latent.shape == one.latent_true.shape == (number * frames, 4, 6, 6)
    pairs = ((one.latent_true, two.latent_true), (one.latent, two.latent))
    shape = (number, frames)
    apart = [(a - b).abs().unflatten(0, shape).flatten(2).amax((0, 2)) for a, b in pairs]  # per frame
    same = [[float(value) < 1e-5 for value in values] for values in apart]
    assert same[0] == [True, False, True]
    assert same[1][:2] == [True, False]


def test_every_pass_draws_the_same_targets_and_trains_head_and_language_model() -> None:
    clips = tiny_clips(latents=latents(), needs=NEEDS, iterations=2)
    batch = clips.batch()
    out = clips.model(batch, NEEDS)
    passes = [*out["coarse"], *out["fine"]]
    assert len(passes) == 3
    assert all(p.latent_true is passes[0].latent_true for p in passes)
    torch.stack([LatentMSE()(Slots(p, batch)).sum for p in passes]).sum().backward()
    assert all(p.grad is not None for p in clips.model.heads.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in clips.model.language.model.layers[0].parameters())


class _VAE(nn.Module):
    """Stands in for diffusers' AutoencoderKL: 8 x 8 px to a place."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 8, stride=8)
        self.config = SimpleNamespace(scaling_factor=0.5, shift_factor=0.25, block_out_channels=(1, 1, 1, 1), latent_channels=4)
        self.batches: list[int] = []

    @classmethod
    def from_pretrained(cls, name: str, **_: Any) -> _VAE:
        if name == "nowhere":
            raise OSError("nowhere is not a local folder\nand more")
        return cls()

    def encode(self, pixels: torch.Tensor) -> Any:
        self.batches.append(len(pixels))
        assert float(pixels.min()) >= -1
        assert float(pixels.max()) <= 1
        found = self.down(pixels)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: found))


def kl(**changes: Any) -> KLEncoder:
    return KLEncoder(**{"hub_id": "a/vae", "revision": "main", "path": None, "subfolder": None, "batch": 2, **changes})


def test_a_published_autoencoder_is_shifted_scaled_and_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(AutoencoderKL=_VAE))
    encoder = kl()
    frames = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    made = latents(encoder=encoder, frame_size=16)
    found = made.targets(frames)
    with torch.no_grad():
        expected = (encoder.vae.down(frames.float() / 127.5 - 1) - 0.25) * 0.5
    assert torch.allclose(found, expected, atol=1e-5)
    assert encoder.vae.batches == [2, 1]
    assert made.shape == (4, 2, 2)
    assert not encoder.train().vae.training
    assert not any(p.requires_grad for p in encoder.parameters())
    with pytest.raises(ConfigError, match=r"frame_size=20 is no multiple of 8"):
        encoder.shape(20)
    with pytest.raises(ConfigError, match=r"nowhere cannot be loaded as an AutoencoderKL: nowhere is not a local folder$"):
        kl(path="nowhere")


def test_a_published_autoencoder_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"coordvlm\[vae\]"):
        kl()
