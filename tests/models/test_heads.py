from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coordvlm.contracts import TARGET, TEXT, Batch, Prediction, Record
from coordvlm.losses.box_head import HeadGIoU, HeadL1
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.models.decode import Decoder
from coordvlm.models.heads import BoxHead, build_heads
from coordvlm.modules.answerer import with_head_box
from coordvlm.modules.optim import OptimSettings, group_of, parameter_groups
from tests.models.test_decode import OneRowStopsAtEachStep
from tests.tiny import Tiny, random_sample, tiny


def with_head(**options: object) -> Tiny:
    t = tiny(**options)  # type: ignore[arg-type]
    t.backbone.heads = build_heads({"box_head_end", "box_head_start", "text_nll"}, 32, seed=0)
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
    end, start = (t.backbone.heads[name] for name in ("box_end", "box_start"))
    for q, b in enumerate(batch.query_sample.tolist()):
        torch.testing.assert_close(out.box_head_end[q], end(hidden[b, batch.lengths[b] - 2]))
        torch.testing.assert_close(out.box_head_start[q], start(hidden[b, batch.prompt_lengths[b] - 1]))


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
    for parameter in t.backbone.heads[f"box_{at}"].parameters():
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
    assert all(p.grad is not None and not p.grad.any() for p in t.backbone.heads["box_end"].parameters())


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
    assert [tuple(p.shape) for p in groups["heads"]["params"]] == 2 * [(16, 32), (4, 16)]
    assert "heads/muon" not in groups
    assert group_of("heads.box_end.inner.weight") == "heads"


def test_only_what_a_recipe_needs_is_built() -> None:
    assert len(build_heads({"text_nll"}, 8, seed=0)) == 0
    one, same, other = (build_heads({"box_head_end"}, 8, seed=s) for s in (0, 0, 1))
    assert list(one) == ["box_end"]
    assert torch.equal(one["box_end"].inner.weight, same["box_end"].inner.weight)
    assert not torch.equal(one["box_end"].inner.weight, other["box_end"].inner.weight)


def test_a_head_that_was_not_built_is_named(t: Tiny) -> None:
    before, t.backbone.heads = t.backbone.heads, nn.ModuleDict()
    try:
        with pytest.raises(ValueError, match=r"box_head_end needs the head 'box_end', and this model has been built with \[\]"):
            t.backbone(phrases(t), {"box_head_end"})
    finally:
        t.backbone.heads = before


def test_a_prompt_alone_asks_for_no_box(t: Tiny) -> None:
    batch = phrases(t)
    assert replace(batch, window=None).to("cpu").query_box.dtype == torch.float32
    prompt = t.encoder.collate([t.encoder.encode(random_sample(1, 1, (32, 32)), epoch=0, with_answer=False)])
    assert prompt.query_row.shape == prompt.query_sample.shape == (0,)
    assert prompt.query_box.shape == (0, 4)


@pytest.mark.parametrize("at", ["end", "start"])
def test_decoding_reads_the_head_where_it_was_trained(at: str) -> None:
    """The reference is a forward pass, without a cache, over the prompt with the decoded answer as its target."""
    t = tiny(seed=6)
    t.backbone.heads = build_heads({f"box_head_{at}"}, 32, seed=1)
    samples = [random_sample(i, 1, wh) for i, wh in enumerate(((48, 32), (32, 32), (32, 64)))]
    encoded = [t.encoder.encode(s, epoch=0) for s in samples]
    stops = OneRowStopsAtEachStep(t.backbone.num_columns, t.vocab.end_id, [3, 1, 9])
    decoder = Decoder(t.backbone, t.grid.bin_values(), max_new_tokens=6, grammar=stops, mass_radius=10, local_window=16)
    answers = decoder.decode(t.encoder.collate(encoded))
    assert [a.truncated for a in answers] == [False, False, True]
    assert (answers[2].head_box is None) == (at == "end")
    none = np.zeros(0, dtype=np.int64)
    for answer, e in zip(answers, encoded, strict=True):
        kind = np.full(len(answer.token_ids), TEXT, dtype=np.uint8)
        told = replace(
            e, answer_ids=answer.token_ids, answer_kind=kind, slot_object=none, slot_axis=none.astype(np.uint8), slot_bin=none,
            slot_value=none.astype(np.float32), box_prev=none,
        )
        if answer.head_box is not None:
            with torch.no_grad():
                out = t.backbone(t.encoder.collate([told]), {f"box_head_{at}"})
            expected = getattr(out, f"box_head_{at}")[0]
            torch.testing.assert_close(torch.from_numpy(answer.head_box), expected, atol=1e-5, rtol=1e-5)


def test_without_a_head_nothing_is_read() -> None:
    t = tiny(seed=6)
    decoder = Decoder(t.backbone, t.grid.bin_values(), max_new_tokens=2, grammar=None, mass_radius=10, local_window=16)
    assert [a.head_box for a in decoder.decode(phrases(t))] == [None] * 4


def prediction(*statuses: str, box: tuple[float, float, float, float] = (1, 2, 30, 40)) -> Prediction:
    return Prediction(0, (200, 100), tuple(Record(TARGET, box, 0.5, status) for status in statuses))


def test_the_box_of_the_head_stands_in_for_the_first_kept_one() -> None:
    box = np.array([0.1, -0.2, 0.5, 0.5], dtype=np.float32)
    read = with_head_box(prediction("degenerate", "ok", "ok"), box)
    assert read.records[1].box_xyxy_px == pytest.approx((20, 0, 100, 50), abs=1e-4)
    assert [r.box_xyxy_px for r in (read.records[0], read.records[2])] == [(1, 2, 30, 40)] * 2
    assert [r.score for r in read.records] == [0.5] * 3


@pytest.mark.parametrize("box", [None, np.array([0.5, 0.5, 0.5, 0.9], dtype=np.float32), np.array([1.1, 0.1, 1.4, 0.5], dtype=np.float32)])
def test_a_box_without_area_in_the_image_replaces_nothing(box: np.ndarray | None) -> None:
    written = prediction("ok")
    assert with_head_box(written, box) is written


def test_an_answer_without_a_box_gets_none_from_the_head() -> None:
    none = replace(prediction(), flags=frozenset({"says_none"}))
    assert with_head_box(none, np.array([0.1, 0.1, 0.5, 0.5], dtype=np.float32)) is none
