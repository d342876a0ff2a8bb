"""The gathered-rows forward against a plain Hugging Face forward on the model that ``to_hf`` writes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import PATCH, Tiny, hf_inputs, random_sample, tiny

CASES = {
    "tied, ids inside and beyond": {},
    "untied": {"tied": False},
    "all ids inside the table": {"table_size": 1536},
    "untied inside": {"tied": False, "table_size": 1536},
}


@pytest.fixture(params=CASES, ids=list(CASES))
def model(request: pytest.FixtureRequest) -> Tiny:
    t = tiny(**CASES[request.param])
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


def test_a_frozen_tower_builds_no_graph() -> None:
    t = tiny(freeze=("vision", "merger"))
    features = t.backbone.image_features(t.batch().pixels, t.batch().image_grid_thw)
    assert not features.tokens.requires_grad
    assert not any(x.requires_grad for x in features.deepstack)
    t.backbone(t.batch(), {"text_nll"}).text_nll.sum().backward()
    assert all(p.grad is None for p in t.backbone.hf.model.visual.parameters())
    assert t.backbone.rows.rows_in.grad is not None


def test_freezing_the_tower_leaves_the_merger_training() -> None:
    t = tiny(freeze=("vision",))
    t.backbone(t.batch(), {"text_nll"}).text_nll.sum().backward()
    names = {n for n, p in t.backbone.hf.model.visual.named_parameters() if p.grad is not None}
    assert names
    assert all(n.startswith(("merger.", "deepstack_merger_list.")) for n in names)


def test_cached_features_give_the_same_output() -> None:
    t = tiny()
    batch = t.batch()
    with torch.no_grad():
        features = t.backbone.image_features(batch.pixels, batch.image_grid_thw)
        a, b = t.backbone(batch, {"text_nll"}), t.backbone(batch, {"text_nll"}, features=features)
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


def test_bf16_keeps_rows_and_outputs_float32() -> None:
    t = tiny()
    t.backbone.hf.to(torch.bfloat16)
    out = t.backbone(t.batch(), {"text_nll", "slot_logits", "slot_lse"})
    assert {out.text_nll.dtype, out.slot_logits.dtype, out.slot_lse.dtype, t.backbone.rows.rows_in.dtype} == {torch.float32}
    (out.text_nll.sum() + out.slot_lse.sum()).backward()
    assert torch.isfinite(t.backbone.rows.rows_in.grad).all()
    assert F.mse_loss(out.slot_lse, out.slot_lse) == 0
