from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coordvlm.losses.slots import Slots
from coordvlm.losses.three_stage import ThreeStage, point_distance, three_stage
from coordvlm.utils.errors import ConfigError
from tests.batches import RAGGED, make_batch, output_of, random_logits
from tests.losses.checks import assert_is_a_term, decoder, run

CURVE: dict[str, float] = {"t1": 0.05, "t2": 0.1, "a": 10.0, "b": 1.0, "m": 0.2}
BY_UNIT: dict[str, Any] = {"t1": {"norm": 0.05, "px384": 9.6, "px": 9.6}, "t2": {"norm": 0.1, "px384": 19.2, "px": 19.2}}
TERM: dict[str, Any] = CURVE | BY_UNIT | {"unit": "norm", "norm": "l1", "form": "continuous"}


def _px(px: float) -> Tensor:
    """Distance on the [-1, 1] scale of an error of so many pixels of 384."""
    return torch.tensor(px * 2 / 384, dtype=torch.float64)


def _curve(px: float, form: str) -> float:
    return float(three_stage(_px(px), form=form, **CURVE))


# --- the curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("px", "value"), [(1, 0.00027), (3, 0.0024), (5, 0.0068), (15, 0.0061), (50, 0.062)])
def test_published_values_of_the_document_form(px: float, value: float) -> None:
    assert f"{_curve(px, 'document'):.2g}" == f"{value:.2g}"


def test_the_document_form_jumps_and_falls_where_an_error_grows() -> None:
    step = 1e-9
    (t1, t2) = (0.05 * 192, 0.1 * 192)
    assert _curve(t1, "document") - _curve(t1 - step, "document") == pytest.approx(-0.0225, abs=1e-8)
    assert _curve(t2, "document") - _curve(t2 - step, "document") == pytest.approx(0.02, abs=1e-8)
    assert _curve(9.7, "document") < _curve(9.0, "document") / 8


def test_the_continuous_form_has_no_jump_and_grows_everywhere() -> None:
    step = 1e-9
    for t in (0.05 * 192, 0.1 * 192):
        assert _curve(t, "continuous") == pytest.approx(_curve(t - step, "continuous"), abs=1e-8)
    d = torch.linspace(0, 4, 4001, dtype=torch.float64)
    assert bool((three_stage(d, form="continuous", **CURVE).diff() > 0).all())


