from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from coordvlm.contracts import Batch
from coordvlm.losses.box_head import HeadGIoU, HeadL1
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.models.heads import BoxHead, build_heads
from coordvlm.modules.optim import OptimSettings, group_of, parameter_groups
from tests.tiny import Tiny, random_sample, tiny


def with_head(**options: object) -> Tiny:
    t = tiny(**options)  # type: ignore[arg-type]
    t.backbone.heads = build_heads({"box_head_end", "text_nll"}, 32, seed=0)
    return t


@pytest.fixture(scope="module")
def t() -> Tiny:
    return with_head()


def recipe(at: str = "end") -> WeightedSum:
    return WeightedSum({"l1": Weighted(HeadL1(at=at), 5.0), "giou": Weighted(HeadGIoU(at=at), 2.0)}, average="token")


def phrases(t: Tiny, seed: int = 0) -> Batch:
    """Two samples with one box, one without, one with two."""
    return t.batch(seed, counts=(1, 0, 1, 2), sides=((48, 32), (32, 32), (32, 64), (32, 32)))


def test_the_head_is_read_where_the_end_of_turn_is_predicted(t: Tiny) -> None:
    batch = phrases(t)
    assert batch.query_sample.tolist() == [0, 2]
    ends = batch.text_row[batch.text_is_end]
    assert batch.query_row.tolist() == ends[[0, 2]].tolist()
    assert batch.input_ids.flatten()[batch.query_row + 1].tolist() == [t.vocab.end_id] * 2
    boxes = batch.slot_value[batch.box_slot]
    assert torch.equal(batch.query_box, boxes[torch.isin(batch.box_sample, batch.query_sample)])
    features = t.backbone.image_features(batch.pixels, batch.image_grid_thw)
    hidden = t.backbone.hidden(batch.input_ids, batch.position_ids, features=features, image_pos=batch.image_pos)
    out = t.backbone(batch, {"box_head_end", "box_head_start"})
    head = t.backbone.heads["box"]
    for q, b in enumerate(batch.query_sample.tolist()):
        torch.testing.assert_close(out.box_head_end[q], head(hidden[b, batch.lengths[b] - 2]))
        torch.testing.assert_close(out.box_head_start[q], head(hidden[b, batch.prompt_lengths[b] - 1]))


def test_boxes_are_never_inside_out() -> None:
    head = BoxHead(8, torch.Generator().manual_seed(0))
    states = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * 30
    boxes = head(states)
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    assert ((centre >= 0) & (centre <= 1)).all()
    with torch.no_grad():
        head.outer.weight.zero_()
    torch.testing.assert_close(head(states[:1]), torch.tensor([[0.25, 0.25, 0.75, 0.75]]))


@pytest.mark.parametrize("at", ["end", "start"])
def test_the_gradient_reaches_head_and_model(at: str) -> None:
    t = with_head(seed=1)
    losses, batch = recipe(at), phrases(t)
    losses(t.backbone(batch, losses.needs), batch, losses.counts(batch)).total.backward()
    for parameter in t.backbone.heads.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert t.backbone.hf.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_a_batch_without_a_single_box_uses_the_head_all_the_same() -> None:
    """Else another rank of a distributed run would wait for its gradients."""
    t = with_head(seed=2)
    losses = recipe()
    batch = t.batch(0, counts=(0, 2, 3))
    out = losses(t.backbone(batch, losses.needs), batch, {"query": 0})
    assert float(out.total.detach()) == 0.0
    out.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in t.backbone.heads.parameters())


def test_one_batch_is_learned_by_the_head_alone(t: Tiny) -> None:
    batch, losses = phrases(t, seed=3), recipe()
    features = t.backbone.image_features(batch.pixels, batch.image_grid_thw)
    with torch.no_grad():
        hidden = t.backbone.hidden(batch.input_ids, batch.position_ids, features=features, image_pos=batch.image_pos)
    head = build_heads({"box_head_end"}, 32, seed=5)
    before, t.backbone.heads = t.backbone.heads, head
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(300):
        out = losses(t.backbone.read(hidden.flatten(0, 1), batch, losses.needs), batch, losses.counts(batch))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
    t.backbone.heads = before
    total, count = out.logs["head_iou"]
    assert float(total) / count > 0.9


def test_heads_stay_float32_and_have_a_group_of_their_own() -> None:
    t = with_head(seed=4)
    t.backbone.to(torch.bfloat16)
    assert {p.dtype for p in t.backbone.heads.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = t.backbone(phrases(t), {"box_head_end"})
    assert out.box_head_end.dtype == torch.float32
    settings = OptimSettings(
        lr=1e-3, group_lr={"heads": 5e-3}, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, schedule="constant", warmup=0, final_lr=1.0,
        clip_norm=None, muon_lr=0.01, muon_momentum=0.9,
    )
    groups = {g["name"]: g for g in parameter_groups(t.backbone.named_parameters(), settings)}
    assert groups["heads"]["lr"] == groups["heads/no_decay"]["lr"] == 5e-3
    assert [tuple(p.shape) for p in groups["heads"]["params"]] == [(16, 32), (4, 16)]
    assert "heads/muon" not in groups
    assert group_of("heads.box.inner.weight") == "heads"


def test_only_what_a_recipe_needs_is_built() -> None:
    assert len(build_heads({"text_nll"}, 8, seed=0)) == 0
    one, same, other = (build_heads({"box_head_end", "box_head_start"}, 8, seed=s) for s in (0, 0, 1))
    assert list(one) == ["box"]
    assert torch.equal(one["box"].inner.weight, same["box"].inner.weight)
    assert not torch.equal(one["box"].inner.weight, other["box"].inner.weight)


def test_a_head_that_was_not_built_is_named(t: Tiny) -> None:
    before, t.backbone.heads = t.backbone.heads, nn.ModuleDict()
    try:
        with pytest.raises(ValueError, match=r"box_head_end needs the head 'box', and this model has been built with \[\]"):
            t.backbone(phrases(t), {"box_head_end"})
    finally:
        t.backbone.heads = before


def test_a_prompt_alone_asks_for_no_box(t: Tiny) -> None:
    batch = phrases(t)
    assert replace(batch, window=None).to("cpu").query_box.dtype == torch.float32
    prompt = t.encoder.collate([t.encoder.encode(random_sample(1, 1, (32, 32)), epoch=0, with_answer=False)])
    assert prompt.query_row.shape == prompt.query_sample.shape == (0,)
    assert prompt.query_box.shape == (0, 4)
