"""What every recipe of conf/loss for answers in words must do, and the weights of those without flags.

Recipes of counting, which need questions: test_counting_recipes.py.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.targets import validate_targets
from tests.batches import K9, K999, RAGGED, make_batch, output_of, random_logits
from tests.recipes import ANSWERING

CONF = Path(__file__).parents[2] / "conf"
PHASE1 = ("ce", "coordexp", "hybrid")
#: Recipes that keep the flags of phase 1.
FLAGGED = (*PHASE1, "ce_group", "ce_box_head")
ALL = ANSWERING
SOFT = {"text_ce": 1, "soft_ce": 1, "w1": 0.05, "gate": 1}
SEED = {"text_ce": 1, "soft_ce": 2, "w1": 1 / 999, "gate": 2}
WEIGHTS: dict[str, dict[str, float]] = {
    "soft_ce_w1_gate": SOFT,
    "mixed": SOFT | {"coord_ce_slice": 1},
    "soft_ce_w1_gate_seed": SEED,
    "mixed_seed": SEED | {"coord_ce_slice": 1},
    "three_stage": {"text_ce": 1, "gate": 1, "three_stage": 10},
    "coordexp_ciou": {"text_ce": 1, "gate": 1, "l1": 5, "ciou": 2},
}


def _cfg(loss: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+loss={loss}", "+coords=k999", *overrides])


def _recipe(loss: str, *overrides: str) -> WeightedSum:
    try:
        built = instantiate(_cfg(loss, *overrides).loss)
    except InstantiationException as error:
        raise error.__cause__ or error from None
    assert isinstance(built, WeightedSum)
    return built


def _small(recipe: WeightedSum) -> WeightedSum:
    """The recipe on ten bins, so that a gradient takes milliseconds."""
    if recipe.decode is not None:
        recipe.decode = CoordExp(K9, read="expectation", temperature=1.0, window=2, top_k=3)
    return recipe


# --- weights ----------------------------------------------------------------------------------------------------------


def test_every_recipe_without_flags_has_its_weights_here() -> None:
    assert set(WEIGHTS) | set(FLAGGED) == set(ALL)


@pytest.mark.parametrize("loss", WEIGHTS)
def test_weights_and_groups(loss: str) -> None:
    recipe = _recipe(loss)
    assert recipe.weights == pytest.approx(WEIGHTS[loss])
    assert set(recipe.groups.values()) <= {"text", "slot", "box"}
    batch = make_batch(RAGGED)
    counts = _recipe(loss, "loss.average=token").counts(batch)
    assert counts["tokens"] == 52
    assert set(counts) == {"tokens", "box"} if {"three_stage", "l1"} & set(WEIGHTS[loss]) else {"tokens"}


@pytest.mark.parametrize(("loss", "sigma", "temperature"), [("mixed", 2, 1.0), ("mixed_seed", 1, 0.7)])
def test_w1_follows_the_settings_of_soft_ce(loss: str, sigma: float, temperature: float) -> None:
    for built in (_recipe(loss), _recipe(loss, "loss.terms.soft_ce.weight=0")):
        w1 = built._term("w1")
        assert (w1.target, w1.sigma, w1.radius, w1.temperature) == ("gaussian", sigma, 8, temperature)
    assert _recipe(loss, "loss.terms.soft_ce.term.sigma=3")._term("w1").sigma == 3


def test_in_the_studies_units_w1_is_inert() -> None:
    """Uniform logits: the share of w1 in the loss on slots while nothing is known, 2.5 % against 72 %."""
    batch = make_batch(RAGGED, grid=K999)
    output = output_of(torch.zeros_like(random_logits(batch, grid=K999)), batch)
    share = {}
    for loss in ("soft_ce_w1_gate_seed", "soft_ce_w1_gate"):
        recipe = _recipe(loss)
        named = recipe.named(recipe(output, batch, recipe.counts(batch)).terms, "")
        share[loss] = float(recipe.weights["w1"] * named["term/w1"] / named["coord_ce_loss"])
    assert share["soft_ce_w1_gate_seed"] == pytest.approx(0.02, abs=0.01)
    assert share["soft_ce_w1_gate"] > 0.5


def test_thresholds_are_overrides_in_the_chosen_unit() -> None:
    at = "loss.terms.three_stage.term"
    assert _recipe("three_stage")._term("three_stage").t1 == 0.05
    changed = _recipe("three_stage", f"{at}.unit=px", f"{at}.t1=5", f"{at}.norm=l2", f"{at}.form=document")._term("three_stage")
    assert (changed.t1, changed.t2, changed.norm, changed.form) == (5, 19.2, "l2", "document")
    with pytest.raises(ConfigError, match=r"t1 must lie below t2, got 5 and 0\.1 \(unit norm\)"):
        _recipe("three_stage", f"{at}.t1=5")


def test_ciou_stands_where_giou_did() -> None:
    ciou, giou = _recipe("coordexp_ciou"), _recipe("coordexp")
    assert ciou.weights == {"ciou" if name == "giou" else name: weight for name, weight in giou.weights.items()}
    assert set(ciou.monitors) == set(giou.monitors)
    assert _recipe("coordexp_ciou", "loss.terms.ciou.weight=0", "loss.terms.log_wh.weight=0.1").weights == {
        "text_ce": 1, "gate": 1, "l1": 5, "log_wh": 0.1,
    }


def test_the_head_adds_its_terms_to_whatever_the_flags_choose() -> None:
    head = {"head_l1": 5, "head_giou": 2}
    assert _recipe("ce_box_head").weights == _recipe("ce").weights | head
    assert _recipe("ce_box_head", "loss.use_coordexp_loss=true", "loss.use_geom_loss=true").weights.keys() >= {"l1", "giou", *head}
    assert _recipe("ce_box_head").needs >= {"box_head_end"}
    at_start = [f"loss.terms.{name}.term.at=start" for name in head]
    assert {n for n in _recipe("ce_box_head", *at_start).needs if n.startswith("box_head")} == {"box_head_start"}
    with pytest.raises(ConfigError, match="at must be one of end, start, got 'middle'"):
        _recipe("ce_box_head", "loss.terms.head_l1.term.at=middle")


# --- no flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "flag"),
    [*((loss, "use_coord_ce=true") for loss in WEIGHTS), ("mixed", "use_coordexp_loss=false"), ("coordexp_ciou", "lambda_coord=2")],
)
def test_flags_of_phase_one_are_refused(loss: str, flag: str) -> None:
    with pytest.raises(ConfigCompositionException, match=flag.split("=")[0]):
        _cfg(loss, f"loss.{flag}")
    with pytest.raises(ConfigError, match=rf"loss\.{flag.split('=')[0]}: .*WeightedSum takes no such argument"):
        validate_targets(_cfg(loss, f"+loss.{flag}"))


# --- exact normalisation ----------------------------------------------------------------------------------------------


def _gradient(recipe: WeightedSum, micro: Sequence[Sequence[int]], dtype: torch.dtype, *, world_size: int, accumulate: int) -> Tensor:
    """Gradient of one table that all samples share, after one optimiser step cut into ``micro`` (see test_weighted_sum.py)."""
    table = (torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2).to(dtype).requires_grad_()
    batches = [make_batch([RAGGED[i] for i in part]) for part in micro]
    counts = [recipe.counts(b) for b in batches]
    window = {group: sum(c[group] for c in counts) for group in counts[0]}
    for part, batch in zip(micro, batches, strict=True):
        own = torch.stack([table * (1 + i / 7) for i in part])[:, : batch.input_ids.shape[1]]
        out = recipe(output_of(own, batch), batch, window, world_size=world_size, accumulate=accumulate)
        (out.total / accumulate / world_size).backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize("average", ["token", "group"])
@pytest.mark.parametrize("loss", [*ALL, "soft_ce_w1_gate+text_gate"])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(loss: str, average: str) -> None:
    name, _, gated = loss.partition("+")
    recipe = _small(_recipe(name, f"loss.average={average}", *([f"loss.terms.{gated}.weight=1"] if gated else [])))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        whole = _gradient(recipe, [[0, 1, 2, 3]], dtype, world_size=1, accumulate=1)
        assert whole.abs().max() > 0.01
        for micro, world_size, accumulate in (
            ([[0, 1], [2, 3]], 1, 2), ([[3], [0, 1, 2]], 2, 1), ([[1], [0, 3], [2]], 1, 4), ([[0], [1], [2], [3]], 2, 2),
        ):
            cut = _gradient(recipe, micro, dtype, world_size=world_size, accumulate=accumulate)
            assert (cut - whole).abs().max() <= tolerance * whole.abs().max(), (micro, world_size, accumulate)


@pytest.mark.parametrize("loss", ALL)
def test_parts_add_up_and_a_batch_without_a_box_is_finite(loss: str) -> None:
    recipe = _small(_recipe(loss))
    for boxes in (RAGGED, ((), ())):
        batch = make_batch(boxes)
        logits = random_logits(batch)
        out = recipe(output_of(logits, batch), batch, recipe.counts(batch))
        named = recipe.named(out.terms, "train_")
        parts = [named[f"train_{part}"] for part in ("text_loss", "coord_ce_loss", "coord_loss")]
        assert torch.allclose(sum(parts), named["train_total_loss"])
        assert torch.allclose(named["train_total_loss"], out.total)
        out.total.backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        assert float(parts[0]) > 0
        assert (float(parts[1]) > 0) == any(boxes)
        assert bool(logits.grad.flatten(0, 1)[batch.slot_row].any()) == any(boxes)


@pytest.mark.parametrize(("loss", "coords"), [*((loss, "qwen1000") for loss in ALL), ("ce", "pixel"), ("ce", "unit")])
def test_with_coordinates_in_digits_only_one_mean_over_all_tokens_has_a_meaning(loss: str, coords: str) -> None:
    recipe = _recipe(loss, f"coords={coords}")
    if loss in ("ce", "ce_box_head"):  # a head needs no coordinate token
        head = {"head_l1": 5, "head_giou": 2} if loss == "ce_box_head" else {}
        assert recipe.without_slots(format="json_digits").weights == {"text_ce": 1, **head}
        return
    way = "weighs coordinate tokens apart from text" if loss == "ce_group" else "reads coordinate tokens"
    with pytest.raises(ConfigError, match=rf"^loss term '\w+' {way}, but sequence\.format=json_digits .* use loss=ce\b"):
        recipe.without_slots(format="json_digits")
