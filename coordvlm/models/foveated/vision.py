"""A DINOv2 whose patches are encoded once and then read by queries.

``encode`` runs the patches of every frame through all layers and keeps each layer's keys and values. ``attend`` lets a query read them:

- *deep*: the query passes all layers as one token more, but patches do not see it and it does not see itself: at every layer it attends to
  the patches' cached keys and values and goes through the layer's own MLP.
- *shallow*: one attention of the projected query over the final features.

The query is projected *without* a bias: a bias is the same for every query and drowns what tells them apart. Class tokens take part in
encoding and are not read: what a query gives is a place, and a token that has seen everything would be a way round it.

Shapes: F frames, N patches in rows from the top left, D width of the vision tower, h heads, d = D / h, W width of the language model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Model

from coordvlm.models.vision import PixelNorm
from coordvlm.utils.errors import ConfigError, ContractError

DEPTHS = ("deep", "shallow")


@dataclass(frozen=True)
class PatchCache:
    """Frames as queries read them.

    Args:
        keys, values: what deep queries read: per layer, [F, h, N, d]; empty for shallow ones.
        final: what shallow queries read: [F, N, D], after the last norm; None for deep ones, for which it is not computed.
        grid: (rows, columns) of patches, N = rows * columns.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    final: Tensor | None
    grid: tuple[int, int]

    @property
    def num_frames(self) -> int:
        held = self.keys[0] if self.final is None else self.final
        return int(held.shape[0])

    def frames(self, index: Tensor) -> PatchCache:
        """Some frames, or some twice. index: long[n] into F."""
        final = None if self.final is None else self.final[index]
        return PatchCache(tuple(k[index] for k in self.keys), tuple(v[index] for v in self.values), final, self.grid)


@dataclass(frozen=True)
class Looked:
    """What queries saw. features: [F, D], after the last norm. attention: float32[layers, F, h, N], each row adds up to 1; None unless
    asked for. Shallow queries have one layer and one head."""

    features: Tensor
    attention: Tensor | None = None


