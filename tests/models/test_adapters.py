"""Adapters on a backbone: where they sit, what trains beside them, and that merging changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from coordvlm.models.adapters import TARGETS, Lora, adapted, add_adapter, is_adapter, matched
from coordvlm.models.coord_rows import CoordRows
from coordvlm.modules.precision import cast_weights
from coordvlm.utils.errors import ConfigError
from tests.tiny import FAMILIES, Tiny, hf_inputs, tiny

NEEDS = {"text_nll", "slot_logits", "slot_lse"}
PLAIN = {"r": 4, "alpha": 8.0, "dropout": 0.0, "rslora": False, "dora": False, "targets": "attention", "merger": False}
TIED = {"tied": True, "untied": False}


def adapted_tiny(changes: dict[str, Any] | None = None, **tiny_settings: Any) -> Tiny:
    t = tiny(**tiny_settings)
    add_adapter(t.backbone, Lora(**{**PLAIN, **(changes or {})}), source="tiny@1", seed=3)
    return t


def stir(module: nn.Module, scale: float = 0.1) -> None:
    """Adapters that do something: B starts at zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if is_adapter(name):
                p.add_(torch.randn(p.shape, generator=generator) * scale)


def loss(t: Tiny, seed: int = 0) -> torch.Tensor:
    out = t.backbone(t.batch(seed=seed), NEEDS)
    return out.text_nll.mean() + out.slot_lse.mean() - out.slot_logits.mean()


