"""Heads of counting: what they read, that they stay float32, and why they must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from coordvlm.contracts import Batch
from coordvlm.losses.done_bce import DoneBCE
from coordvlm.losses.point_terms import PointL1
from coordvlm.losses.spatial import TokenHitBCE, TokenNextCE, TokenOffset
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.models.backbone import NEEDS, Backbone
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.heads import BOX_OUTPUTS, HEAD_OUTPUTS, NumberHead, SpatialHead, build_heads, read_heads
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.utils.errors import ConfigError
from tests.questions import DONE, IMAGE, RAGGED, UNKNOWN, Ask, X, Y, make_questions
from tests.tiny import COORD_TOKEN, tiny_hf

MARKERS = ("<x>", "<y>", "<done>")
OUTPUTS = ("point_xy", "done_logit", "token_next", "token_hit", "token_offset")
#: Pixels of 384 per unit of x and y.
HALF_SIDE = 192


def heads(*outputs: str, width: int = 32, seed: int = 0, dropout: float = 0.0) -> nn.ModuleDict:
    return build_heads(outputs or OUTPUTS, width, seed=seed, dropout=dropout, spatial_width=16)


def counting_model(seed: int = 0) -> Backbone:
    """A tiny model with rows for ``<x> <y> <done>`` and all heads."""
    tokenizer = tiny_tokenizer(600)
    tokens = {"num_bins": 1000, "coord_token": COORD_TOKEN, "markers": MARKERS}
    table_size = len(tokenizer) + 40
    add_coord_tokens(tokenizer, **tokens)  # type: ignore[arg-type]
    vocab = coord_vocab(tokenizer, **tokens)  # type: ignore[arg-type]
    hf = tiny_hf(tokenizer, "qwen3_vl", table_size=table_size, tied=True, seed=seed)
    rows = CoordRows(vocab, hf.get_input_embeddings().weight, None, init="fourier", scale=1.0, seed=seed)
    return Backbone(hf, vocab, rows, image_mean=[0.5] * 3, image_std=[0.5] * 3, heads=heads())


def questions(model: Backbone) -> Batch:
    """``RAGGED`` in the ids and patches of the model: noise for images."""
    batch = make_questions(RAGGED)
    names = {IMAGE: model.vocab.image_id, **dict(zip((X, Y, DONE), (model.vocab.marker_ids[m] for m in MARKERS), strict=True))}
    ids = batch.input_ids.clone()
    for here, there in names.items():
        ids[batch.input_ids == here] = there
    pixels = torch.randint(0, 256, (len(batch.pixels), 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return replace(batch, input_ids=ids, pixels=pixels)


def recipe() -> WeightedSum:
    terms = (PointL1(), DoneBCE(), TokenNextCE(), TokenHitBCE(positive_weight=1.0), TokenOffset(beta=0.1))
    return WeightedSum({type(term).__name__: Weighted(term, 1.0) for term in terms}, average="group")


def test_every_head_reads_the_states_it_is_meant_to() -> None:
    batch, built = make_questions(RAGGED), heads()
    flat = torch.randn(batch.input_ids.numel(), 32, generator=torch.Generator().manual_seed(1))
    states = flat.view(*batch.input_ids.shape, 32)
    out = read_heads(built, flat, batch, OUTPUTS)
    start = 0
    for b, ask in enumerate(RAGGED):
        number = ask.cells[0] * ask.cells[1]
        assert batch.input_ids[b, number : number + 3].tolist() == [X, Y, DONE]
        x, y, done = states[b, number : number + 3]
        torch.testing.assert_close(out["point_xy"][b], torch.stack((built["x"](x), built["y"](y))))
        torch.testing.assert_close(out["done_logit"][b], built["done"](done))
        mine = built["spatial"](states[b, :number], torch.stack((x, y, done))[None], torch.zeros(number, dtype=torch.long))
        torch.testing.assert_close(out["token_next"][start : start + number], mine[:, 0])
        torch.testing.assert_close(out["token_hit"][start : start + number], mine[:, 1])
        torch.testing.assert_close(out["token_offset"][start : start + number], mine[:, 2:])
        start += number
    assert start == len(out["token_next"])


def test_all_three_states_of_the_question_tell_image_tokens_what_is_asked() -> None:
    batch, built = make_questions([Ask((2, 2), ((0.1, 0.1),))]), heads("token_next")
    flat = torch.randn(batch.input_ids.numel(), 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    read_heads(built, flat, batch, {"token_next"})["token_next"][0].backward()
    assert flat.grad is not None
    assert flat.grad.any(1).nonzero().flatten().tolist() == [0, *batch.ask_row[0].tolist()]


def test_large_columns_of_pretrained_states_leave_the_spatial_head_in_range() -> None:
    head = heads("token_next")["spatial"]
    states = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)) * torch.tensor([500.0, *[1.0] * 31])
    out = head(states, states[:3][None], torch.zeros(50, dtype=torch.long))
    assert out.abs().max() < 1


def test_first_answers_lie_near_the_centre_and_are_undecided() -> None:
    head = heads(width=256)
    states = torch.randn(200, 256, generator=torch.Generator().manual_seed(1))
    found = torch.stack((head["x"](states), head["y"](states)))
    assert found.abs().max() < 0.7
    assert not torch.allclose(found[0], found[1])
    every = head["spatial"](states, states[:3][None], torch.zeros(200, dtype=torch.long))
    assert every.abs().max() < 0.7


def test_gradients_reach_heads_model_and_the_three_new_rows() -> None:
    model = counting_model()
    batch, losses = questions(model), recipe()
    losses(model(batch, losses.needs), batch, losses.counts(batch)).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.heads.parameters())
    rows = model.rows.rows_in.grad
    assert rows is not None
    new = model.rows.columns(torch.tensor([model.vocab.marker_ids[m] for m in MARKERS])) - model.rows.num_base
    assert rows[new].any(1).all()
    assert model.hf.model.language_model.layers[0].self_attn.q_proj.weight.grad.any()


def test_questions_that_teach_nothing_use_every_head_all_the_same() -> None:
    """Else another rank of a distributed run would wait for their gradients."""
    batch, built, losses = make_questions([UNKNOWN]), heads(), recipe()
    flat = torch.randn(batch.input_ids.numel(), 32).requires_grad_()
    counts = losses.counts(batch)
    assert counts == {"point": 0, "done": 0, "image_token": 0, "hit": 0}
    out = {**read_heads(built, flat, batch, losses.needs)}
    (sum(value.sum() for value in out.values()) * 0).backward()
    assert all(p.grad is not None for p in built.parameters())
    none = replace(batch, **{n: getattr(batch, n)[:0] for n in ("ask_row", "image_pos", "token_ask")})
    empty = read_heads(built, flat, none, OUTPUTS)
    assert {name: tuple(value.shape) for name, value in empty.items()} == {
        "point_xy": (0, 2), "done_logit": (0,), "token_next": (0,), "token_hit": (0,), "token_offset": (0, 2),
    }
    assert all(value.requires_grad for value in empty.values())


# --- precision --------------------------------------------------------------------------------------------------------


def fitted(width: int, states: torch.Tensor, targets: torch.Tensor) -> NumberHead:
    """A head whose last layer solves the targets, in double precision, from what its first layer gives for these states."""
    head = heads("point_xy", width=width)["x"]
    assert isinstance(head, NumberHead)
    with torch.no_grad():
        inner = torch.relu(head.inner(states.float())).double()
        inner = torch.cat((inner, torch.ones(len(inner), 1, dtype=torch.float64)), 1)
        solution = torch.linalg.lstsq(inner, targets.double()[:, None]).solution[:, 0]
        head.outer.weight.copy_(solution[None, :-1])
        head.outer.bias.copy_(solution[-1:])
    return head


def test_the_error_floor_is_far_below_a_tenth_of_a_pixel_and_would_not_be_in_bfloat16() -> None:
    """States in bfloat16 and autocast, as under a bfloat16 backbone; what is lost is what the head itself rounds away."""
    g = torch.Generator().manual_seed(0)
    states, targets = torch.randn(60, 256, generator=g).bfloat16(), torch.rand(60, generator=g) * 2 - 1
    head = fitted(256, states, targets)
    model = nn.Module()
    model.head = head
    model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = head(states)
        low = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
        low[0].load_state_dict(head.inner.state_dict())
        low[2].load_state_dict(head.outer.state_dict())
        rounded = low.bfloat16()(states)[:, 0]
    assert found.dtype == torch.float32
    assert float((found - targets).abs().max()) * HALF_SIDE < 0.1
    assert float((rounded.float() - targets).abs().mean()) * HALF_SIDE > 0.3


def test_bfloat16_has_no_number_between_two_that_are_three_quarters_of_a_pixel_apart() -> None:
    places = torch.linspace(0.5, 1, 100001)[:-1]
    steps = [x.unique().diff().max().item() * HALF_SIDE for x in (places.bfloat16().float(), places)]
    assert steps[0] == pytest.approx(0.75)
    assert steps[1] < 0.002


def test_heads_and_what_they_give_are_float32_in_a_bfloat16_model() -> None:
    model = counting_model(seed=1).to(torch.bfloat16)
    assert {p.dtype for p in model.heads.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(questions(model), OUTPUTS)
    assert {getattr(out, name).dtype for name in OUTPUTS} == {torch.float32}


# --- what is built ----------------------------------------------------------------------------------------------------


def test_only_what_a_recipe_needs_is_built() -> None:
    assert set(heads("point_xy", "slot_logits")) == {"x", "y"}
    assert set(heads("done_logit", "token_hit")) == {"done", "spatial"}
    assert set(build_heads({"done_logit", "box_head_end"}, 8, seed=0, dropout=0.1)) == {"done", "box_end"}
    assert NEEDS >= set(OUTPUTS) | BOX_OUTPUTS == set(HEAD_OUTPUTS)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one, other = heads(), heads("done_logit", seed=1)
    torch.manual_seed(2)
    again = heads("done_logit", "token_hit")
    for name in ("done", "spatial"):
        assert all(torch.equal(a, b) for a, b in zip(one[name].parameters(), again[name].parameters(), strict=True))
    assert not torch.equal(one["done"].inner.weight, other["done"].inner.weight)
    assert not torch.equal(one["x"].inner.weight, one["y"].inner.weight)


def test_dropout_is_where_it_was_asked_for_and_only_in_training() -> None:
    built = heads(dropout=0.5)
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(built["x"](states), built["x"](states))
    built.eval()
    assert torch.equal(built["x"](states), built["x"](states))
    assert [m.p for m in built.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3
    assert isinstance(built["spatial"], SpatialHead)


@pytest.mark.parametrize(
    ("outputs", "settings", "match"),
    [
        ({"point_xy"}, {}, r"heads\.dropout must lie in \[0, 1\) for the head 'x', got None"),
        ({"done_logit"}, {"dropout": 1.0}, r"for the head 'done', got 1\.0"), ({"done_logit"}, {"dropout": float("nan")}, "dropout .* nan"),
        ({"token_hit"}, {"dropout": 0.1}, r"heads\.spatial_width must be an integer of at least 1 for the spatial head, got None"),
        ({"token_hit"}, {"spatial_width": 0}, "spatial_width .* got 0"), ({"token_hit"}, {"spatial_width": 8.0}, r"got 8\.0"),
    ],
)
def test_settings_that_are_missing_or_out_of_range_are_refused(outputs: set[str], settings: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_heads(outputs, 8, seed=0, **settings)  # type: ignore[arg-type]


def test_a_head_that_was_not_built_is_named() -> None:
    batch = make_questions(RAGGED)
    with pytest.raises(ValueError, match=r"point_xy needs the head 'x', and this model has been built with \['done'\]"):
        read_heads(heads("done_logit"), torch.zeros(batch.input_ids.numel(), 32), batch, OUTPUTS)
