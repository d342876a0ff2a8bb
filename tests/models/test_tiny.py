"""The default model as conf/model/tiny.yaml makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.loading import LoadedModel
from coordvlm.models.tiny import SPECIAL, load_tiny, smooth_positions, tiny_tokenizer
from coordvlm.models.tiny_qwen2 import load_tiny_qwen2vl, load_tiny_qwen25vl, tiny_qwen2vl, tiny_qwen25vl
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.utils.errors import ConfigError
from tests.tiny import COORD_TOKEN, MARKERS

YAML = Path(__file__).parents[2] / "conf" / "model" / "tiny.yaml"


def load(**changes: Any) -> LoadedModel:
    node = OmegaConf.load(YAML)
    node.seed = 0
    sizes = OmegaConf.to_container(OmegaConf.create({"seed": 0, "load": node.load}), resolve=True)["load"]
    assert sizes.pop("_target_") == "coordvlm.models.tiny.load_tiny"
    return load_tiny(**{**sizes, **changes})


@pytest.fixture(scope="module")
def default() -> LoadedModel:
    return load()


def test_the_default_has_one_to_three_million_parameters(default: LoadedModel) -> None:
    add_coord_tokens(default.tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
    vocab = coord_vocab(default.tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
    rows = CoordRows(vocab, default.hf.get_input_embeddings().weight, None, init="fourier", scale=1.0)
    own = sum(p.numel() for p in default.hf.parameters()) + rows.rows_in.numel()
    assert 1_000_000 <= own <= 3_000_000
    inside = int(rows.shadow.sum())
    assert 0 < inside < 1002  # new ids inside the padded table and beyond


def test_it_is_a_function_of_its_seed_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = load(seed=0).hf.state_dict(), load(seed=0).hf.state_dict(), load(seed=1).hf.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["model.language_model.layers.0.mlp.up_proj.weight"], c["model.language_model.layers.0.mlp.up_proj.weight"])


def test_the_tokenizer_is_the_same_every_time() -> None:
    a, b = tiny_tokenizer(700), tiny_tokenizer(700)
    assert a.get_vocab() == b.get_vocab()
    assert a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()
    assert len(a) <= 700


def test_qwens_control_tokens_are_one_token_each(default: LoadedModel) -> None:
    for text in SPECIAL:
        assert len(default.tokenizer.encode(text, add_special_tokens=False)) == 1, text
    assert default.tokenizer.eos_token == "<|im_end|>"


TOKENIZER = tiny_tokenizer(700, ["Zebra"])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_extra_words_become_short() -> None:
    assert len(TOKENIZER.encode("Zebra")) < len(tiny_tokenizer(700).encode("Zebra"))


def test_saving_and_loading_gives_the_same_tokens_and_logits(default: LoadedModel, tmp_path: Path) -> None:
    default.hf.save_pretrained(tmp_path)
    default.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    text = "red circle naïve 猫<|im_end|>"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.tolist() == default.tokenizer(text, return_tensors="pt")["input_ids"].tolist()
    assert tokenizer.chat_template == default.tokenizer.chat_template
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, default.hf.eval()(input_ids=ids).logits)


def test_untied_heads_are_their_own_tensor() -> None:
    tied, untied = load().hf, load(tied=False).hf
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert untied.lm_head.weight is not untied.get_input_embeddings().weight


def test_positions_start_smooth_in_both_directions(default: LoadedModel) -> None:
    side, width = 12, 128
    grid = smooth_positions(side, width).view(side, side, width)
    assert grid.abs().max() <= 1
    near_row, near_column = (grid[1:] - grid[:-1]).norm(dim=-1).mean(), (grid[:, 1:] - grid[:, :-1]).norm(dim=-1).mean()
    assert float(near_row) == pytest.approx(float(near_column), rel=1e-5)
    assert near_row < 0.8 * (grid[6:] - grid[:-6]).norm(dim=-1).mean()
    torch.testing.assert_close(default.hf.model.visual.pos_embed.weight.detach(), grid.view(-1, width) * 0.5)
    assert not torch.equal(load(position_amplitude=0.0).hf.model.visual.pos_embed.weight, default.hf.model.visual.pos_embed.weight)


@pytest.mark.parametrize(("name", "family"), [("tiny_qwen2vl", "qwen2_vl"), ("tiny_qwen25vl", "qwen2_5_vl")])
def test_the_other_families_have_a_tiny_model_of_the_same_size_and_tokenizer(default: LoadedModel, name: str, family: str) -> None:
    node = OmegaConf.load(YAML.with_name(f"{name}.yaml"))
    settings = OmegaConf.to_container(OmegaConf.create({"seed": 0, "load": node.load}), resolve=True)["load"]
    make = {"tiny_qwen2vl": load_tiny_qwen2vl, "tiny_qwen25vl": load_tiny_qwen25vl}[name]
    assert settings.pop("_target_") == f"coordvlm.models.tiny_qwen2.{make.__name__}"
    a, b = make(**settings), make(**settings)
    assert (a.family, a.source) == (family, f"{name}, random weights")
    assert a.tokenizer.get_vocab() == tiny_tokenizer(700).get_vocab()
    assert all(torch.equal(x, y) for x, y in zip(a.hf.parameters(), b.hf.parameters(), strict=True))
    count = [sum(p.numel() for p in m.hf.parameters()) for m in (a, default)]
    assert 0.5 < count[0] / count[1] < 1.5


def test_sizes_that_a_family_cannot_have_are_refused() -> None:
    tokenizer = tiny_tokenizer(600)
    vision = {"depth": 1, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2}
    common = {
        "hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "table_size": 700, "tied": True,
        "vision": vision, "vision_width": 32,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="vision_mlp to be a multiple of vision_width=32, got 70"):
        tiny_qwen2vl(tokenizer, **common, vision_mlp=70)
    with pytest.raises(ConfigError, match=r"window_size to be a multiple of .* 16 px, got 24"):
        tiny_qwen25vl(tokenizer, **common, vision_mlp=64, window_size=24, full_attention_blocks=[])
