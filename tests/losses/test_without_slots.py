"""Recipes for formats that write coordinates as ordinary text."""

import pytest
import torch

from coordvlm.contracts import ModelOutput
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.coord_error import CoordError
from coordvlm.losses.giou import GIoU
from coordvlm.losses.l1 import L1
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.text_gate import TextGate
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.utils.errors import ConfigError
from tests.batches import K9, make_batch
from tests.losses.checks import decoder


def _sum(average: str = "token", coord_ce: float = 1.0, **more: Weighted) -> WeightedSum:
    terms = {"text_ce": Weighted(TextCE(), 1.0, "tokens"), "coord_ce": Weighted(CoordCE(), coord_ce, "tokens"), **more}
    return WeightedSum(terms, average=average, decode=decoder(), monitors={"coordexp": Weighted(CoordError(K9), True)})


def test_one_mean_over_all_tokens_stays_that_when_all_tokens_are_text() -> None:
    recipe = _sum().without_slots(format="json_digits")
    assert recipe.weights == {"text_ce": 1.0}
    assert recipe.needs == {"text_nll"}
    assert len(recipe.monitors) == 0
    batch = make_batch([(), ()])
    assert recipe.counts(batch) == {"tokens": 2}
    out = recipe(ModelOutput(text_nll=torch.tensor([1.0, 4.0])), batch, recipe.counts(batch))
    assert float(out.total) == 2.5
    logged = {"total_loss": 2.5, "text_loss": 2.5, "coord_loss": 0.0, "coord_ce_loss": 0.0, "term/text_ce": 2.5}
    assert recipe.named(out.terms, "") == logged


def test_text_alone_is_left_as_it_is_in_either_average() -> None:
    for average in ("token", "group"):
        kept = _sum(average, coord_ce=0.0).without_slots(format="json_digits")
        assert (kept.weights, kept.average) == ({"text_ce": 1.0}, average)
        assert kept.counts(make_batch([()])) == {"tokens" if average == "token" else "text": 1}


def test_a_monitor_of_text_stays() -> None:
    recipe = WeightedSum({"text_ce": Weighted(TextCE(), 2.0)}, average="group", monitors={"again": Weighted(TextCE(), 1)})
    kept = recipe.without_slots(format="json_digits")
    assert set(kept.monitors) == {"again"}
    assert kept.weights == {"text_ce": 2.0}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("l1", _sum(l1=Weighted(L1(), 5.0), giou=Weighted(GIoU(), 2.0))),
        ("text_gate", _sum(text_gate=Weighted(TextGate(), 1.0))),
        ("error", _sum(error=Weighted(CoordError(K9), 1.0, "tokens"))),  # one group with text, and yet not the loss of text
    ],
)
def test_a_term_on_coordinates_is_refused_by_name(name: str, recipe: WeightedSum) -> None:
    text = f"loss term '{name}' reads coordinate tokens, but sequence.format=json_digits writes coordinates as digits; use loss=ce"
    with pytest.raises(ConfigError) as error:
        recipe.without_slots(format="json_digits")
    assert str(error.value) == text


@pytest.mark.parametrize("recipe", [_sum("group"), _sum(coord_ce=0.5), _sum(coord_ce=1e-3)])
def test_coordinates_weighed_apart_from_text_are_refused(recipe: WeightedSum) -> None:
    with pytest.raises(ConfigError, match=r"'coord_ce' weighs coordinate tokens apart .*format=qwen2_box .* loss\.average=token"):
        recipe.without_slots(format="qwen2_box")


def test_coordinates_alone_are_refused() -> None:
    recipe = WeightedSum({"coord_ce": Weighted(CoordCE(), 1.0, "tokens")}, average="token")
    with pytest.raises(ConfigError, match="'coord_ce'"):
        recipe.without_slots(format="json_unit")