class FoveatedVision(nn.Module):
    """See the module docstring.

    Args:
        tower: a DINOv2. width: W. depth: ``deep`` or ``shallow``.
        temperature: attention logits of queries (not of patches among themselves) are divided by it. Below 1 they start out sharper: from
            random weights a query is otherwise an average over the frame for a long time, and nothing tells it to become anything else.
        top_k: a query attends to that many patches at most, the likeliest per head; null: to all.
        image_mean, image_std: of the tower's image processor.
    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self, tower: Dinov2Model, *, width: int, depth: str, temperature: float, top_k: int | None, image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ConfigError(f"model.attention.depth must be one of {', '.join(DEPTHS)}, got {depth!r}")
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not number or not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"model.attention.temperature must be a number above 0, got {temperature!r}")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ConfigError(f"model.attention.top_k must be an integer of at least 1, or null for all patches, got {top_k!r}")
        self.tower, self.depth, self.temperature, self.top_k = tower, depth, float(temperature), top_k
        size = tower.config.hidden_size
        self.pixel_norm = PixelNorm(image_mean, image_std)
        self.merger = nn.ModuleDict({"query": nn.Linear(width, size, bias=False), "out": nn.Linear(size, width)})
        self.calls = 0  # of ``encode``: that frames are encoded once for all passes is tested by it
        if tower.embeddings.mask_token is not None:  # of pre-training; frames are never masked, so it would get no gradient
            tower.embeddings.mask_token.requires_grad_(False)
        if depth == "deep" and len(tower.encoder.layer) == 1:  # patches meet the class token in the layers before the last
            tower.embeddings.cls_token.requires_grad_(False)

    # ------------------------------------------------------------------ patches
    @property
    def patch(self) -> int:
        """Side of a patch in px."""
        return int(self.tower.config.patch_size)

    def encode(self, frames: Tensor) -> PatchCache:
        """uint8[F, 3, height, width] -> the cache. No graph when nothing in the tower trains.

        Raises:
            ContractError: patches do not divide the frame.
        """
        height, width = frames.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ContractError(f"frames of {width} x {height} px cannot be cut into patches of {self.patch} px; see model.frame_size")
        self.calls += 1
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.tower.parameters())
        with torch.set_grad_enabled(trains):
            hidden, layers = self.tower.embeddings(self._normalised(frames)), self.tower.encoder.layer
            keys, values = [], []
            for number, layer in enumerate(layers, start=1):
                normed = layer.norm1(hidden)
                to_q, to_k, to_v, _ = _projections(layer)
                k, v = self._heads(to_k(normed)), self._heads(to_v(normed))
                if self.depth == "deep":
                    keys.append(k[:, :, 1:])
                    values.append(v[:, :, 1:])
                    if number == len(layers):  # nobody reads what the last layer makes of patches
                        break
                hidden = self._rest(layer, hidden, F.scaled_dot_product_attention(self._heads(to_q(normed)), k, v))
            final = self.tower.layernorm(hidden)[:, 1:] if self.depth == "shallow" else None
        return PatchCache(tuple(keys), tuple(values), final, (height // self.patch, width // self.patch))

    def _normalised(self, frames: Tensor) -> Tensor:
        dtype = self.tower.embeddings.patch_embeddings.projection.weight.dtype
        return self.pixel_norm(frames).view(frames.shape).to(dtype)  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """[F, n, D] -> [F, h, n, d]."""
        return x.reshape(*x.shape[:-1], int(self.tower.config.num_attention_heads), -1).transpose(1, 2)

    @staticmethod
    def _rest(layer: Any, hidden: Tensor, read: Tensor) -> Tensor:
        """What a layer does after attention. read: [F, h, n, d]."""
        hidden = hidden + layer.drop_path(layer.layer_scale1(_projections(layer)[3](read.transpose(1, 2).flatten(2))))
        return hidden + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(hidden))))  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ queries
    def attend(self, cache: PatchCache, queries: Tensor, *, attention: bool = False) -> Looked:
        """One query per frame. queries: [F, W], in the frames' order."""
        q = self.merger["query"](queries)
        if self.depth == "shallow":
            assert cache.final is not None
            read, weights = self._read(q[:, None, None], cache.final[:, None], cache.final[:, None], attention)
            return Looked(read[:, 0, 0], None if weights is None else weights[None])
        hidden, seen = q[:, None], []
        for layer, keys, values in zip(self.tower.encoder.layer, cache.keys, cache.values, strict=True):
            query = self._heads(_projections(layer)[0](layer.norm1(hidden)))
            read, weights = self._read(query, keys, values, attention)
            seen.append(weights)
            hidden = self._rest(layer, hidden, read)
        features = self.tower.layernorm(hidden)[:, 0]
        return Looked(features, torch.stack([w for w in seen if w is not None]) if attention else None)

    def _read(self, query: Tensor, keys: Tensor, values: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        """[F, h, 1, d] over [F, h, N, d] -> [F, h, 1, d], and float32[F, h, N] when asked for."""
        scale = 1 / (math.sqrt(query.shape[-1]) * self.temperature)
        if not attention and self.top_k is None:
            return F.scaled_dot_product_attention(query, keys, values, scale=scale), None
        logits = (query @ keys.transpose(-1, -2)).float() * scale
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            lowest = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, float("-inf"))
        weights = logits.softmax(-1)
        return weights.to(values.dtype) @ values, weights[:, :, 0]

    def token(self, features: Tensor) -> Tensor:
        """[F, D] -> [F, W]: what stands in the sequence for a frame, before its size is set."""
        out: Tensor = self.merger["out"](features)
        return out


def _projections(layer: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Query, key, value and output of a layer's attention, under their names in earlier and in later releases of transformers."""
    attention = layer.attention
    if hasattr(attention, "q_proj"):
        return attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    inner = attention.attention
    return inner.query, inner.key, inner.value, attention.output.dense
