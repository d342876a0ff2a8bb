"""The shipped recipes through Hydra, as a user composes them."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from coordvlm.contracts import ModelOutput
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.weighted_sum import LossOutput, WeightedSum
from coordvlm.utils.errors import ConfigError
from tests import questions
from tests.batches import K999, RAGGED, make_batch, output_of, random_logits
from tests.clips import tiny_clips

CONF = Path(__file__).parents[2] / "conf"
FLAGS = ("use_coord_ce", "use_coordexp_loss", "use_geom_loss")
TRAINED = {
    (False, False, False): {"text_ce"},
    (False, True, False): {"text_ce"},
    (False, True, True): {"text_ce", "gate", "l1", "giou"},
    (True, False, False): {"text_ce", "coord_ce"},
    (True, True, False): {"text_ce", "coord_ce"},
    (True, True, True): {"text_ce", "coord_ce", "l1", "giou"},
}


@pytest.fixture(autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _recipe(*overrides: str, loss: str = "ce") -> WeightedSum:
    cfg = compose(overrides=[f"+loss={loss}", "+coords=k999", *overrides])
    try:
        built = instantiate(cfg.loss)
    except InstantiationException as error:
        raise error.__cause__ or error from None
    assert isinstance(built, WeightedSum)
    return built


def _run(recipe: WeightedSum) -> tuple[LossOutput, torch.Tensor]:
    batch = make_batch(RAGGED, grid=K999)
    logits = random_logits(batch, grid=K999)
    out = recipe(output_of(logits, batch), batch, recipe.counts(batch))
    out.total.backward()
    assert logits.grad is not None
    return out, logits.grad


@pytest.mark.parametrize("flags", itertools.product([False, True], repeat=3))
def test_all_eight_combinations_of_the_flags(flags: tuple[bool, bool, bool]) -> None:
    overrides = [f"loss.{name}={str(flag).lower()}" for name, flag in zip(FLAGS, flags, strict=True)]
    if flags not in TRAINED:
        assert flags[2]
        assert not flags[1]
        with pytest.raises(ConfigError, match=r"use_geom_loss=true needs loss.use_coordexp_loss=true"):
            _recipe(*overrides)
        return
    recipe = _recipe(*overrides)
    out, gradient = _run(recipe)
    assert set(out.terms) == TRAINED[flags]
    assert ("coordexp_l1" in out.logs) == flags[1]
    assert torch.isfinite(gradient).all()
    slots_trained = bool(gradient.flatten(0, 1)[make_batch(RAGGED, grid=K999).slot_row].any())
    assert slots_trained == (TRAINED[flags] != {"text_ce"})
    assert ("slot_lse" in recipe.needs) == slots_trained
    assert ("slot_logits" in recipe.needs) == (slots_trained or flags[1])


def test_the_three_recipes_differ_in_nothing_but_the_flags_and_the_mean() -> None:
    cfgs = {name: compose(overrides=[f"+loss={name}", "+coords=k999"]).loss for name in ("ce", "coordexp", "hybrid")}
    plain: dict[str, Any] = {name: OmegaConf.to_container(cfg, resolve=False) for name, cfg in cfgs.items()}
    flags = {name: tuple(cfg.pop(flag) for flag in FLAGS) for name, cfg in plain.items()}
    assert flags == {"ce": (True, False, False), "coordexp": (False, True, True), "hybrid": (True, True, True)}
    assert {name: cfg.pop("average") for name, cfg in plain.items()} == {"ce": "token", "coordexp": "group", "hybrid": "group"}
    assert plain["ce"] == plain["coordexp"] == plain["hybrid"]


def test_weights_follow_flags_and_lambdas() -> None:
    lambdas = ("loss.lambda_coord=2", "loss.lambda_coord_ce=0.5", "loss.alpha_l1=3", "loss.beta_giou=0.25", "loss.gate=0.1")
    assert _recipe(*lambdas, loss="hybrid").weights == {"text_ce": 1, "coord_ce": 0.5, "l1": 6, "giou": 0.5}
    assert _recipe(*lambdas, loss="coordexp").weights == {"text_ce": 1, "gate": 0.1, "l1": 6, "giou": 0.5}
    assert _recipe(*lambdas).weights == {"text_ce": 1, "coord_ce": 0.5}
    assert set(_recipe("loss.gate=0", loss="coordexp").weights) == {"text_ce", "l1", "giou"}


def test_hybrid_is_coordexp_plus_the_cross_entropy_between_bins() -> None:
    """Text, gate and boxes weigh the same in both, so the comparison is about one thing."""

    class CoordCESlice(CoordCE):
        def forward(self, slots: Any) -> Any:
            nll = torch.nn.functional.cross_entropy(slots.slot_logits, slots.slot_bin, reduction="none")
            return self.summed(nll, slots)

    _, hybrid = _run(_recipe(loss="hybrid"))
    _, coordexp = _run(_recipe(loss="coordexp"))
    only_slices = _recipe("loss.average=group")
    only_slices.terms["coord_ce"] = CoordCESlice()
    only_slices.weights["text_ce"] = 0.0
    _, slices = _run(only_slices)
    assert torch.allclose(hybrid, coordexp + slices, atol=1e-12)


def test_average_is_an_override() -> None:
    batch = make_batch(RAGGED, grid=K999)
    assert _recipe("loss.average=token", loss="coordexp").counts(batch) == {"tokens": 52, "box": 6}
    assert _recipe(loss="coordexp").counts(batch) == {"text": 28, "slot": 24, "box": 6}


def test_the_decoder_follows_the_grid_and_its_options() -> None:
    recipe = _recipe("coords=k1000", "loss.decode.read=local", "loss.decode.temperature=0.7")
    assert recipe.decode is not None
    assert (recipe.decode.grid.name, recipe.decode.read, recipe.decode.temperature) == ("k1000", "local", 0.7)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("loss.lambda_coord=nan", r"loss\.lambda_coord .* nan"),
        ("loss.alpha_l1=-1", r"loss\.alpha_l1"),
        ("loss.gate=inf", r"loss\.gate"),
        ("loss.beta_giou=true", r"loss\.beta_giou"),
        ("loss.use_coord_ce=maybe", r"loss\.use_coord_ce|'maybe'"),
        ("loss.average=tokens", "token, group"),
        ("loss.terms.text_ce.weight=-2", "'text_ce'"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        _recipe(override, loss="hybrid")


def test_a_misspelt_flag_is_no_silent_no_op() -> None:
    with pytest.raises(ConfigCompositionException, match="use_coordce"):
        _recipe("loss.use_coordce=true")


def test_a_shipped_term_joins_a_recipe_in_one_override() -> None:
    recipe = _recipe("+loss_term@loss.terms.boxes=giou", "loss.terms.boxes.weight=0.5")
    assert recipe.weights == {"text_ce": 1, "coord_ce": 1, "boxes": 0.5}
    assert recipe.groups["boxes"] == "box"
    _run(recipe)


#: Of ``ModelOutput``: what only questions of counting have.
#: Fields that only clips have -> their shape per frame.
CLIP_FIELDS: dict[str, tuple[int, ...]] = {"frame_entropy": (), "frame_features": (6,), "latent": (4, 2, 2), "latent_true": (4, 2, 2)}
QUESTION_FIELDS = {"point_xy", "done_logit", "token_next", "token_hit", "token_offset"}


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "loss_term").glob("*.yaml")))
def test_every_term_can_stand_alone(name: str) -> None:
    recipe = _recipe(f"+loss_term@loss.terms.it={name}", "loss.lambda_coord_ce=0", "loss.terms.text_ce.weight=0")
    if recipe.needs & QUESTION_FIELDS:  # a batch of answers has none of these
        batch = questions.make_questions(questions.RAGGED, grid=K999)
        states = questions.random_states(batch, grid=K999)
        out = recipe(questions.answers_of(states, batch), batch, recipe.counts(batch))
        out.total.backward()
        assert states.grad is not None
        assert states.grad.any()
    elif recipe.needs & CLIP_FIELDS.keys():
        clips = tiny_clips().batch()
        out = recipe(_of_frames(len(clips.image_pos)), clips, recipe.counts(clips))
    else:
        out, _ = _run(recipe)
    assert set(out.terms) == {"it"}


def _of_frames(number: int) -> ModelOutput:
    """Fields of clips, at random."""
    values = {name: torch.rand(number, *shape) for name, shape in CLIP_FIELDS.items()}
    return ModelOutput(**values)


# --- a new term: a module, its YAML, one line in a recipe ---------------------------------------------------------------

TERM_PY = '''
import torch
from coordvlm.losses.term import LossTerm

class Far(LossTerm):
    """Share of slots whose decoded coordinate is off by more than ``limit``, softened."""
    needs = frozenset({"slot_logits"})
    items = "slot"
    decodes = True

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, slots):
        error_N = (slots.coords - slots.slot_value).abs()
        return self.summed(torch.sigmoid((error_N - self.limit) * 20), slots)
'''
TERM_YAML = """
_target_: coordvlm.losses.weighted_sum.Weighted
weight: 1.0
term:
  _target_: brand_new_term.Far
  limit: 0.1
"""
RECIPE_YAML = """
defaults:
  - hybrid
  - /loss_term@terms.far: far
  - _self_
terms: {far: {weight: 0.5}}
"""


# Composed from outside the repository, as a sweep or a user's own folder is.
RUN_YAML = f"""
defaults: [{{loss: mine}}, {{coords: k999}}, _self_]
hydra: {{searchpath: ["file://{CONF}"]}}
"""


def test_a_new_term_takes_its_own_files_and_one_line_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"brand_new_term.py": TERM_PY, "loss_term/far.yaml": TERM_YAML, "loss/mine.yaml": RECIPE_YAML, "run.yaml": RUN_YAML}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        recipe = instantiate(compose("run").loss)
    sys.modules.pop("brand_new_term")
    assert recipe.weights == {"text_ce": 1, "coord_ce": 1, "l1": 5, "giou": 2, "far": 0.5}
    out, _ = _run(recipe)
    assert 0 < float(out.terms["far"]) < 1
