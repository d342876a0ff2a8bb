"""The tower and its queries, against the library's own forward and one written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from coordvlm.models.foveated.vision import FoveatedVision
from coordvlm.utils.errors import ConfigError, ContractError
from tests.clips import SIZE, WIDTH, loaded


def made(**settings: Any) -> FoveatedVision:
    sizes = {k: settings.pop(k) for k in ("vision_depth", "frame_size") if k in settings}
    torch.manual_seed(0)
    parts = loaded(**sizes)
    options = {"depth": "deep", "temperature": 1.0, "top_k": None, **settings}
    vision = FoveatedVision(parts.tower, width=WIDTH, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25), **options)
    return vision.double().eval()


def frames(num: int = 3, size: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def queries(num: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


def normalised(x: Tensor) -> Tensor:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    return ((x / 255 - mean[:, None, None]) / std[:, None, None]).double()


@pytest.mark.parametrize("size", [SIZE, 70])  # at another size the tower interpolates its positions
def test_final_features_are_those_of_the_library(size: int) -> None:
    vision = made(depth="shallow")
    with torch.no_grad():
        mine = vision.encode(frames(size=size))
        theirs = vision.tower(pixel_values=normalised(frames(size=size))).last_hidden_state[:, 1:]
    assert mine.grid == (size // 14, size // 14)
    torch.testing.assert_close(mine.final, theirs, atol=1e-6, rtol=0)  # pixels are float32 before the tower


def joint(vision: FoveatedVision, pixels: Tensor, q: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The library's layers on [class, patches, query] with a mask: nobody sees the query, and it sees patches only."""
    tower = vision.tower
    hidden = torch.cat((tower.embeddings(normalised(pixels)), (q @ vision.merger["query"].weight.T)[:, None]), 1)
    num = hidden.shape[1]
    allowed = torch.ones(num, num, dtype=torch.bool)
    allowed[:, -1] = False
    allowed[-1, 0] = False
    maps = []
    for layer in tower.encoder.layer:
        x = layer.norm1(hidden)
        attention = getattr(layer.attention, "attention", layer.attention)
        names = ("q_proj", "k_proj", "v_proj") if hasattr(attention, "q_proj") else ("query", "key", "value")
        q_, k, v = (getattr(attention, n)(x).view(len(x), num, 4, -1).transpose(1, 2) for n in names)
        logits = (q_ @ k.transpose(-1, -2)) / math.sqrt(q_.shape[-1])
        weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
        maps.append(weights[:, :, -1, 1:-1])
        read = (weights @ v).transpose(1, 2).reshape(len(x), num, -1)
        out = attention.o_proj if hasattr(attention, "o_proj") else layer.attention.output.dense
        hidden = hidden + layer.layer_scale1(out(read))
        hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
    return tower.layernorm(hidden)[:, -1], maps


@pytest.mark.parametrize("depth", [1, 3])
def test_a_deep_query_is_one_more_token_that_nobody_sees(depth: int) -> None:
    vision = made(vision_depth=depth)
    with torch.no_grad():
        looked = vision.attend(vision.encode(frames()), queries(), attention=True)
        plain = vision.attend(vision.encode(frames()), queries())
        features, maps = joint(vision, frames(), queries())
    torch.testing.assert_close(looked.features, features, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.features, features, atol=1e-6, rtol=0)
    assert plain.attention is None
    assert looked.attention is not None
    torch.testing.assert_close(looked.attention.double(), torch.stack(maps), atol=1e-6, rtol=0)


