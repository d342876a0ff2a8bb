"""What every recipe of counting must do: weights, what it asks of the model, exact normalisation, and refusals across tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from coordvlm.losses.slots import ANSWER_ITEMS, QUESTION_ITEMS
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.utils.errors import ConfigError
from tests.losses.test_shipped_recipes import _recipe, _small
from tests.questions import RAGGED, UNKNOWN, Ask, answers_of, make_questions, random_states
from tests.recipes import ANSWERING, COUNTING

DONE = {"done_bce": 3.0}
WEIGHTS: dict[str, dict[str, float]] = {
    "three_stage_heads": {"point_three_stage": 1, **DONE},
    "spatial": {"token_next_ce": 1, "token_hit_bce": 30, "token_offset": 3, "done_bce": 1},
    "point_l1": {"point_l1": 1, **DONE},
    "point_l2": {"point_l2": 1, **DONE},
    "point_smooth_l1": {"point_smooth_l1": 1, **DONE},
    "point_wing": {"point_wing": 1, **DONE},
    "point_knot01": {"point_one_knot": 1, **DONE},
    "point_knot03": {"point_one_knot": 1, **DONE},
    "point_tokens": {"coord_ce_slice": 1, "w1": 0.05, **DONE},
}
FIELDS = {"spatial": {"token_next", "token_hit", "token_offset"}, "point_tokens": {"slot_logits"}}
PIXELS = {"spatial": {"next_px384", "offset_px384"}}


@pytest.mark.parametrize("loss", COUNTING)
def test_weights_and_what_is_read(loss: str) -> None:
    recipe = _recipe(loss)
    assert recipe.weights == WEIGHTS[loss]
    assert recipe.needs == FIELDS.get(loss, {"point_xy"}) | {"done_logit"}


def test_settings_are_overrides() -> None:
    at = "loss.terms.point_three_stage.term"
    term = _recipe("three_stage_heads", f"{at}.form=document", f"{at}.unit=px", f"{at}.norm=l2")._term("point_three_stage")
    assert (term.form, term.unit, term.norm, term.t1) == ("document", "px", "l2", 9.6)
    assert [_recipe(f"point_knot{n}")._term("point_one_knot").knot for n in ("01", "03")] == [0.1, 0.3]
    assert "token_hit" not in _recipe("spatial", "loss.terms.token_hit_bce.weight=0").needs
    both = _recipe("spatial", "+loss_term@loss.terms.point_l1=point_l1")
    assert both.needs >= {"token_next", "point_xy"}


@pytest.mark.parametrize("loss", COUNTING)
def test_the_loss_is_the_weighted_sum_of_means_over_what_was_asked(loss: str) -> None:
    recipe, batch = _small(_recipe(loss)), make_questions(RAGGED)
    states = random_states(batch)
    out = recipe(answers_of(states, batch), batch, recipe.counts(batch))
    number = {"point": 3, "done": 3, "image_token": 22, "hit": 5, "slot": 6}
    mean = {name: float(found.sum.detach()) / number[recipe._term(name).items] for name, found in out.outputs.items()}
    assert float(out.total.detach()) == pytest.approx(sum(WEIGHTS[loss][name] * value for name, value in mean.items()))
    assert PIXELS.get(loss, {"point_px384"}) <= set(out.logs)
    assert out.logs["done_acc"][1] == 3


@pytest.mark.parametrize("loss", COUNTING)
def test_parts_add_up_and_a_batch_without_a_next_object_is_finite(loss: str) -> None:
    recipe = _small(_recipe(loss))
    for asks in (RAGGED, (RAGGED[1], RAGGED[3])):
        batch = make_questions(asks)
        states = random_states(batch)
        out = recipe(answers_of(states, batch), batch, recipe.counts(batch))
        named = recipe.named(out.terms, "train_")
        parts = [named[f"train_{part}"] for part in ("text_loss", "coord_ce_loss", "coord_loss", "done_loss")]
        assert torch.allclose(sum(parts), named["train_total_loss"])
        assert torch.allclose(named["train_total_loss"], out.total)
        out.total.backward()
        assert states.grad is not None
        assert torch.isfinite(states.grad).all()
        assert float(parts[3]) > 0


def test_recipes_of_other_tasks_log_no_loss_of_done() -> None:
    terms = {"text": torch.tensor(1.0)}
    assert "done_loss" not in WeightedSum({"text": Weighted(TextCE(), 1.0)}, average="group").named(terms, "")


def gradient(recipe: WeightedSum, micro: Sequence[Sequence[int]], dtype: torch.dtype, *, world_size: int, accumulate: int) -> Tensor:
    """Gradient of one table that all samples share, after one optimiser step cut into ``micro``, each a batch of its own.

    -1 is a prompt of which nothing is known.
    """
    largest = make_questions([RAGGED[4]])
    table = random_states(largest, seed=3).detach()[0].to(dtype).requires_grad_()
    batches = [make_questions([RAGGED[i] if i >= 0 else UNKNOWN for i in part]) for part in micro]
    counts = [recipe.counts(b) for b in batches]
    window = {group: sum(c[group] for c in counts) for group in counts[0]}
    for part, batch in zip(micro, batches, strict=True):
        own = torch.stack([table * (1 + i / 7) for i in part])[:, : batch.input_ids.shape[1]]
        out = recipe(answers_of(own, batch), batch, window, world_size=world_size, accumulate=accumulate)
        (out.total / accumulate / world_size).backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize("loss", COUNTING)
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(loss: str) -> None:
    recipe = _small(_recipe(loss))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        whole = gradient(recipe, [[0, 1, 2, 3, 4]], dtype, world_size=1, accumulate=1)
        assert whole.abs().max() > 0.01
        for micro, world_size, accumulate in (
            ([[0, 1], [2, 3, 4]], 1, 2), ([[3], [0, 1, 2, 4]], 2, 1), ([[1], [0, 3], [2], [4]], 1, 4), ([[1], [3], [0, 2], [4]], 2, 2),
            ([[0, 1, 2, 3, 4], [-1]], 2, 1),
        ):
            cut = gradient(recipe, micro, dtype, world_size=world_size, accumulate=accumulate)
            assert (cut - whole).abs().max() <= tolerance * whole.abs().max(), (micro, world_size, accumulate)


def test_tokens_report_the_distance_of_their_expectation() -> None:
    batch = make_questions([Ask((1, 1), ((0.5, 0.25),)), Ask((1, 1), (), has_xy=False)])
    states = torch.full_like(random_states(batch), -1e4).detach()
    flat = states.flatten(0, 1)
    flat[batch.slot_row[0], 7 + 6] = flat[batch.slot_row[1], 7 + 0] = 0.0  # of nine steps: x = 6 / 9, y = 0
    recipe = _small(_recipe("point_tokens"))
    recipe.monitors["point_error"].scale = 9
    total, count = recipe(answers_of(states, batch), batch, recipe.counts(batch)).logs["point_px384"]
    assert count == 1
    assert float(total) == pytest.approx(384 * ((6 / 9 - 0.5) ** 2 + 0.25**2) ** 0.5, rel=1e-5)


# --- the other task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", COUNTING)
def test_recipes_of_counting_are_for_questions_alone(loss: str) -> None:
    recipe = _recipe(loss)
    recipe.require_items(QUESTION_ITEMS, who="task=count")
    with pytest.raises(ConfigError, match=r"^loss term '\w+' is a mean over '\w+' items, of which task=detect has none; it has text, slot"):
        recipe.require_items(ANSWER_ITEMS, who="task=detect")


@pytest.mark.parametrize("loss", ANSWERING)
def test_recipes_for_answers_are_not_for_questions(loss: str) -> None:
    recipe = _recipe(loss)
    recipe.require_items(ANSWER_ITEMS, who="task=ground")
    with pytest.raises(ConfigError, match=r"^loss term 'text_ce' is a mean over 'text' items, of which task=count has none; it has slot"):
        recipe.require_items(QUESTION_ITEMS, who="task=count")


def test_a_term_of_another_task_is_found_among_those_that_fit_and_among_monitors() -> None:
    with pytest.raises(ConfigError, match="'giou' is a mean over 'box' items, of which task=count has none"):
        _recipe("point_tokens", "+loss_term@loss.terms.giou=giou").require_items(QUESTION_ITEMS, who="task=count")
    with pytest.raises(ConfigError, match="'text_ce'"):
        _recipe("spatial", "+loss_term@loss.monitors.text_ce=text_ce").require_items(QUESTION_ITEMS, who="task=count")


@pytest.mark.parametrize("loss", COUNTING)
def test_heads_need_no_coordinate_token(loss: str) -> None:
    if loss == "point_tokens":
        with pytest.raises(ConfigError, match="reads coordinate tokens"):
            _recipe(loss).without_slots(format="json_digits")
    else:
        assert _recipe(loss).without_slots(format="json_digits").weights == WEIGHTS[loss]
