"""Drawing frames: a frozen encoder says what a frame looks like, and a head draws that from the language model's states.

The state at z_t draws the latents of frame t itself, not of the next one. It has seen the question and the frames up to t, each through
the one token that its query gave. Targets are made once per batch and are the same for all passes.

Shapes: F frames, clip by clip, S side of a frame in px, W width of the language model, C channels and h x w places of the latents, K
channels of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordvlm.models.wide import AtLeastFloat32
from coordvlm.utils.errors import ConfigError

#: The last layer starts this small: the first drawing is nearly the mean of all latents.
_FIRST_SCALE = 0.1


class LatentEncoder(Protocol):
    """What frames look like, in fewer numbers than pixels. It never trains."""

    def shape(self, frame_size: int) -> tuple[int, int, int]:
        """(C, h, w) of frames of S x S px. A side that it cannot encode is a ``ConfigError``."""
        ...

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8[F, 3, S, S] -> float32[F, C, h, w], on the device of the frames."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move it."""
        ...


class FixedEncoder(nn.Module):
    """Mean colours of an even grid, turned by a fixed matrix with orthonormal columns. For tests and small models.

    Pixels are scaled to [-1, 1]. The turn keeps lengths: the square of a difference of latents, summed over channels, is that of the mean
    colours.

    Args:
        channels: C, at least 3. size: h = w, places per side. seed: of the matrix.
    """

    mix: Tensor

    def __init__(self, *, channels: int, size: int, seed: int) -> None:
        super().__init__()
        self.channels = _whole("channels", channels, 3)
        self.size = _whole("size", size, 1)
        drawn = torch.randn(self.channels, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.register_buffer("mix", torch.linalg.qr(drawn)[0].float(), persistent=False)

    def shape(self, frame_size: int) -> tuple[int, int, int]:
        if frame_size < self.size:
            raise ConfigError(f"model.latents.encoder.size={self.size} is more than the {frame_size} px of a frame's side")
        return self.channels, self.size, self.size

    def forward(self, frames: Tensor) -> Tensor:
        colours = F.adaptive_avg_pool2d(frames.float() / 127.5 - 1, self.size)
        return torch.einsum("kc,fchw->fkhw", self.mix, colours)


class KLEncoder(nn.Module):
    """A published variational autoencoder (diffusers' ``AutoencoderKL``): the mode of its posterior, shifted and scaled as its
    configuration says, which makes latents about as large as N(0, 1).

    Args:
        hub_id, revision: repository on the hub, used when ``path`` is None. path: a folder with its files.
        subfolder: where in either the autoencoder is; None: at the top.
        batch: frames that are encoded at a time.
    Raises:
        ConfigError: without the extra ``vae``; nothing to load.
    """

    def __init__(self, *, hub_id: str, revision: str, path: str | None, subfolder: str | None, batch: int) -> None:
        super().__init__()
        self.batch = _whole("batch", batch, 1)
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ConfigError(
                "model.latents.encoder is a published autoencoder, which needs the package diffusers: pip install 'coordvlm[vae]'"
            ) from error
        what = f"{hub_id}@{revision}" if path is None else str(path)
        places: dict[str, Any] = {"revision": revision} if path is None else {"local_files_only": True}
        try:
            self.vae = AutoencoderKL.from_pretrained(
                hub_id if path is None else path, subfolder=subfolder, torch_dtype=torch.float32, **places
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"model.latents.encoder: {what} cannot be loaded as an AutoencoderKL: {first}") from error
        config = self.vae.config
        self.scale, self.shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.vae.requires_grad_(False)
        self.vae.eval()

    def train(self, mode: bool = True) -> KLEncoder:
        """Stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def shape(self, frame_size: int) -> tuple[int, int, int]:
        if frame_size % self.factor:
            raise ConfigError(f"model.frame_size={frame_size} is no multiple of {self.factor} px, by which this autoencoder reduces frames")
        return int(self.vae.config.latent_channels), frame_size // self.factor, frame_size // self.factor

    def forward(self, frames: Tensor) -> Tensor:
        parts = [self.vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in torch.split(frames, self.batch)]
        return (torch.cat(parts).float() - self.shift) * self.scale


class LatentHead(AtLeastFloat32):
    """A learned grid, the same for all frames, drawn over by convolutions that the state modulates (FiLM, arXiv:1709.07871).

    A block is: 3 x 3 convolution, norm of each channel over the grid, ``x * (1 + scale) + shift`` with both from the state, GELU, added to
    what came in. The state goes through a layer norm first. Without autocast.

    Args:
        width: W. shape: (C, h, w). channels: K, at least 1. blocks: at least 1. seed: of the initial weights; the global generator stays
            as it was.
    """

    def __init__(self, width: int, *, shape: tuple[int, int, int], channels: int, blocks: int, seed: int) -> None:
        super().__init__()
        inner, num = _whole("channels", channels, 1), _whole("blocks", blocks, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.grid = nn.Parameter(torch.randn(inner, *shape[1:]))
            self.norm = nn.LayerNorm(width)
            self.film = nn.ModuleList(nn.Linear(width, 2 * inner) for _ in range(num))
            self.mixing = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in range(num))
            self.out = nn.Conv2d(inner, shape[0], 1)
        with torch.no_grad():
            self.out.weight *= _FIRST_SCALE
            self.out.bias.zero_()  # type: ignore[union-attr]

    def forward(self, states: Tensor) -> Tensor:
        """float[F, W] in any precision -> float32[F, C, h, w], not bounded."""
        with torch.autocast(states.device.type, enabled=False):
            condition = self.norm(states.to(self.grid.dtype))
            drawn = self.grid.expand(len(states), -1, -1, -1)
            for film, mixing in zip(self.film, self.mixing, strict=True):
                scale, shift = film(condition)[:, :, None, None].chunk(2, 1)
                drawn = drawn + F.gelu(F.instance_norm(mixing(drawn)) * (1 + scale) + shift)
            return self.out(drawn)  # type: ignore[no-any-return]


class Latents(nn.Module):
    """The head, and the encoder that says what it should draw.

    The encoder is no submodule: it moves with the model, but it is neither trained, nor cast, nor saved, and is made anew from the
    configuration when a run is loaded.

    Args:
        width: W. encoder: frozen. frame_size: S. channels, blocks, seed: of the head.
    """

    encoder: LatentEncoder

    def __init__(self, width: int, *, encoder: LatentEncoder, frame_size: int, channels: int, blocks: int, seed: int) -> None:
        super().__init__()
        object.__setattr__(self, "encoder", encoder)
        self.shape = encoder.shape(frame_size)
        if math.prod(self.shape[1:]) < 2:
            raise ConfigError("model.latents.encoder gives one place per frame; the head draws grids of at least 2")
        self.head = LatentHead(width, shape=self.shape, channels=channels, blocks=blocks, seed=seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Latents:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.encoder.to(self.head.grid.device)
        return self

    @torch.no_grad()
    def targets(self, frames: Tensor) -> Tensor:
        """uint8[F, 3, S, S] -> float32[F, C, h, w]."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.encoder(frames)

    def forward(self, states: Tensor) -> Tensor:
        """float[F, W] -> float32[F, C, h, w]."""
        return self.head(states)  # type: ignore[no-any-return]


def _whole(name: str, value: int, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"model.latents: {name} must be an integer of at least {low}, got {value!r}")
    return value
