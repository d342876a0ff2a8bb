"""Distances of points. References: hand values, scipy, the published formulas in numpy, and each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from coordvlm.contracts import ModelOutput, TermOutput
from coordvlm.losses.one_knot import one_knot
from coordvlm.losses.point_terms import PointL1, PointL2, PointOneKnot, PointSmoothL1, PointTerm, PointThreeStage, PointWing
from coordvlm.losses.slots import Slots
from coordvlm.losses.wing import wing
from coordvlm.utils.errors import ConfigError
from tests.losses.question_checks import assert_is_a_question_term
from tests.questions import RAGGED, Ask, make_questions

STAGES: dict[str, Any] = {
    "unit": "norm", "norm": "l1", "form": "continuous", "t1": {"norm": 0.05, "px384": 9.6, "px": 9.6},
    "t2": {"norm": 0.1, "px384": 19.2, "px": 19.2}, "a": 10.0, "b": 1.0, "m": 0.2,
}
KNOT: dict[str, Any] = {"knot": 0.3, "a": 10.0, "m": 0.2, "norm": "l1"}
TERMS = [
    PointL1(), PointL2(), PointSmoothL1(beta=9.6), PointWing(width=10.0, epsilon=2.0),
    PointOneKnot(**KNOT), PointOneKnot(**KNOT | {"norm": "l2"}),
    *(PointThreeStage(**STAGES | {"unit": u, "norm": n, "form": f}) for u in ("norm", "px384", "px") for n in ("l1", "l2")
      for f in ("continuous", "document")),
]


def name(term: PointTerm) -> str:
    return f"{type(term).__name__} {term.extra_repr()}"


def out_by(term: PointTerm, off_px: tuple[float, float], *, size: tuple[int, int] = (384, 384)) -> TermOutput:
    """The term for one answer that is so many pixels off its object, along x and y."""
    batch = make_questions([Ask((1, 1), ((0.5, 0.25),), size=size)])
    found = batch.ask_xy.double() + torch.tensor([[2 * off_px[0] / size[0], 2 * off_px[1] / size[1]]], dtype=torch.float64)
    out: TermOutput = term(Slots(ModelOutput(point_xy=found), batch))
    return out


def value(term: PointTerm, *off_px: float, size: tuple[int, int] = (384, 384)) -> float:
    return float(out_by(term, (off_px[0], off_px[1]), size=size).sum)


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_it_is_a_term(term: PointTerm) -> None:
    assert_is_a_question_term(term)


def test_l1_and_l2_by_hand() -> None:
    assert value(PointL1(), 96, -48) == pytest.approx(0.5 + 0.25)
    assert value(PointL2(), 96, -48) == pytest.approx(0.25 + 0.0625)


def test_smooth_l1_is_hubers_function_over_its_border() -> None:
    for off in ((3, 0), (5, -9), (-9.6, 9.7), (200, 1)):
        expected = special.huber(0.05, np.array(off) / 192).sum() / 0.05
        assert value(PointSmoothL1(beta=9.6), *off) == pytest.approx(expected, rel=1e-6)


def test_wing_is_the_published_formula_and_meets_itself_at_its_width() -> None:
    """Feng et al. 2018, equation 5, in numpy: w ln(1 + abs(x) / epsilon) below w, else abs(x) - C."""
    w, epsilon = 10.0, 2.0
    x = np.array([-400, -10.001, -10, -9.999, -0.5, 0, 1e-9, 3, 11])
    gap = w - w * np.log(1 + w / epsilon)
    expected = np.where(np.abs(x) < w, w * np.log(1 + np.abs(x) / epsilon), np.abs(x) - gap)
    errors = torch.from_numpy(x).requires_grad_()
    found = wing(errors, width=w, epsilon=epsilon)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-12)
    assert float((found[1] - found[3]).detach()) == pytest.approx(0.001 + 0.001 * w / (w + epsilon), rel=1e-3)  # no jump at w
    found.sum().backward()
    slope = np.sign(x) * np.where(np.abs(x) < w, w / (epsilon + np.abs(x)), 1.0)
    np.testing.assert_allclose(errors.grad, slope, atol=1e-12)
    assert value(PointWing(width=w, epsilon=epsilon), 3, -11) == pytest.approx((expected[7] + expected[8]) / 192, rel=1e-6)


@pytest.mark.parametrize("knot", [0.1, 0.3])
def test_one_knot_is_a_square_and_a_line_that_meet(knot: float) -> None:
    d = torch.linspace(0, 2, 2001, dtype=torch.float64).requires_grad_()
    curve = one_knot(d, knot=knot, a=10.0, m=0.2)
    inside = d < knot
    torch.testing.assert_close(curve[inside], 10 * d[inside] ** 2)
    steps = curve.detach().diff()
    assert (steps > 0).all()
    np.testing.assert_allclose(steps[~inside[:-1]], 0.2 * 0.001, atol=1e-9)
    near, at = (float(one_knot(torch.tensor(x, dtype=torch.float64), knot=knot, a=10.0, m=0.2)) for x in (knot - 1e-9, knot))
    assert at == pytest.approx(near, abs=1e-7)
    curve.sum().backward()
    np.testing.assert_allclose(d.grad, np.where(inside, 20 * d.detach(), 0.2), atol=1e-12)


def test_one_knot_measures_as_it_is_told() -> None:
    assert value(PointOneKnot(**KNOT), 3, 4) == pytest.approx(10 * (7 / 192) ** 2)
    assert value(PointOneKnot(**KNOT | {"norm": "l2"}), 3, 4) == pytest.approx(10 * (5 / 192) ** 2)
    assert value(PointOneKnot(**KNOT), 192, 0) == pytest.approx(10 * 0.3**2 + 0.2 * 0.7)


@pytest.mark.parametrize(("px", "expected"), [(1, 0.00027), (3, 0.0024), (5, 0.0068), (15, 0.0061), (50, 0.062)])
@pytest.mark.parametrize("unit", ["norm", "px384", "px"])
def test_published_values_of_the_document_form(unit: str, px: float, expected: float) -> None:
    found = value(PointThreeStage(**STAGES | {"form": "document", "unit": unit}), px, 0)
    assert f"{found:.2g}" == f"{expected:.2g}"


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("unit", ["norm", "px384", "px"])
def test_both_forms_have_one_gradient_off_the_knots_and_the_continuous_value_only_grows(unit: str, norm: str) -> None:
    along = torch.tensor([0.6, 0.8], dtype=torch.float64)
    reach = 192 * np.linspace(1e-4, 0.9, 901)  # px of 384; no multiple of the grid falls on 9.6 or 19.2 px
    batch = make_questions([Ask((1, 1), ((0.5, 0.5),), size=(384, 384))] * len(reach))
    gradients, values = {}, {}
    for form in ("document", "continuous"):
        found = (batch.ask_xy.double() + torch.from_numpy(reach)[:, None] * along / 192).requires_grad_()
        out = PointThreeStage(**STAGES | {"unit": unit, "norm": norm, "form": form})(Slots(ModelOutput(point_xy=found), batch))
        out.sum.backward()
        gradients[form], values[form] = found.grad, out.per_item
    torch.testing.assert_close(gradients["document"], gradients["continuous"], rtol=0, atol=1e-12)
    assert (values["continuous"].diff() > 0).all()
    assert not (values["document"].diff() > 0).all()
    length = reach / 192 * (1.0 if norm == "l2" else 1.4)
    slope = np.where(length < 0.05, 20 * length, np.where(length < 0.1, 2 * length, 0.2))
    expected = np.ones((1, 2)) if norm == "l1" else along.numpy()[None]
    np.testing.assert_allclose(gradients["continuous"], slope[:, None] * expected, atol=1e-9)


def test_source_pixels_weigh_alike_in_every_image() -> None:
    in_px = PointThreeStage(**STAGES | {"unit": "px"})
    for size in ((640, 480), (100, 2000)):
        assert value(in_px, 7, 0, size=size) == pytest.approx(value(in_px, 0, 7, size=size)) == pytest.approx(value(in_px, 7, 0))
    of_the_image = PointThreeStage(**STAGES)
    assert value(of_the_image, 7, 0, size=(640, 480)) == pytest.approx(value(of_the_image, 7 * 384 / 640, 0))


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_the_pixel_figure_is_the_distance_on_a_side_of_384(term: PointTerm) -> None:
    total, count = out_by(term, (3, 4)).logs["point_px384"]
    assert (float(total), count) == (pytest.approx(5.0, abs=1e-5), 1)
    assert float(out_by(term, (50, 100), size=(100, 50)).logs["point_px384"][0]) == pytest.approx(np.hypot(192, 768))


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_a_question_without_a_next_object_teaches_nothing(term: PointTerm) -> None:
    batch = make_questions(RAGGED)
    found = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = term(Slots(ModelOutput(point_xy=found), batch))
    out.sum.backward()
    assert found.grad is not None
    assert found.grad.any(1).tolist() == batch.ask_has_xy.tolist() == [True, False, True, False, True]
    assert term.count(batch) == out.logs["point_px384"][1] == 3
    assert out.item_sample.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_an_exact_answer_costs_nothing_and_pulls_nowhere(term: PointTerm) -> None:
    batch = make_questions(RAGGED)
    found = batch.ask_xy.clone().requires_grad_()
    out = term(Slots(ModelOutput(point_xy=found), batch))
    out.sum.backward()
    assert float(out.sum.detach()) == 0.0
    assert found.grad is not None
    assert not found.grad.any()


def distance_alone(term: PointTerm, px: Tensor) -> Tensor:
    batch = make_questions([Ask((1, 1), ((0.5, 0.5),), size=(384, 384))] * len(px))
    found = batch.ask_xy.double() + torch.stack((px, torch.zeros_like(px)), -1) / 192
    per_item: Tensor = term(Slots(ModelOutput(point_xy=found), batch)).per_item
    return per_item


@pytest.mark.parametrize("term", [t for t in TERMS if getattr(t, "form", "") != "document"], ids=name)
def test_a_larger_error_costs_more(term: PointTerm) -> None:
    assert (distance_alone(term, torch.linspace(0, 700, 3001, dtype=torch.float64)).diff() > 0).all()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: PointSmoothL1(beta=0), "point_smooth_l1: beta must be"), (lambda: PointWing(width=-1, epsilon=2), "point_wing: width"),
        (lambda: PointWing(width=10, epsilon=float("nan")), "point_wing: epsilon"),
        (lambda: PointOneKnot(**KNOT | {"knot": 0}), "point_one_knot: knot"),
        (lambda: PointOneKnot(**KNOT | {"norm": "linf"}), "point_one_knot: norm must be one of l1, l2, got 'linf'"),
        (lambda: PointThreeStage(**STAGES | {"t1": 0.1}), r"point_three_stage: t1 must lie below t2, got 0\.1 and 0\.1 \(unit norm\)"),
        (lambda: PointThreeStage(**STAGES | {"unit": "cm"}), "point_three_stage: unit must be one of norm, px384, px, got 'cm'"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(build: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build()
