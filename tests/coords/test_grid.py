import json
from typing import Any

import numpy as np
import pytest
import torch

from coordvlm.coords.grid import Digits, Grid, quantisation_iou, to_norm, to_px
from coordvlm.utils.errors import ConfigError
from tests.data_root import peer_data

K999 = Grid("k999", 1000, 999)
K1000 = Grid("k1000", 1000, 1000)
BOTH = pytest.mark.parametrize("grid", [K999, K1000], ids=lambda g: g.name)


def _quantise(kind: str) -> list[dict[str, Any]]:
    return json.loads((peer_data() / "peer_cases" / "quantise.json").read_text())[kind]


@BOTH
def test_encoding_a_decoded_bin_gives_the_bin(grid: Grid) -> None:
    bins = np.arange(1000)
    assert (grid.encode(grid.decode(bins)) == bins).all()


@BOTH
def test_encoding_is_monotone_and_stays_in_range(grid: Grid) -> None:
    bins = grid.encode(np.linspace(-0.2, 1.2, 200_001))
    assert (np.diff(bins) >= 0).all()
    assert (bins.min(), bins.max()) == (0, 999)


def test_k999_is_never_off_by_more_than_half_a_bin_and_unbiased() -> None:
    c = (np.arange(999 * 1000) + 0.5) / (999 * 1000)  # midpoints: no value lies exactly between two bins
    error = K999.decode(K999.encode(c)) - c
    assert np.abs(error).max() <= 0.5 / 999 + 1e-12
    assert abs(error.mean()) < 1e-8


def test_k1000_loses_a_whole_bin_at_the_far_edge() -> None:
    assert K1000.decode(K1000.encode(1.0)) - 1.0 == pytest.approx(-1 / 1000)
    assert K999.decode(K999.encode(1.0)) == 1.0


def test_halves_round_up() -> None:
    assert K1000.encode([0.0005, 0.0015, 0.0025]).tolist() == [1, 2, 3]  # half-to-even would give 0, 2, 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_coordinate_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="non-finite"):
        K999.encode([0.5, bad])


def test_published_round_trips_under_the_999_rule() -> None:
    cases = _quantise("derived_round_trips_999")
    assert len(cases) == 6
    for case in cases:
        width, height = case["image_wh"]
        norm = to_norm(case["bbox_px"], width, height)
        bins = K999.encode_box(norm)
        half = np.isclose(999 * norm % 1, 0.5)  # the peer rounds halves to even, the rule here is up: 832.5 -> 833
        assert np.where(half, bins - 1, bins).tolist() == case["tokens_round_999"], case["name"]
        back = to_px(K999.decode(bins), width, height)
        np.testing.assert_allclose(back[~half], np.asarray(case["back_px"])[~half], atol=1e-4, err_msg=case["name"])
        assert (np.abs(back - case["bbox_px"]) <= np.tile(case["bound_px"], 2) + 1e-12).all(), case["name"]


def test_published_encodings_of_other_projects_with_the_same_grid() -> None:
    cases = {c["id"]: c for c in _quantise("cases")}
    pix2seq = cases["pix2seq-1000"]  # rounds half to even; none of its inputs but 0.5 lies on a half (499.5 -> 500 both ways)
    assert K999.encode(pix2seq["x"]).tolist() == pix2seq["expected_q"]
    np.testing.assert_allclose(K999.decode(pix2seq["expected_q"]), pix2seq["expected_back"], atol=1e-9)
    codec = cases["coordexp-codec"]
    assert K999.decode(codec["expected_int"]) == pytest.approx(codec["expected_norm"], abs=1e-15)
    divisors = cases["divisor-disagreement"]
    for grid, key in ((K999, "expected_div_999"), (K1000, "expected_div_1000")):
        np.testing.assert_allclose(grid.decode(divisors["tokens"]) * divisors["size"], divisors[key])
    for case in (cases["qwen2vl-train"], cases["ms-swift-norm1000"]):  # /1000, no coordinate at the clamped edge
        width, height = case["image_wh"]
        assert K1000.encode(to_norm(case["bbox_px"], width, height)).tolist() == case["expected_tokens"]
    whole = cases["coordexp-fullbox"]  # the peer clamps to size - 1 and loses a pixel; here the whole image comes back whole
    assert to_px(K999.decode(whole["tokens"]), *whole["image_wh"]).tolist() == [0, 0, 64, 48]


@BOTH
@pytest.mark.parametrize("at", [0.0, 0.3, 0.9996])
def test_a_box_within_one_bin_is_widened_inside_the_range(grid: Grid, at: float) -> None:
    bins = grid.encode_box([at, at, at + 1e-4, at + 2e-4])
    assert (bins[2:] - bins[:2]).tolist() == [1, 1]
    assert bins.min() >= 0
    assert bins.max() <= 999


def test_only_the_axis_that_collapsed_is_widened() -> None:
    assert K999.encode_box([0.5, 0.1, 0.5001, 0.9]).tolist() == [500, 100, 501, 899]


