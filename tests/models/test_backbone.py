"""The gathered-rows forward against a plain Hugging Face forward on the model that ``to_hf`` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coordvlm.models.checkpointing import parse_checkpointing
from coordvlm.utils.errors import ConfigError
from tests.tiny import FAMILIES, PATCH, Tiny, hf_inputs, random_sample, tiny

CASES = {
    "tied, ids inside and beyond": {},
    "untied": {"tied": False},
    "all ids inside the table": {"table_size": 1536},
    "untied inside": {"tied": False, "table_size": 1536},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CASES, ids=list(CASES))
def model(request: pytest.FixtureRequest, family: str) -> Tiny:
    t = tiny(**CASES[request.param], family=family)
    with torch.no_grad():  # make the rows differ from their smooth start
        for p in t.backbone.rows.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return t


def hf_labels(batch: torch.Tensor) -> torch.Tensor:
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.text_row + 1] = batch.text_target
    ids = batch.input_ids.flatten()
    labels[batch.slot_row + 1] = ids[batch.slot_row + 1]
    return labels.view_as(batch.input_ids)


def test_loss_equals_hugging_face_on_a_ragged_batch(model: Tiny) -> None:
    batch = model.batch(seed=3)
    with torch.no_grad():
        out = model.backbone(batch, {"text_nll", "slot_logits", "slot_lse"})
        slot_nll = out.slot_lse - out.slot_logits.gather(1, batch.slot_bin[:, None]).squeeze(1)
        mine = torch.cat((out.text_nll, slot_nll)).mean()
        hf = model.backbone.to_hf()
        inputs = hf_inputs(batch, image_id=model.vocab.image_id, patch_norm=model.backbone.pixel_norm)
        # unused padding columns of the table are live in both; a table grown by to_hf has none beyond the last new id
        theirs = hf(**inputs, labels=hf_labels(batch)).loss
    assert abs(float(mine) - float(theirs)) <= 1e-5 * max(1.0, float(theirs))


def test_lse_and_logits_of_live_columns_survive_export(model: Tiny) -> None:
    batch = model.batch(seed=4)
    with torch.no_grad():
        out = model.backbone(batch, {"text_lse", "text_coord_lse", "slot_logits", "slot_lse"})
        logits = model.backbone.to_hf()(
            **hf_inputs(batch, image_id=model.vocab.image_id, patch_norm=model.backbone.pixel_norm)
        ).logits.flatten(0, 1)
    coord = torch.from_numpy(model.vocab.coord_ids)
    torch.testing.assert_close(out.slot_logits, logits[batch.slot_row][:, coord], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.slot_lse, logits[batch.slot_row].logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.text_lse, logits[batch.text_row].logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.text_coord_lse, logits[batch.text_row][:, coord].logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_gradients_equal_hugging_face(model: Tiny) -> None:
    batch = model.batch(seed=5)
    out = model.backbone(batch, {"text_nll", "slot_logits", "slot_lse"})
    torch.cat((out.text_nll, out.slot_lse - out.slot_logits.gather(1, batch.slot_bin[:, None]).squeeze(1))).mean().backward()
    hf = model.backbone.to_hf()
    hf(**hf_inputs(batch, image_id=model.vocab.image_id, patch_norm=model.backbone.pixel_norm), labels=hf_labels(batch)).loss.backward()
    rows, ids = model.backbone.rows, model.backbone.rows.new_ids
    torch.testing.assert_close(rows.rows_in.grad, hf.get_input_embeddings().weight.grad[ids], atol=1e-6, rtol=1e-3)
    if rows.rows_out is not None:
        torch.testing.assert_close(rows.rows_out.grad, hf.lm_head.weight.grad[ids], atol=1e-6, rtol=1e-3)
    theirs = dict(hf.named_parameters())
    checked = 0
    for name, p in model.backbone.hf.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            continue
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
        checked += 1
    assert checked > 20
    table = model.backbone.table.weight
    dead = model.backbone.rows.shadow
    assert torch.equal(table.grad[dead], torch.zeros_like(table.grad[dead]))
    torch.testing.assert_close(table.grad[~dead], hf.get_input_embeddings().weight.grad[: len(dead)][~dead], atol=1e-6, rtol=1e-3)


def test_a_shadowed_base_row_takes_part_in_nothing() -> None:
    t = tiny(table_size=1536)
    batch = t.batch(seed=6)
    needs = {"text_nll", "text_lse", "slot_logits", "slot_lse"}
    with torch.no_grad():
        before = t.backbone(batch, needs)
        t.backbone.table.weight[t.backbone.rows.shadow] = 7.0
        after = t.backbone(batch, needs)
    for name in needs:
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert int(t.backbone.rows.shadow.sum()) == 1002


@pytest.mark.parametrize("missing", ["text", "slot"])
def test_empty_rows_keep_the_graph(missing: str) -> None:
    t = tiny()
    batch = t.batch(counts=(0, 0, 0)) if missing == "slot" else t.batch()
    out = t.backbone(batch, {"slot_logits", "slot_lse"} | ({"text_nll"} if missing == "slot" else set()))
    assert out.slot_logits.shape == (len(batch.slot_bin), 1000)
    total = out.slot_logits.sum() + out.slot_lse.sum() + (out.text_nll.sum() if out.text_nll is not None else 0)
    total.backward()
    assert t.backbone.rows.rows_in.grad is not None
    assert (missing == "slot") == (len(batch.slot_bin) == 0)


class Backwards(TorchDispatchMode):
    """Names of the operations that the backward runs on tensors of the vision tower's width."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches, self.seen = patches, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [str(func) for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == self.patches]
        return out


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_frozen_tower_runs_no_backward(family: str, checkpoint_every: int) -> None:
    """Gradient checkpointing, as the library switches it on, gives the frozen tower of two families a graph and a whole backward."""
    sides = ((48, 32), (32, 32), (96, 64))
    for frozen in (True, False):
        t = tiny(family=family, freeze=("vision", "merger") if frozen else (), checkpoint_every=checkpoint_every)
        batch = t.batch(sides=sides)
        loss = t.backbone(batch, {"text_nll"}).text_nll.sum()
        with Backwards(len(batch.pixels)) as backwards:
            loss.backward()
        assert bool(backwards.seen) != frozen


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision", "merger")])
def test_gradient_checkpointing_changes_no_gradient(family: str, every: int, freeze: tuple[str, ...]) -> None:
    found = []
    for checkpoint_every in (0, every):
        t = tiny(family=family, freeze=freeze, checkpoint_every=checkpoint_every)
        out = t.backbone(t.batch(seed=2), {"text_nll", "slot_lse"})
        (out.text_nll.sum() + out.slot_lse.sum()).backward()
        found.append({n: p.grad for n, p in t.backbone.named_parameters()})
    assert {n for n, g in found[0].items() if g is None} == {n for n, g in found[1].items() if g is None}
    for name, grad in found[0].items():
        if grad is not None:
            torch.testing.assert_close(grad, found[1][name], msg=lambda m, n=name: f"{n}: {m}")


