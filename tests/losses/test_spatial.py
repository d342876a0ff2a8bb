"""Losses of the spatial head against loops over questions in numpy and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special

from coordvlm.contracts import ModelOutput
from coordvlm.losses.slots import Slots
from coordvlm.losses.spatial import TokenHitBCE, TokenNextCE, TokenOffset
from coordvlm.losses.term import LossTerm
from coordvlm.utils.errors import ConfigError
from tests.losses.question_checks import assert_is_a_question_term, run
from tests.questions import RAGGED, Ask, answers_of, make_questions, random_states

TERMS: list[LossTerm] = [TokenNextCE(), TokenHitBCE(positive_weight=1.0), TokenHitBCE(positive_weight=4.0), TokenOffset(beta=0.1)]


@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
def test_it_is_a_term(term: LossTerm) -> None:
    assert_is_a_question_term(term)


@pytest.mark.parametrize("nearest", [False, True])
def test_next_is_the_mass_on_true_tokens_under_a_softmax_over_the_image(nearest: bool) -> None:
    batch = make_questions(RAGGED, nearest=nearest)
    states = random_states(batch)
    score = answers_of(states, batch).token_next.detach().numpy()
    ask, true = batch.token_ask.numpy(), batch.token_next.numpy()
    out = run(TokenNextCE(), states, batch)
    for a, asks in enumerate(batch.ask_has_xy.tolist()):
        share = special.softmax(score[ask == a])[true[ask == a]].sum()
        assert float(out.per_item[a]) == pytest.approx(-np.log(share) if asks else 0.0)
    assert [int(true[ask == a].sum()) for a in range(5)] == ([2, 0, 1, 0, 2] if nearest else [1, 0, 1, 0, 1])


def test_next_pulls_up_the_true_tokens_by_their_share_and_down_the_others() -> None:
    batch = make_questions([Ask((2, 2), ((0.1, 0.1), (0.9, 0.9)))], nearest=True)
    score = torch.tensor([1.0, 0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    TokenNextCE()(Slots(ModelOutput(token_next=score, token_offset=torch.zeros(4, 2)), batch)).sum.backward()
    p = special.softmax(score.detach().numpy())
    q = np.where(batch.token_next, p, 0) / p[batch.token_next.numpy()].sum()
    np.testing.assert_allclose(score.grad, p - q, atol=1e-12)


def test_scores_of_any_size_are_finite() -> None:
    batch = make_questions(RAGGED, nearest=True)
    score = torch.linspace(-1e30, 1e30, len(batch.token_ask)).requires_grad_()
    out = TokenNextCE()(Slots(ModelOutput(token_next=score, token_offset=torch.zeros(len(score), 2)), batch))
    out.sum.backward()
    assert torch.isfinite(out.sum)
    assert score.grad is not None
    assert torch.isfinite(score.grad).all()


def test_a_question_whose_true_token_is_missing_is_infinite_not_forgotten() -> None:
    batch = make_questions(RAGGED)
    out = run(TokenNextCE(), random_states(batch), replace(batch, token_next=batch.token_next & (batch.token_ask != 2)))
    assert out.per_item.isinf().tolist() == [False, False, True, False, False]


def test_scores_that_are_no_number_show_in_the_loss() -> None:
    batch = make_questions(RAGGED)
    score = torch.zeros(len(batch.token_ask)).masked_fill(batch.token_ask == 4, torch.nan)
    out = TokenNextCE()(Slots(ModelOutput(token_next=score, token_offset=torch.zeros(len(score), 2)), batch))
    assert out.per_item.isnan().tolist() == [False, False, False, False, True]


def test_the_hard_read_out_is_the_best_tokens_centre_and_own_offset() -> None:
    """Cells of 192 x 192 px: the object (96 + 48, 96) is half a half cell right of the first cell's centre."""
    batch = make_questions([Ask((2, 2), ((144 / 384, 96 / 384), (0.9, 0.9)))])
    offset = torch.zeros(4, 2)
    offset[0], offset[3] = torch.tensor([0.75, 0.0]), torch.tensor([0.3, 0.1])
    for best, px, right in ((0, 24.0, 1), (3, np.hypot(144 - 288 - 0.3 * 96, 96 - 288 - 9.6), 0)):
        score = torch.zeros(4)
        score[best] = 1.0
        logs = TokenNextCE()(Slots(ModelOutput(token_next=score, token_offset=offset), batch)).logs
        assert {name: (float(v), n) for name, (v, n) in logs.items()} == {"next_acc": (right, 1), "next_px384": (pytest.approx(px), 1)}


def test_where_any_object_will_do_the_closest_one_is_measured() -> None:
    batch = make_questions([Ask((2, 2), ((144 / 384, 96 / 384), (0.75, 0.75)))], nearest=True)
    given = ModelOutput(token_next=torch.tensor([0.0, 0, 0, 1]), token_offset=torch.tensor([[0.0, 0]] * 3 + [[0.1, 0.0]]))
    logs = TokenNextCE()(Slots(given, batch)).logs
    assert float(logs["next_px384"][0]) == pytest.approx(9.6)
    assert float(logs["next_acc"][0]) == 1


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_hit_is_a_cross_entropy_of_every_image_token(weight: float) -> None:
    batch = make_questions(RAGGED)
    states = random_states(batch)
    logit, hit = answers_of(states, batch).token_hit.detach().numpy(), batch.token_hit.numpy()
    out = run(TokenHitBCE(positive_weight=weight), states, batch)
    expected = -np.where(hit == 1, weight * special.log_expit(logit), special.log_expit(-logit))
    np.testing.assert_allclose(out.per_item, expected, atol=1e-12)
    assert TokenHitBCE(positive_weight=weight).count(batch) == len(hit) == 22
    said = logit > 0
    assert [float(out.logs[name][0]) for name in ("hit_recall", "hit_false")] == [(said & (hit == 1)).sum(), (said & (hit == 0)).sum()]
    assert [out.logs[name][1] for name in ("hit_recall", "hit_false")] == [5, 17]


def test_offsets_are_learned_on_tokens_with_an_object_only() -> None:
    batch = make_questions(RAGGED)
    states = random_states(batch)
    found, hit = answers_of(states, batch).token_offset.detach().numpy(), batch.token_hit.numpy() == 1
    out = run(TokenOffset(beta=0.1), states, batch)
    error = found - batch.token_offset.numpy()
    expected = np.where(hit, special.huber(0.1, error).sum(-1) / 0.1, 0)
    np.testing.assert_allclose(out.per_item, expected, atol=1e-6)
    assert TokenOffset(beta=0.1).count(batch) == hit.sum() == 5
    px = np.linalg.norm(error * batch.token_half.numpy() * 192, axis=1)[hit].sum()
    assert float(out.logs["offset_px384"][0]) == pytest.approx(px, rel=1e-6)
    out.sum.backward()
    assert states.grad is not None
    assert states.grad.flatten(0, 1)[batch.image_pos][:, 5:7].any(1).tolist() == hit.tolist()


@pytest.mark.parametrize(("build", "match"), [(lambda: TokenHitBCE(positive_weight=0), "token_hit_bce: positive_weight must be"),
                                              (lambda: TokenOffset(beta=-1), "token_offset: beta must be")])
def test_settings_that_cannot_mean_anything_are_refused(build: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build()  # type: ignore[operator]