def test_a_shallow_query_is_one_attention_over_final_features() -> None:
    vision = made(depth="shallow", temperature=0.5)
    with torch.no_grad():
        final = vision.tower(pixel_values=normalised(frames())).last_hidden_state[:, 1:]
        q = queries() @ vision.merger["query"].weight.T
        weights = torch.softmax((final @ q[:, :, None])[:, :, 0] / math.sqrt(final.shape[-1]) / 0.5, -1)
        looked = vision.attend(vision.encode(frames()), queries(), attention=True)
    assert looked.attention is not None
    torch.testing.assert_close(looked.attention[0, :, 0].double(), weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(looked.features, (weights[:, :, None] * final).sum(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_attention_is_a_distribution_and_changes_nothing_by_being_asked_for(depth: str) -> None:
    vision = made(depth=depth, temperature=0.3)
    cache = vision.encode(frames())
    asked, plain = vision.attend(cache, queries(), attention=True), vision.attend(cache, queries())
    assert asked.attention is not None
    torch.testing.assert_close(asked.attention.sum(-1), torch.ones(asked.attention.shape[:-1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(asked.features, plain.features, atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_a_lower_temperature_is_sharper(depth: str) -> None:
    peaks = []
    for temperature in (4.0, 1.0, 0.25):
        vision = made(depth=depth, temperature=temperature)
        looked = vision.attend(vision.encode(frames()), queries(), attention=True)
        assert looked.attention is not None
        peaks.append(float(looked.attention[0].max(-1).values.mean().detach()))
    assert peaks == sorted(peaks)
    assert peaks[0] < 1 / 9 * 1.5  # nearly uniform over 9 patches


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_top_k_leaves_so_many_patches(depth: str) -> None:
    all_, some = made(depth=depth), made(depth=depth, top_k=2)
    cache = all_.encode(frames())
    looked = some.attend(cache, queries(), attention=True)
    reference = all_.attend(cache, queries(), attention=True)
    assert looked.attention is not None
    assert reference.attention is not None
    assert ((looked.attention > 0).sum(-1) == 2).all()
    first, full = looked.attention[0], reference.attention[0]  # later layers have other queries
    assert (first.topk(2).indices.sort().values == full.topk(2).indices.sort().values).all()
    kept = torch.where(first > 0, full, 0)
    torch.testing.assert_close(first, kept / kept.sum(-1, keepdim=True), atol=1e-6, rtol=0)
    more = made(depth=depth, top_k=100).attend(cache, queries())
    torch.testing.assert_close(more.features, reference.features, atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_patches_of_other_frames_are_not_read(depth: str) -> None:
    vision = made(depth=depth)
    q = queries()
    whole = vision.attend(vision.encode(frames()), q)
    alone = [vision.attend(vision.encode(frames()[i : i + 1]), q[i : i + 1]).features for i in range(3)]
    torch.testing.assert_close(whole.features, torch.cat(alone), atol=1e-9, rtol=0)
    picked = vision.attend(vision.encode(frames()).frames(torch.tensor([2, 0, 2])), q)
    torch.testing.assert_close(picked.features[1], vision.attend(vision.encode(frames()[:1]), q[1:2]).features[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_a_frozen_tower_has_no_graph_and_queries_still_learn(depth: str) -> None:
    vision = made(depth=depth)
    vision.tower.requires_grad_(False)
    cache = vision.encode(frames())
    held = [*cache.keys, *cache.values, *([] if depth == "deep" else [cache.final])]
    assert held
    assert not any(x.requires_grad for x in held)  # type: ignore[union-attr]
    vision.token(vision.attend(cache, queries()).features).square().sum().backward()
    assert float(vision.merger["query"].weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in vision.tower.parameters())


@pytest.mark.parametrize("size", [40, 50])
def test_frames_that_patches_do_not_divide_are_refused(size: int) -> None:
    with pytest.raises(ContractError, match=rf"frames of {size} x {size} px cannot be cut into patches of 14 px; see model.frame_size"):
        made().encode(frames(size=size))


@pytest.mark.parametrize(("settings", "message"), [
    ({"depth": "flat"}, "model.attention.depth must be one of deep, shallow, got 'flat'"),
    ({"temperature": 0.0}, "model.attention.temperature must be a number above 0, got 0.0"),
    ({"temperature": math.inf}, "model.attention.temperature must be a number above 0"),
    ({"temperature": True}, "model.attention.temperature must be a number above 0, got True"),
    ({"top_k": 0}, "model.attention.top_k must be an integer of at least 1, or null"),
    ({"top_k": 1.5}, "model.attention.top_k must be an integer of at least 1, or null"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**settings)
