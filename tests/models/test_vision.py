"""The still-image tower against the library's own, on ragged and on equal grids."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coordvlm.models import vision
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.vision import BatchedVisionAttention, PixelNorm, StillPatchEmbed, specialise_for_stills
from tests.tiny import FAMILIES, PATCH, tiny_hf

GRIDS = {
    "ragged": [(1, 4, 6), (1, 2, 2), (1, 2, 8)],
    "equal": [(1, 4, 4)] * 3,
    "runs": [(1, 2, 4), (1, 4, 2), (1, 6, 6)],
    "alternating": [(1, 4, 4), (1, 2, 2), (1, 4, 4), (1, 2, 2)],
    "one": [(1, 4, 6)],
    "many windows": [(1, 10, 14), (1, 4, 4), (1, 12, 6), (1, 10, 14)],
}


@pytest.fixture(scope="module", params=FAMILIES)
def towers(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    model = tiny_hf(tiny_tokenizer(600), request.param, table_size=700, tied=True)
    with torch.no_grad():  # beyond the library's 0.02, so that attention is not flat
        for p in model.model.visual.parameters():
            if p.ndim >= 2:
                p.mul_(5)
    theirs = model.model.visual.eval()
    mine = copy.deepcopy(theirs)
    specialise_for_stills(mine)
    return mine, theirs


def patches(grid: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """float32[P, 3, ps, ps]"""
    return torch.randn((int(grid.prod(-1).sum()), 3, PATCH, PATCH), generator=torch.Generator().manual_seed(seed))


def doubled(x: torch.Tensor) -> torch.Tensor:
    """A still image as the library takes it: two equal frames."""
    return x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)


@pytest.mark.parametrize("name", GRIDS)
def test_the_tower_equals_the_library(towers: tuple[nn.Module, nn.Module], name: str) -> None:
    mine, theirs = towers
    grid = torch.tensor(GRIDS[name])
    x = patches(grid)
    with torch.no_grad():
        a = mine(x.flatten(1), grid_thw=grid, return_dict=True)
        b = theirs(doubled(x), grid_thw=grid, return_dict=True)
    torch.testing.assert_close(a.pooler_output, b.pooler_output, atol=2e-5, rtol=1e-4)
    if hasattr(theirs, "deepstack_merger_list"):
        assert len(a.deepstack_features) == len(b.deepstack_features) == 1
        torch.testing.assert_close(a.deepstack_features[0], b.deepstack_features[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["equal", "many windows"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_library(towers: tuple[nn.Module, nn.Module], name: str) -> None:
    mine, theirs = towers
    grid = torch.tensor(GRIDS[name])
    x = patches(grid)
    with torch.no_grad():
        exact = theirs(doubled(x), grid_thw=grid, return_dict=True).pooler_output
        a = copy.deepcopy(mine).bfloat16()(x.flatten(1), grid_thw=grid, return_dict=True).pooler_output
        b = copy.deepcopy(theirs).bfloat16()(doubled(x), grid_thw=grid, return_dict=True).pooler_output
    assert a.dtype == torch.bfloat16
    error, reference = ((y.float() - exact).square().mean().sqrt() for y in (a, b))
    assert float(error) <= 1.25 * float(reference)


@pytest.mark.parametrize("name", GRIDS)
def test_attention_runs_once_per_length_and_bounds_are_read_once_per_forward(
    towers: tuple[nn.Module, nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = towers
    windowed = hasattr(mine, "fullatt_block_indexes")
    grid = torch.tensor(GRIDS[name])
    made: list[vision._Plan] = []
    make = vision._make_plan
    monkeypatch.setattr(vision, "_make_plan", lambda bounds: made.append(make(bounds)) or made[-1])
    with torch.no_grad():
        mine(patches(grid).flatten(1), grid_thw=grid, return_dict=True)
    assert len(made) == (2 if windowed else 1)
    for plan in made:
        lengths = [length for _, length in plan.runs]
        assert len(set(lengths)) == len(lengths)
        assert sum(n * length for n, length in plan.runs) == int(grid.prod(-1).sum())


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_other_attention_stays_the_library_own(towers: tuple[nn.Module, nn.Module], attention: str) -> None:
    tower = copy.deepcopy(towers[1])
    tower.config._attn_implementation = attention  # flash attention itself needs a GPU
    own = [block.attn for block in tower.blocks]
    specialise_for_stills(tower)
    assert [block.attn for block in tower.blocks] == own
    assert isinstance(tower.patch_embed, StillPatchEmbed)
    if attention == "eager":
        grid = torch.tensor(GRIDS["ragged"])
        with torch.no_grad():
            a, b = (t(patches(grid).flatten(1), grid_thw=grid, return_dict=True).pooler_output for t in (tower, towers[0]))
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_the_gradients_equal_the_library(towers: tuple[nn.Module, nn.Module]) -> None:
    mine, theirs = towers
    grid = torch.tensor(GRIDS["many windows"])
    x = patches(grid)
    for tower, pixels in ((mine, x.flatten(1)), (theirs, doubled(x))):
        tower.zero_grad()
        out = tower(pixels, grid_thw=grid, return_dict=True).pooler_output
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    expected = dict(theirs.named_parameters())
    assert {n for n, _ in mine.named_parameters()} == set(expected)
    for name, p in mine.named_parameters():
        if p.grad is None:
            assert expected[name].grad is None, name
            continue
        scale = float(expected[name].grad.abs().max())
        assert float((p.grad - expected[name].grad).abs().max()) <= 1e-3 * scale + 1e-5, name


def test_images_do_not_see_each_other(towers: tuple[nn.Module, nn.Module]) -> None:
    mine, _ = towers
    grid = torch.tensor(GRIDS["equal"])
    x = patches(grid)
    with torch.no_grad():
        together = mine(x.flatten(1), grid_thw=grid, return_dict=True).pooler_output
        alone = torch.cat([mine(part.flatten(1), grid_thw=grid[:1], return_dict=True).pooler_output for part in x.chunk(3)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        x[:16] += 1
        moved = mine(x.flatten(1), grid_thw=grid, return_dict=True).pooler_output
    torch.testing.assert_close(moved[4:], together[4:], atol=1e-5, rtol=1e-4)
    assert float((moved[:4] - together[:4]).abs().max()) > 1e-2


def test_patch_embedding_keeps_names_and_equals_the_convolution(towers: tuple[nn.Module, nn.Module]) -> None:
    _, theirs = towers
    x = patches(torch.tensor([(1, 4, 4)]))
    still = StillPatchEmbed(theirs.patch_embed)
    torch.testing.assert_close(still(x.flatten(1)), theirs.patch_embed(doubled(x)), atol=1e-5, rtol=1e-4)
    assert set(still.state_dict()) == set(theirs.patch_embed.state_dict())


def test_attention_shares_the_parameters(towers: tuple[nn.Module, nn.Module]) -> None:
    attention = towers[1].blocks[0].attn
    assert {n: p.data_ptr() for n, p in BatchedVisionAttention(attention).named_parameters()} == {
        n: p.data_ptr() for n, p in attention.named_parameters()
    }


def test_pixels_are_scaled_and_normalised_per_channel() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    out = PixelNorm([0.5, 0.1, 0.25], [0.5, 0.1, 0.5])(x).view(2, 3, 16)
    torch.testing.assert_close(out, torch.tensor([-1.0, 1.0, 1.5]).view(1, 3, 1).expand(2, 3, 16))
