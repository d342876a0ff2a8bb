"""Where queries come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.queries import FIRST, MODES, QueryPlan, apart, others
from coordvlm.utils.errors import ConfigError, ContractError
from tests.clips import WIDTH, tiny_clips


@pytest.fixture(scope="module")
def batch() -> ClipBatch:
    return tiny_clips().batch()


def states(batch: ClipBatch, seed: int = 0) -> Tensor:
    shape = (*batch.input_ids.shape, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plan(mode: str = "llm", first: str = "init", seed: int = 0) -> QueryPlan:
    return QueryPlan(WIDTH, mode=mode, first=first, trained=("coarse", "fine"), num_frames=3, seed=seed)


def test_the_query_of_a_frame_is_the_state_at_the_one_before(batch: ClipBatch) -> None:
    hidden = states(batch)
    found = plan().plan(hidden, batch)
    assert found.shape == (3, 3, WIDTH)
    flat, at = hidden.flatten(0, 1), batch.image_pos.view(3, 3)
    torch.testing.assert_close(found[:, 1:], flat[at[:, :2]], atol=0, rtol=0)


@pytest.mark.parametrize("first", FIRST)
def test_the_first_query_is_learned_or_that_of_the_mode_token(batch: ClipBatch, first: str) -> None:
    hidden, made = states(batch), plan(first=first)
    found = made.plan(hidden, batch)[:, 0]
    expected = made.init.expand(3, -1) if first == "init" else hidden.flatten(0, 1)[batch.image_pos.view(3, 3)[:, 0] - 1]
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_states_of_the_last_frame_and_of_the_answer_plan_nothing(batch: ClipBatch) -> None:
    hidden = states(batch)
    other = hidden.clone()
    other[:, batch.answer_col - 1 :] += 1
    torch.testing.assert_close(plan().plan(hidden, batch), plan().plan(other, batch), atol=0, rtol=0)


def test_fixed_queries_are_the_static_one(batch: ClipBatch) -> None:
    made = plan("fixed")
    assert (made.plan(states(batch), batch) == made.static).all()


def test_orthogonal_queries_are_at_right_angles_and_of_the_size_of_states(batch: ClipBatch) -> None:
    found = plan("orthogonal").plan(states(batch), batch)
    torch.testing.assert_close(found[0] @ found[0].T, WIDTH * torch.eye(3), atol=1e-4, rtol=0)
    assert (found == found[:1]).all()
    with pytest.raises(ConfigError, match=f"{WIDTH + 1} frames cannot have orthogonal queries in {WIDTH} dimensions"):
        plan("orthogonal").orthogonal(WIDTH + 1, WIDTH)


def test_diverse_queries_have_nothing_of_the_one_before_and_keep_their_length(batch: ClipBatch) -> None:
    raw, found = plan().plan(states(batch), batch), plan("diverse").plan(states(batch), batch)
    torch.testing.assert_close(found[:, 0], raw[:, 0], atol=0, rtol=0)
    torch.testing.assert_close((found[:, 1:] * raw[:, :-1]).sum(-1), torch.zeros(3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), raw.norm(dim=-1), atol=1e-4, rtol=0)


def test_a_query_that_repeats_the_one_before_is_no_nan() -> None:
    same = torch.ones(1, 2, WIDTH, requires_grad=True)
    found = apart(same)
    assert found.isfinite().all()
    found.sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_swapped_queries_are_those_of_the_next_clip(batch: ClipBatch) -> None:
    hidden = states(batch)
    raw, found = plan().plan(hidden, batch), plan("swapped").plan(hidden, batch)
    torch.testing.assert_close(found[1], raw[0], atol=0, rtol=0)
    torch.testing.assert_close(found[0], raw[2], atol=0, rtol=0)


def test_swapped_queries_are_those_of_another_video_and_of_the_same_kind_where_there_is_one(batch: ClipBatch) -> None:
    two = replace(batch, sources=("a", "a", "b"))
    assert others(two).tolist() == [2, 2, 1]  # type: ignore[union-attr]
    kinds = replace(batch, sources=("a", "b", "c"), kinds=("qa", "cue", "qa"))
    assert others(kinds).tolist() == [2, 0, 0]  # type: ignore[union-attr]
    one = replace(batch, sources=("a", "a", "a"))
    assert others(one) is None
    with pytest.raises(ContractError, match="a batch of 3 shows one video alone"):
        plan("swapped").plan(states(batch), one)


def test_random_queries_of_an_evaluation_belong_to_the_clip_whatever_the_batch(batch: ClipBatch) -> None:
    made, hidden = plan("random"), states(batch)
    with torch.no_grad():
        found = made.plan(hidden, batch)
        again = made.plan(hidden.flip(0), replace(batch, ids=batch.ids[::-1]))
        others = plan("random", seed=1).plan(hidden, batch)
    torch.testing.assert_close(again.flip(0), found, atol=0, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1
    assert (found - others).abs().max() > 1
    assert abs(float(found.std()) - 1) < 0.15


def test_random_queries_of_training_are_drawn_anew(batch: ClipBatch) -> None:
    made, hidden = plan("random"), states(batch).requires_grad_()
    assert (made.plan(hidden, batch) - made.plan(hidden, batch)).abs().max() > 1


def test_learned_queries_stay_float32_in_a_narrow_model() -> None:
    assert {p.dtype for p in plan().to(torch.bfloat16).parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", FIRST)
def test_a_first_query_that_nothing_reads_does_not_train(batch: ClipBatch, mode: str, first: str) -> None:
    made, hidden = plan(mode, first), states(batch).requires_grad_()
    found = made.plan(hidden, batch)
    if found.requires_grad:
        found.sum().backward()
    assert made.init.requires_grad == (made.init.grad is not None)


@pytest.mark.parametrize(("settings", "message"), [
    ({"mode": "lm"}, "module.queries must be one of llm, fixed, random, orthogonal, diverse, swapped, got 'lm'"),
    ({"first": "text"}, "module.first_query must be one of init, question, got 'text'"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**settings)
