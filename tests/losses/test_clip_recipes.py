"""Recipes for clips whose answer is a point: weights, what they ask of the model, one step of the optimiser, and refusals."""

from __future__ import annotations

import pytest
import torch

from coordvlm.build.video import clip_readouts, require_clips
from coordvlm.losses.slots import ANSWER_ITEMS
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.utils.errors import ConfigError
from tests.clips import SIZE, TinyClips, tiny_clips
from tests.losses.test_shipped_recipes import _recipe

WEIGHTS: dict[str, dict[str, float]] = {
    "clip_points": {"text_ce": 1, "soft_ce": 1, "w1": 0.05, "gate": 1, "coord_ce_slice": 1},
    "clip_points_ce": {"text_ce": 1, "coord_ce": 1},
    "clip_point_heads": {"point_l1": 1},
}
TOKENS = ("local", "expectation", "argmax")
READOUTS = {"clip_points": TOKENS, "clip_points_ce": TOKENS, "clip_point_heads": ("heads",)}
POINTS = ((10.0, 30.0), (21.0, 21.0), (40.0, 3.0))


@pytest.mark.parametrize("loss", WEIGHTS)
def test_weights_and_readouts(loss: str) -> None:
    recipe = _recipe(loss)
    assert recipe.weights == pytest.approx(WEIGHTS[loss])
    assert clip_readouts(recipe.needs) == READOUTS[loss]
    require_clips(recipe)


@pytest.mark.parametrize("loss", WEIGHTS)
def test_steps_lower_the_loss_of_both_passes(loss: str) -> None:
    recipe = _recipe(loss)
    made = tiny_clips(needs=recipe.needs)
    batch = made.batch(answers=POINTS)
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=2e-3)
    totals = []
    for _ in range(6):
        outputs = made.model(batch, recipe.needs)
        loss_of = {arm: recipe(passes[0], batch, recipe.counts(batch)).total for arm, passes in outputs.items()}
        totals.append([float(loss_of[arm].detach()) for arm in ("coarse", "fine")])
        optimizer.zero_grad()
        torch.stack(list(loss_of.values())).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in made.model.parameters() if p.grad is not None)
        optimizer.step()
    assert all(last < first for first, last in zip(totals[0], totals[-1], strict=True))


def _nll_of_slots(made: TinyClips, recipe: WeightedSum) -> torch.Tensor:
    """Per token of the true answers, by the model's full logits."""
    batch = made.batch(answers=POINTS)
    with torch.no_grad():
        cache = made.model.encode(batch.frames)
        hidden = made.model.coarse(batch, cache).hidden.flatten(0, 1)
    logits = made.model.logits(hidden[batch.slot_row])
    return -logits.log_softmax(-1)[torch.arange(len(batch.slot_row)), batch.slot_bin + made.model.rows.num_base]


def test_ce_is_the_cross_entropy_over_the_whole_vocabulary() -> None:
    recipe = _recipe("clip_points_ce")
    made = tiny_clips(needs=recipe.needs)
    batch = made.batch(answers=POINTS)
    found = recipe(made.model(batch, recipe.needs, ("coarse",))["coarse"][0], batch, recipe.counts(batch))
    assert float(found.terms["coord_ce"]) == pytest.approx(float(_nll_of_slots(made, recipe).mean()), rel=1e-4)


def test_heads_are_asked_for_the_point_on_the_scale_of_their_loss() -> None:
    recipe = _recipe("clip_point_heads")
    made = tiny_clips(needs=recipe.needs)
    batch = made.batch(answers=POINTS)
    output = made.model(batch, recipe.needs, ("coarse",))["coarse"][0]
    assert output.point_xy is not None
    true = torch.tensor(POINTS) / SIZE * 2 - 1
    want = (output.point_xy - true).abs().sum(-1).mean()
    assert float(recipe(output, batch, recipe.counts(batch)).total) == pytest.approx(float(want), rel=1e-5)


def test_clips_answered_in_words_have_no_slots_and_train_their_words() -> None:
    for loss in ("clip_points", "clip_points_ce"):
        recipe = _recipe(loss)
        made = tiny_clips(needs=recipe.needs)
        batch = made.batch()
        counts = recipe.counts(batch)
        found = recipe(made.model(batch, recipe.needs, ("coarse",))["coarse"][0], batch, counts)
        assert counts["slot"] == 0
        assert float(found.total) == pytest.approx(float(found.terms["text_ce"]), rel=1e-5)


def test_heads_are_refused_where_no_question_asks_for_a_point() -> None:
    with pytest.raises(ConfigError, match="point_l1"):
        _recipe("clip_point_heads").require_items(ANSWER_ITEMS, who="task=detect")
