from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordvlm.contracts import Contract, ResizeRule
from coordvlm.metrics.floor import localisation_floor
from tests.metrics.cases import truth

SQUARE = ResizeRule("square", patch=14, merge=2, size=(56, 56))
K999 = Contract("k999", 1000, 999, "objects", "scan", "Find.", False, (), "<{k}>", "<end>", SQUARE)
MODEL = np.array([[56.0, 56.0]])


def test_boxes_on_the_grid_come_back_exactly() -> None:
    known = truth((1, "cat", (0.0, 0.0, 200.0, 100.0)))  # images of 200 x 100
    floor = localisation_floor(known, K999, MODEL)
    assert floor.error_px == pytest.approx([0, 0])
    assert floor.iou == pytest.approx([1])


def test_the_error_of_one_box_by_hand() -> None:
    known = truth((1, "cat", (50.05, 20.0, 100.0, 60.0)))
    back = [round(999 * 50.05 / 200) * 200 / 999, round(999 * 0.2) * 100 / 999, round(999 * 0.5) * 200 / 999, round(999 * 0.6) * 100 / 999]
    back[2] = 500 * 200 / 999  # 499.5 is rounded up
    floor = localisation_floor(known, K999, MODEL)
    corners = [np.hypot(back[0] - 50.05, back[1] - 20), np.hypot(back[2] - 100, back[3] - 60)]
    assert floor.error_px == pytest.approx(corners)
    assert floor.mean_px == pytest.approx(np.mean(corners))


def test_no_oracle_corner_is_farther_than_half_a_step_on_both_axes() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 40, (300, 2)) * [2, 1]
    boxes = np.concatenate([low, low + rng.uniform(5, 50, (300, 2))], 1)
    known = truth(*[(1, "cat", tuple(b)) for b in boxes.tolist()])
    floor = localisation_floor(known, K999, MODEL)
    assert floor.half_step_px == pytest.approx(np.array([[100 / 999, 50 / 999]]))
    assert floor.error_px.max() <= np.hypot(100 / 999, 50 / 999) + 1e-9
    assert floor.error_quantile(0.5) == pytest.approx(np.median(floor.error_px))


def test_half_a_patch_goes_through_the_resize() -> None:
    floor = localisation_floor(truth((1, "cat", (0.0, 0.0, 10.0, 10.0))), K999, MODEL)
    assert floor.half_patch_px.tolist() == [[28 * 200 / 56 / 2, 28 * 100 / 56 / 2]]
    assert floor.half_patch == pytest.approx((50 + 25) / 2)


@pytest.mark.parametrize(("name", "half"), [("qwen1000", (0.1, 0.05)), ("unit", (0.01, 0.005)), ("pixel", (200 / 112, 100 / 112))])
def test_digits_have_a_floor_too(name: str, half: tuple[float, float]) -> None:
    scale = {"qwen1000": 1000, "unit": 10_000, "pixel": 0}[name]
    floor = localisation_floor(truth((1, "cat", (33.3, 21.7, 80.1, 77.7))), replace(K999, coords=name, num_bins=0, scale=scale), MODEL)
    assert floor.half_step_px == pytest.approx(np.array([half]))
    assert 0 < floor.error_px.max() <= np.hypot(*half) + 1e-9


def test_crowds_and_boxes_without_area_are_no_targets() -> None:
    known = truth((1, "cat", (0.0, 0.0, 10.0, 10.0)), (1, "cat", (5.0, 5.0, 5.0, 9.0)), (1, "dog", (1.0, 1.0, 9.0, 9.0)), crowds=(2,))
    floor = localisation_floor(known, K999, MODEL)
    assert (len(floor.iou), floor.left_out) == (1, 2)


def test_no_boxes_have_no_floor() -> None:
    floor = localisation_floor(truth(), K999, MODEL)
    assert np.isnan([floor.mean_px, floor.error_quantile(0.5)]).all()


def test_bad_input_is_named() -> None:
    known = truth((1, "cat", (0.0, 0.0, 10.0, float("inf"))))
    with pytest.raises(ValueError, match="annotation 0 has a box that is not finite"):
        localisation_floor(known, K999, MODEL)
    with pytest.raises(ValueError, match="one size per image"):
        localisation_floor(known, K999, np.ones((2, 2)))