def test_checkpointing_computes_the_chosen_layers_twice_and_no_other() -> None:
    t = tiny(freeze=("vision",), checkpoint_every=2)
    layers = [*t.backbone.hf.model.language_model.layers, *t.backbone.hf.model.visual.blocks]
    runs = [0] * len(layers)
    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    t.backbone(t.batch(), {"text_nll"}).text_nll.sum().backward()
    assert runs == [2, 1, 1, 1]  # language layers 0 and 1, then the frozen tower's blocks
    assert (t.backbone.set_checkpointing(1), t.backbone.set_checkpointing(0)) == (2, 0)


@pytest.mark.parametrize(
    ("value", "every"), [("off", 0), (False, 0), (None, 0), (0, 0), (True, 1), (1, 1), ("3", 3), (2, 2), ("auto", "auto")]
)
def test_checkpointing_is_read_as_yaml_and_the_command_line_write_it(value: object, every: object) -> None:
    assert parse_checkpointing(value) == every


@pytest.mark.parametrize("value", [-1, "sometimes", 1.5])
def test_a_senseless_checkpointing_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="off, auto or a whole number"):
        parse_checkpointing(value)


def test_a_frozen_tower_builds_no_graph(family: str) -> None:
    t = tiny(freeze=("vision", "merger"), family=family)
    features = t.backbone.image_features(t.batch().pixels, t.batch().image_grid_thw)
    assert not features.tokens.requires_grad
    assert not any(x.requires_grad for x in features.deepstack)
    t.backbone(t.batch(), {"text_nll"}).text_nll.sum().backward()
    assert all(p.grad is None for p in t.backbone.hf.model.visual.parameters())
    assert t.backbone.rows.rows_in.grad is not None


def test_freezing_the_tower_leaves_the_merger_training(family: str) -> None:
    t = tiny(freeze=("vision",), family=family)
    t.backbone(t.batch(), {"text_nll"}).text_nll.sum().backward()
    names = {n for n, p in t.backbone.hf.model.visual.named_parameters() if p.grad is not None}
    assert names
    assert all(n.startswith(("merger.", "deepstack_merger_list.")) for n in names)


def test_cached_features_give_the_same_output(family: str) -> None:
    t = tiny(family=family)
    batch = t.batch()
    with torch.no_grad():
        features = t.backbone.image_features(batch.pixels, batch.image_grid_thw)
        a, b = t.backbone(batch, {"text_nll"}), t.backbone(batch, {"text_nll"}, features=features)
    assert len(features.deepstack) == (family == "qwen3_vl")
    assert torch.equal(a.text_nll, b.text_nll)


def test_pixels_equal_the_library_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    t = tiny()
    sample = random_sample(1, 1, (64, 48))
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, min_pixels=256, max_pixels=2**20, image_mean=[0.5] * 3, image_std=[0.5] * 3, temporal_patch_size=2
    )
    theirs = torch.as_tensor(processor(images=[sample.image], return_tensors="pt")["pixel_values"])
    encoded = t.encoder.encode(sample, epoch=0)
    mine = t.backbone.pixel_norm(torch.from_numpy(encoded.pixels)).view(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).flatten(1)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_unknown_needs_and_freeze_parts_are_named() -> None:
    t = tiny()
    with pytest.raises(ValueError, match="cannot give logits"):
        t.backbone(t.batch(), {"logits"})
    with pytest.raises(ValueError, match="visoin"):
        tiny(freeze=("visoin",))


def test_bf16_keeps_rows_and_outputs_float32(family: str) -> None:
    t = tiny(family=family)
    t.backbone.hf.to(torch.bfloat16)
    out = t.backbone(t.batch(), {"text_nll", "slot_logits", "slot_lse"})
    assert {out.text_nll.dtype, out.slot_logits.dtype, out.slot_lse.dtype, t.backbone.rows.rows_in.dtype} == {torch.float32}
    (out.text_nll.sum() + out.slot_lse.sum()).backward()
    assert torch.isfinite(t.backbone.rows.rows_in.grad).all()
    assert F.mse_loss(out.slot_lse, out.slot_lse) == 0
