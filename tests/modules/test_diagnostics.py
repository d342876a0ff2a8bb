from __future__ import annotations

import pytest
import torch

from coordvlm.coords.grid import Digits, Grid
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.l1 import L1
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.modules.diagnostics import Diagnostics, GradientProbe, can_probe_gradients, probe_parameter
from coordvlm.utils.errors import ConfigError
from tests.tiny import Tiny, tiny


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


def recipe(**weights: float) -> WeightedSum:
    terms = {"text_ce": TextCE(), "coord_ce": CoordCE(), "l1": L1()}
    decode = CoordExp(Grid("k999", 1000, 999), read="expectation", temperature=1.0, window=16, top_k=8)
    return WeightedSum({n: Weighted(terms[n], w) for n, w in weights.items()}, average="group", decode=decode)


def test_the_terms_gradients_add_up_to_that_of_the_loss_over_a_window(model: Tiny) -> None:
    losses = recipe(text_ce=1.0, coord_ce=0.5, l1=5.0)
    batches = [model.batch(seed) for seed in (0, 1)]
    counts = {g: sum(losses.counts(b)[g] for b in batches) for g in losses.counts(batches[0])}
    probe = GradientProbe(model.backbone, losses)
    model.backbone.zero_grad()
    for batch in batches:
        loss = losses(model.backbone(batch, losses.needs), batch, counts)
        probe.add(loss, counts)
        loss.total.backward()  # the graph is still there
    found = probe.compute()
    whole = probe_parameter(model.backbone).grad
    assert whole is not None
    assert found["grad_norm/total"] == pytest.approx(float(whole.norm()), rel=1e-4)
    along = sum(found[f"grad_norm/{n}"] * found[f"grad_cos/{n}"] for n in ("text_ce", "coord_ce", "l1"))
    assert along == pytest.approx(found["grad_norm/total"], rel=1e-4)  # projections on the sum add up to its length
    assert all(-1 - 1e-6 <= v <= 1 + 1e-6 for k, v in found.items() if "cos" in k)


def test_weights_count_and_a_term_without_items_is_zero(model: Tiny) -> None:
    def norms(batch: object, **weights: float) -> dict[str, float]:
        losses = recipe(**weights)
        probe = GradientProbe(model.backbone, losses)
        counts = losses.counts(batch)
        probe.add(losses(model.backbone(batch, losses.needs), batch, counts), counts)
        return probe.compute()

    batch = model.batch(3)
    one, four = norms(batch, text_ce=1.0, coord_ce=1.0), norms(batch, text_ce=1.0, coord_ce=4.0)
    assert four["grad_norm/coord_ce"] == pytest.approx(4 * one["grad_norm/coord_ce"], rel=1e-4)
    assert four["grad_norm/text_ce"] == pytest.approx(one["grad_norm/text_ce"], rel=1e-4)
    none = norms(model.batch(3, counts=(0, 0), sides=((32, 32), (48, 32))), text_ce=1.0, coord_ce=1.0)
    assert none["grad_norm/coord_ce"] == 0
    assert "grad_cos/coord_ce" not in none


def test_a_frozen_language_model_is_probed_at_its_new_rows() -> None:
    frozen = tiny(freeze=["language", "vision"])
    assert probe_parameter(frozen.backbone) is frozen.backbone.rows.rows_in
    assert can_probe_gradients(frozen.backbone)


@pytest.mark.parametrize(
    ("every", "log_every", "steps"),
    [(50, 10, [0, 49, 99]), (1, 1, [0, 1, 2]), (15, 10, [0, 19, 39]), (3, 10, [0, 9, 19]), (0, 10, [])],
)
def test_looks_fall_on_logged_steps(every: int, log_every: int, steps: list[int]) -> None:
    diagnostics = Diagnostics(Grid("k999", 1000, 999), every_n_steps=every)
    assert [s for s in range(120) if diagnostics.due(s, log_every)][: len(steps)] == steps
    assert bool(steps) or not any(diagnostics.due(s, log_every) for s in range(120))


def test_digits_have_no_bins_and_a_wrong_interval_is_refused() -> None:
    assert Diagnostics(Digits("qwen1000"), every_n_steps=5).needs == frozenset()
    with pytest.raises(ConfigError, match=r"every_n_steps must be a whole number.*got -1"):
        Diagnostics(Digits("unit"), every_n_steps=-1)


def test_training_and_validation_see_the_same_on_equal_data(model: Tiny) -> None:
    diagnostics = Diagnostics(model.grid, every_n_steps=1)
    batch = model.batch(5)
    model.backbone.train()
    diagnostics.train.update(model.backbone(batch, diagnostics.needs), batch)
    model.backbone.eval()
    with torch.no_grad():
        diagnostics.val.update(model.backbone(batch, diagnostics.needs), batch)
    assert diagnostics.train.compute() == pytest.approx(diagnostics.val.compute(), rel=1e-5, nan_ok=True)