def logits(t: Tiny, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        batch = t.batch(seed=seed)
        hidden = t.backbone.hidden(
            batch.input_ids, batch.position_ids, features=t.backbone.image_features(batch.pixels, batch.image_grid_thw),
            image_pos=batch.image_pos,
        )
        return t.backbone.logits(hidden.flatten(0, 1)[batch.slot_row])


# --------------------------------------------------------------------------------------------------------------- where they sit
LAYERS, BLOCKS = 2, 2
#: Linear layers of one vision block, by family.
VISION = {"qwen2_vl": 4, "qwen2_5_vl": 5, "qwen3_vl": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_language_only_touches_no_vision_module_and_everything_touches_all_blocks(family: str) -> None:
    hf = tiny(family=family).backbone.hf
    found = {name: matched(hf, Lora(**{**PLAIN, "targets": name})) for name in TARGETS}
    assert [len(found[n]) for n in ("attention", "language", "language_and_vision")] == [
        4 * LAYERS, 7 * LAYERS, 7 * LAYERS + VISION[family] * BLOCKS
    ]  # fmt: skip
    assert not [n for n in found["attention"] + found["language"] if "visual" in n]
    assert not [n for n in found["language_and_vision"] if "merger" in n or "patch_embed" in n]


def test_short_names_would_have_hit_the_tower_of_qwen25() -> None:
    names = matched(tiny(family="qwen2_5_vl").backbone.hf, Lora(**{**PLAIN, "targets": r".*(gate|up|down)_proj"}))
    assert [n for n in names if "visual" in n]


def test_targets_that_match_nothing_are_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'\.\*query' matches no module; linear layers here: .*layers\.\*\.self_attn\.q_proj"):
        adapted_tiny({"targets": ".*query"})


@pytest.mark.parametrize(
    ("targets", "message"),
    [(r".*layers\.0", "Qwen3VLTextDecoderLayer; an adapter sits on linear layers only"), ("lm_head", "an adapter on it does nothing"),
     (".*embed_tokens", "Embedding; an adapter sits on linear layers only"), ("(", "is not a regular expression")],
)
def test_targets_that_cannot_work_are_refused(targets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted_tiny({"targets": targets}, tied=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"r": 0}, "adapter.r must be"), ({"r": 2.5}, "adapter.r must be"), ({"r": True}, "adapter.r must be"),
     ({"alpha": 0}, "adapter.alpha must be positive"), ({"alpha": float("inf")}, "adapter.alpha"), ({"dropout": 1.0}, "adapter.dropout"),
     ({"dropout": -0.1}, "adapter.dropout"), ({"alpha": None}, "adapter.alpha"), ({"dropout": "much"}, "adapter.dropout")],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lora(**{**PLAIN, **changes})


@pytest.mark.parametrize(
    ("freeze", "changes", "message"),
    [(["language"], {}, "model.freeze names language, but adapter.targets='attention' matches 8 modules there"),
     (["vision"], {"targets": "language_and_vision"}, "model.freeze names vision"),
     (["merger"], {"merger": True}, "adapter.merger=true trains the merger and model.freeze names it"),
     ([], {"merger": True, "targets": r".*merger\.linear_fc1"}, "choose one")],
)
def test_contradictions_with_what_is_frozen_are_refused(freeze: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted_tiny(changes, freeze=freeze)


# ------------------------------------------------------------------------------------------------------------------ what trains
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tied", TIED.values(), ids=TIED)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_new_rows_train_and_the_base_does_not(family: str, tied: bool, dora: bool) -> None:
    t = adapted_tiny({"dora": dora, "targets": "language"}, family=family, tied=tied)
    before = {n: p.detach().clone() for n, p in t.backbone.named_parameters()}
    trained = {n: p for n, p in t.backbone.named_parameters() if p.requires_grad}
    assert {n for n in trained if not is_adapter(n)} == {"rows.rows_in"} | (set() if tied else {"rows.rows_out"})
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    for seed in range(2):  # A has no gradient while B is zero
        optimizer.zero_grad()
        loss(t, seed).backward()
        optimizer.step()
    changed = {n for n, p in t.backbone.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(trained)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_new_adapter_changes_nothing(dora: bool) -> None:
    plain = logits(tiny())
    torch.testing.assert_close(logits(adapted_tiny({"dora": dora, "targets": "language_and_vision"})), plain, rtol=0, atol=1e-6)


def test_the_first_values_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = adapted_tiny(), adapted_tiny()
    assert torch.equal(torch.get_rng_state(), state)
    a, b = (dict(t.backbone.named_parameters()) for t in (one, other))
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_alpha_is_divided_by_the_rank_or_its_root(rslora: bool, scale: float) -> None:
    t = adapted_tiny({"rslora": rslora})
    name, layer = adapted(t.backbone.hf)[0]
    assert name.endswith("layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
        x = torch.randn(3, layer.in_features)
        mine = layer.base_layer(x) + scale * (x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T)
        torch.testing.assert_close(layer(x), mine)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", [True, False], ids=["bfloat16 base", "cast for training"])
def test_rows_and_adapters_stay_float32_on_a_bfloat16_base(family: str, before: bool) -> None:
    t = tiny(family=family, tied=False)
    t.backbone.hf.to(torch.bfloat16 if before else torch.float32)
    add_adapter(t.backbone, Lora(**{**PLAIN, "dora": True, "merger": True}), source="tiny", seed=0)
    cast_weights(t.backbone.hf, keep_trained=True)
    kinds = {p.requires_grad: set() for p in t.backbone.parameters()}
    for p in t.backbone.parameters():
        kinds[p.requires_grad].add(p.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    assert isinstance(t.backbone.rows, CoordRows)
    stir(t.backbone)
    loss(t).backward()
    grads = [p.grad for p in t.backbone.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(t).isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merger_trains_by_choice(family: str) -> None:
    t = adapted_tiny({"merger": True}, family=family)
    merger = {n for n, _ in t.backbone.named_parameters() if "merger" in n}
    assert {n for n, p in t.backbone.named_parameters() if p.requires_grad and not is_adapter(n)} == merger | {"rows.rows_in"}
    loss(t).backward()
    assert all(p.grad is not None for n, p in t.backbone.named_parameters() if n in merger)


# ------------------------------------------------------------------------------------------------------------- checkpointing
@pytest.mark.parametrize("rows_train", [True, False], ids=["rows", "frozen rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_first_layers_adapters_the_same_gradients(family: str, rows_train: bool) -> None:
    """Embeddings are frozen; without new rows (digits) nothing before the first layer has a gradient."""
    t = adapted_tiny({"targets": "language_and_vision", "dora": True}, family=family)
    stir(t.backbone)
    if not rows_train:
        t.backbone.rows.requires_grad_(False)
    loss(t).backward()
    plain = {n: p.grad.clone() for n, p in t.backbone.named_parameters() if p.grad is not None}
    t.backbone.zero_grad()
    assert t.backbone.set_checkpointing(1) == LAYERS + BLOCKS
    loss(t).backward()
    found = {n: p.grad for n, p in t.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == plain.keys()
    assert any("language_model.layers.0.self_attn.q_proj.lora_A" in n for n in found)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_frozen_tower_is_not_checkpointed() -> None:
    t = adapted_tiny(checkpoint_every=1)
    assert t.backbone.checkpoint_every == 1
    assert [b.gradient_checkpointing for b in t.backbone.hf.model.visual.blocks] == [False] * BLOCKS


# --------------------------------------------------------------------------------------------------------------------- merging
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tied", TIED.values(), ids=TIED)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_says_the_same(family: str, tied: bool, dora: bool) -> None:
    t = adapted_tiny({"dora": dora, "targets": "language_and_vision", "dropout": 0.1, "rslora": True}, family=family, tied=tied)
    t.backbone.eval()
    mine = logits(t)
    stir(t.backbone)
    change = (logits(t) - mine).abs()
    assert change[change.isfinite()].max() > 1e-2
    batch = t.batch()
    hf = t.backbone.to_hf()
    assert not [n for n, _ in hf.named_parameters() if "lora" in n or "base_layer" in n]
    with torch.no_grad():
        theirs = hf(**hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm)).logits.flatten(0, 1)[batch.slot_row]
        out = t.backbone(batch, {"slot_logits", "slot_lse"})
    torch.testing.assert_close(out.slot_logits, theirs[:, torch.from_numpy(t.vocab.coord_ids)], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.slot_lse, theirs.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_merging_leaves_the_model_as_it_is() -> None:
    t = adapted_tiny({"dora": True})
    stir(t.backbone)
    before = copy.deepcopy(t.backbone.state_dict())
    t.backbone.to_hf()
    after = t.backbone.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