@pytest.mark.parametrize(("d", "value"), [(0.04, 10 * 0.04**2), (0.07, 0.07**2 + 0.0225), (0.5, 0.2 * 0.5 + 0.0125)])
def test_pieces_of_the_continuous_form(d: float, value: float) -> None:
    assert float(three_stage(torch.tensor(d, dtype=torch.float64), form="continuous", **CURVE)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("changed", [{}, {"t1": 0.02, "t2": 0.4, "a": 3.0, "b": 2.0, "m": 0.7}])
def test_both_forms_have_the_slope_of_the_pieces_everywhere(changed: dict[str, float]) -> None:
    curve = CURVE | changed
    t1, t2 = curve["t1"], curve["t2"]
    d = np.concatenate((np.linspace(0, 1.5, 301), [t1, t2, t1 - 1e-9, t2 - 1e-9]))
    expected = np.where(d < t1, 2 * curve["a"] * d, np.where(d < t2, 2 * curve["b"] * d, curve["m"]))
    for form in ("document", "continuous"):
        x = torch.from_numpy(d).requires_grad_()
        three_stage(x, form=form, **curve).sum().backward()
        assert x.grad is not None
        np.testing.assert_allclose(x.grad, expected, atol=1e-12)
    assert 2 * 10 * float(_px(5)) == pytest.approx(0.52, abs=1e-3)  # the published slope at 5 px


def test_half_precision_is_widened_and_huge_distances_stay_finite() -> None:
    d = torch.tensor([0.0, 1e4, 3e38])
    assert torch.isfinite(three_stage(d, form="continuous", **CURVE)).all()
    assert three_stage(d[:2].bfloat16(), form="document", **CURVE).dtype == torch.float32


# --- distances --------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    pred, true = torch.tensor([[0.1, 0.2], [0.5, 0.5]]), torch.tensor([[0.4, 0.6], [0.5, 0.5]])
    assert torch.allclose(point_distance(pred, true, side=2.0, norm="l1"), torch.tensor([1.4, 0.0]))
    assert torch.allclose(point_distance(pred, true, side=2.0, norm="l2"), torch.tensor([1.0, 0.0]))
    assert torch.allclose(point_distance(pred, true, side=torch.tensor([640.0, 480.0]), norm="l1"), torch.tensor([192.0 + 192.0, 0.0]))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_point_on_its_target_has_no_gradient(norm: str) -> None:
    pred = torch.tensor([[0.3, 0.4]], requires_grad=True)
    d = point_distance(pred, torch.tensor([[0.3, 0.4]]), side=2.0, norm=norm)
    three_stage(d, form="continuous", **CURVE).sum().backward()
    assert pred.grad is not None
    assert pred.grad.tolist() == [[0, 0]]


# --- the term ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["norm", "px384", "px"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("form", ["document", "continuous"])
def test_it_is_a_term(unit: str, norm: str, form: str) -> None:
    assert_is_a_term(ThreeStage(**TERM | {"unit": unit, "norm": norm, "form": form}))


def _value(pred: list[float], true: list[float], size: tuple[int, int] = (384, 384), **changed: Any) -> float:
    """The term's value for one box decoded as ``pred``."""

    class Fixed(Slots):
        boxes = torch.tensor([pred], dtype=torch.float64)
        true_boxes = torch.tensor([true], dtype=torch.float64)

    batch = replace(make_batch([RAGGED[2]]), sizes=(size,))
    out = ThreeStage(**TERM | changed)(Fixed(output_of(random_logits(batch), batch), batch, decoder()))
    return float(out.sum)


TRUE = [0.2, 0.3, 0.6, 0.7]


def test_a_box_is_the_mean_of_its_two_corners() -> None:
    one = _value([0.2 + 5 / 384, 0.3, 0.6, 0.7], TRUE)
    assert one == pytest.approx(_curve(5, "continuous") / 2)
    both = (_curve(5, "continuous") + _curve(30, "continuous")) / 2
    assert _value([0.2 + 5 / 384, 0.3, 0.6, 0.7 - 30 / 384], TRUE) == pytest.approx(both)


@pytest.mark.parametrize("form", ["document", "continuous"])
@pytest.mark.parametrize("px", [3.0, 9.5, 9.7, 15.0, 19.1, 19.3, 60.0])
def test_default_thresholds_mean_one_distance_in_every_unit(px: float, form: str) -> None:
    pred = [0.2 + px / 384, 0.3, 0.6, 0.7 - px / 384]
    values = [_value(pred, TRUE, unit=unit, form=form) for unit in ("norm", "px384", "px")]
    assert values == pytest.approx([_curve(px, form)] * 3, rel=1e-9)


def test_source_pixels_weigh_alike_in_every_image_and_along_both_axes() -> None:
    for size in ((640, 480), (100, 2000)):
        across = _value([0.2 + 7 / size[0], 0.3, 0.6, 0.7], TRUE, size, unit="px")
        down = _value([0.2, 0.3, 0.6, 0.7 + 7 / size[1]], TRUE, size, unit="px")
        assert [across, down] == pytest.approx([_curve(7, "continuous") / 2] * 2)
        assert _value([0.2 + 7 / size[0], 0.3, 0.6, 0.7], TRUE, size) == pytest.approx(_curve(7 * 384 / size[0], "continuous") / 2)


def test_every_box_is_scaled_by_the_size_of_its_own_image() -> None:
    batch = replace(make_batch(RAGGED), sizes=((640, 480), (10, 10), (100, 50), (3000, 2000)))
    logits = random_logits(batch)
    whole = ThreeStage(**TERM | {"unit": "px"})(Slots(output_of(logits, batch), batch, decoder()))
    for b, boxes in enumerate(RAGGED):
        alone = replace(make_batch([boxes]), sizes=(batch.sizes[b],))
        part = ThreeStage(**TERM | {"unit": "px"})(Slots(output_of(logits[b : b + 1, : alone.input_ids.shape[1]], alone), alone, decoder()))
        assert torch.allclose(whole.per_item[batch.box_sample == b], part.per_item)


def test_thresholds_can_be_numbers_in_the_chosen_unit() -> None:
    pred = [0.2 + 5 / 384, 0.3, 0.6, 0.7]  # 5 px, beyond a first stage of 4 px
    expected = 1 * float(_px(5)) ** 2 + (10 - 1) * float(_px(4)) ** 2
    for changed in ({"unit": "px384", "t1": 4.0}, {"unit": "px", "t1": 4}, {"unit": "norm", "t1": 4 * 2 / 384}):
        assert _value(pred, TRUE, **changed) == pytest.approx(expected / 2)


def test_l2_is_the_straight_line() -> None:
    assert _value([0.2 + 3 / 384, 0.3 + 4 / 384, 0.6, 0.7], TRUE, norm="l2") == pytest.approx(_curve(5, "continuous") / 2)
    assert _value([0.2 + 3 / 384, 0.3 + 4 / 384, 0.6, 0.7], TRUE, norm="l1") == pytest.approx(_curve(7, "continuous") / 2)


def test_it_logs_the_mean_distance_of_corners_in_pixels_of_384() -> None:
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    total, count = run(ThreeStage(**TERM | {"unit": "px"}), logits, batch).logs["corner_px384"]
    slots = Slots(output_of(logits, batch), batch, decoder())
    apart = (slots.boxes - slots.true_boxes).detach().numpy().reshape(12, 2) * 384
    assert count == 12
    assert float(total) == pytest.approx(np.hypot(*apart.T).sum())


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"unit": "pixel"}, "three_stage: unit must be one of norm, px384, px, got 'pixel'"), ({"norm": "linf"}, "norm"),
        ({"form": "smooth"}, "form must be one of continuous, document"),
        ({"t1": 0.1}, r"t1 must lie below t2, got 0\.1 and 0\.1 \(unit norm\)"), ({"t1": 9.6}, "t1 must lie below t2"),
        ({"t1": -1.0}, "t1 .* above 0"), ({"t2": float("nan")}, "t2"), ({"a": 0}, "a must be"), ({"m": float("inf")}, "m must be"),
        ({"unit": "px", "t2": {"norm": 0.1}}, "t2 has no value for unit px, only for norm"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ThreeStage(**TERM | bad)