def test_a_degenerate_box_is_not_repaired() -> None:
    assert K999.encode_box([0.5, 0.1, 0.5, 0.9]).tolist() == [500, 100, 500, 899]


def test_sixteen_pixel_boxes_keep_their_iou_with_rounding_and_not_with_flooring() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform([0, 0], [640 - 16, 480 - 16], (4000, 2))
    boxes = np.concatenate((corner, corner + 16), 1)
    size = np.array([640, 480, 640, 480])
    floored = np.floor(999 * boxes / size) / 999 * size
    lost = np.prod(np.minimum(boxes[:, 2:], floored[:, 2:]) - np.maximum(boxes[:, :2], floored[:, :2]), 1)
    floor_iou = lost / (256 + np.prod(floored[:, 2:] - floored[:, :2], 1) - lost)
    rounded = quantisation_iou(K999, boxes, [(640, 480)] * 4000)
    assert (rounded >= 0.95).mean() == pytest.approx(0.9, abs=0.05)
    assert (floor_iou >= 0.95).mean() == pytest.approx(0.25, abs=0.05)


def test_quantisation_iou_of_nothing_is_empty() -> None:
    assert quantisation_iou(K999, [], []).shape == (0,)


def test_bin_values_are_the_decoded_bins() -> None:
    for dtype in (torch.float32, torch.float64):
        values = K999.bin_values(dtype)
        assert values.dtype == dtype
        np.testing.assert_allclose(values.numpy(), K999.decode(np.arange(1000)), rtol=1e-7)
    assert (K999.decode_tensor(torch.tensor([0, 999])) == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize(("bins", "scale"), [(1, 1), (1000, 998), (1000, 1001), (1000.0, 999), (True, 1), ("1000", 999)])
def test_a_grid_that_would_not_invert_is_refused(bins: Any, scale: Any) -> None:
    with pytest.raises(ConfigError, match=r"coords\."):
        Grid("x", bins, scale)


@pytest.mark.parametrize(("boxes", "size"), [([0, 0, 1, 1], (0, 10)), ([0, 0, 1], (10, 10))])
def test_pixels_without_a_frame_are_refused(boxes: list[float], size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"positive|xyxy"):
        to_norm(boxes, *size)
    with pytest.raises(ValueError, match=r"positive|xyxy"):
        to_px(boxes, *size)


SIZES = [(420, 644), (96, 96), (28, 1000)]


@pytest.mark.parametrize("name", ["qwen1000", "pixel", "unit"])
@pytest.mark.parametrize("size", SIZES)
def test_digits_come_back_within_half_a_step_and_reach_both_edges(name: str, size: tuple[int, int]) -> None:
    digits = Digits(name)
    c = np.random.default_rng(0).uniform(0, 1, (500, 2))
    c[:2] = [[0, 0], [1, 1]]
    steps = {"qwen1000": (1000, 1000), "pixel": size, "unit": (10_000, 10_000)}[name]
    back = digits.decode(digits.encode(c, size), size)
    assert (np.abs(back - c) <= 0.5 / np.asarray(steps) + 1e-12).all()
    assert back[:2].tolist() == [[0, 0], [1, 1]]
    assert digits.in_range(digits.encode(c, size), size)


def test_digits_are_written_plainly() -> None:
    assert Digits("qwen1000").write(427.0) == "427"
    assert Digits("unit").write(0.5) == "0.5000"
    assert Digits("unit").encode([0.12345, 1.2], (0, 0)).tolist() == [0.1235, 1.0]


@pytest.mark.parametrize(("name", "size", "box", "expected"), [
    ("qwen1000", (0, 0), (0.5, 0.99999, 0.50001, 1.0), [500, 999, 501, 1000]),
    ("pixel", (28, 28), (0.5, 0.99999, 0.50001, 1.0), [14, 27, 15, 28]),
    ("unit", (0, 0), (0.5, 0.99999, 0.500001, 1.0), [0.5, 0.9999, 0.5001, 1.0]),
    ("qwen1000", (0, 0), (0.25, 0.25, 0.25, 0.75), [250, 250, 250, 750]),  # no width: an error of the data, never repaired here
])
def test_a_box_thinner_than_a_step_is_widened(name: str, size: tuple[int, int], box: tuple[float, ...], expected: list[float]) -> None:
    assert Digits(name).encode_box(box, size).tolist() == expected


def test_pixels_need_the_resized_image_and_names_are_known() -> None:
    with pytest.raises(ValueError, match="size of the resized image"):
        Digits("pixel").encode([0.5, 0.5], (0, 0))
    with pytest.raises(ConfigError, match="qwen1000, pixel, unit"):
        Digits("pixels")
    assert not Digits("qwen1000").in_range([0, 0, 1001, 5], (0, 0))
    assert not Digits("pixel").in_range([0, 0, 29, 5], (28, 28))
    assert not Digits("unit").in_range([float("nan"), 0, 1, 1], (0, 0))
