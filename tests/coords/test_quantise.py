"""Published quantisation cases against the conventions here. Where a scheme truncates, clamps to size - 1 or centres its bins the
difference is stated, not imitated."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from coordvlm.coords.grid import Digits, Grid, to_norm, to_px
from tests.data_root import peer_data

K999, K1000 = Grid("k999", 1000, 999), Grid("k1000", 1000, 1000)
QWEN1000, PIXEL = Digits("qwen1000"), Digits("pixel")
#: Other schemes, and why they are not ours.
NOT_OURS = {
    "pix2seq-2000": "2,000 bins of the pix2seq kind: tested as a grid of 2,000",
    "pix2seq-order": "ymin first, five tokens an object: another sequence",
    "paligemma-cat1000": "read from text, tests/sequence/test_answers.py",
    "paligemma-cat224": "1,024 bins, y first: tested as a grid of 1,024",
    "paligemma-dog640": "read from text, tests/sequence/test_answers.py",
    "kosmos2-44-863": "32 x 32 patches, one token for both axes", "kosmos2-5-911": "the same", "kosmos2-0-1023": "the same",
    "kosmos2-0-0": "the same", "kosmos2-5-37": "the same", "kosmos2-5-6": "the same", "kosmos2-enc-0.390625": "the same",
    "kosmos2-enc-0.0": "the same", "kosmos2-enc-0.5": "the same", "kosmos2-inverted": "the same",
    "florence2-0": "floors and decodes to the middle of a bin", "florence2-100.5": "the same", "florence2--5": "the same",
    "minigpt4-100": "0..100 between braces: tested as a grid of 100 steps",
}  # fmt: skip
TESTED = {
    "qwen2vl-train", "qwen25vl-train", "hf-issue-721", "qwen3vl-dequant", "divisor-disagreement", "pix2seq-1000", "coordexp-codec",
    "coordexp-denorm", "coordexp-fullbox", "coordexp-fullbox-100x50", "cogvlm-3digit", "ms-swift-norm1000",
}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    return {c["id"]: c for c in json.loads((peer_data() / "peer_cases" / "quantise.json").read_text())["cases"]}


def norm(case: dict[str, Any]) -> np.ndarray:
    return to_norm(case["bbox_px"], *case["image_wh"])


def test_every_case_is_tested_or_has_a_reason(cases: dict[str, Any]) -> None:
    assert set(cases) == TESTED | NOT_OURS.keys()
    assert not TESTED & NOT_OURS.keys()


def test_qwen_digits_are_the_published_ones(cases: dict[str, Any]) -> None:
    for name in ("qwen2vl-train", "ms-swift-norm1000"):
        assert QWEN1000.encode(norm(cases[name]), (1, 1)).tolist() == cases[name]["expected_tokens"]
    issue = cases["hf-issue-721"]
    assert QWEN1000.encode(norm(issue), (1, 1)).tolist() == issue["expected_qwen2vl"]
    assert PIXEL.encode(norm(issue), (640, 640)).tolist() == issue["expected_qwen25vl_same_size"]
    assert PIXEL.encode(norm(issue), (1280, 1280)).tolist() == issue["expected_qwen25vl_if_resized_1280"]
    train = cases["qwen25vl-train"]
    assert PIXEL.encode(norm(train), tuple(train["resized_wh"])).tolist() == train["expected_tokens"]


def test_the_last_pixel_belongs_to_the_image() -> None:
    """The training notebook clamps to size - 1; a box that ends at the edge then ends one pixel early."""
    assert PIXEL.encode([0, 0, 1, 1], (644, 420)).tolist() == [0, 0, 644, 420]


def test_decoding_does_not_truncate(cases: dict[str, Any]) -> None:
    case = cases["qwen3vl-dequant"]
    ours = to_px(QWEN1000.decode(case["tokens"], (1, 1)), *case["image_wh"])
    assert np.floor(ours).tolist() == case["expected_px"]
    assert ours[0] == pytest.approx(145.92)
    peer = cases["coordexp-denorm"]
    np.testing.assert_allclose(to_px(QWEN1000.decode(peer["tokens"], (1, 1)), *peer["image_wh"]), peer["expected_px_peer"])


def test_divisors_are_part_of_the_convention(cases: dict[str, Any]) -> None:
    case = cases["divisor-disagreement"]
    np.testing.assert_allclose(K999.decode(case["tokens"]) * case["size"], case["expected_div_999"])
    thousandths = QWEN1000.decode(case["tokens"], (1, 1)) * case["size"]
    np.testing.assert_allclose(thousandths, case["expected_div_1000"])
    assert QWEN1000.in_range([0, 500, 999, 1000], (1, 1))
    assert not QWEN1000.in_range([0, 500, 999, 1001], (1, 1))
    codec = cases["coordexp-codec"]
    assert K999.decode(codec["expected_int"]) == pytest.approx(codec["expected_norm"], abs=1e-15)
    assert K999.num_bins == codec["n_tokens"]
    np.testing.assert_allclose(QWEN1000.decode([97, 514, 283, 996], (1, 1)), cases["cogvlm-3digit"]["expected_norm"])


def test_a_whole_image_stays_whole(cases: dict[str, Any]) -> None:
    for name in ("coordexp-fullbox", "coordexp-fullbox-100x50"):  # the peer clamps to size - 1 and loses a pixel a side
        case = cases[name]
        ours = to_px(K999.decode(case["tokens"]), *case["image_wh"])
        assert ours.tolist() == [0, 0, *case["image_wh"]]
        assert (ours - case["expected_px_peer"]).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("bins", [1000, 2000])
def test_pix2seq_rounds_like_us_except_on_halves(cases: dict[str, Any], bins: int) -> None:
    case, grid = cases[f"pix2seq-{bins}"], Grid("pix2seq", bins, bins - 1)
    x = np.asarray(case["x"])
    half = np.isclose((bins - 1) * x % 1, 0.5) & (x > 0) & (x < 1)  # half to even there, half up here
    ours = grid.encode(x)
    assert ours[~half].tolist() == np.asarray(case["expected_q"])[~half].tolist()
    assert (np.abs(ours - case["expected_q"]) <= 1).all()
    np.testing.assert_allclose(grid.decode(case["expected_q"]), case["expected_back"], atol=1e-9)


def test_other_scales_are_grids_too(cases: dict[str, Any]) -> None:
    loc = cases["paligemma-cat224"]
    np.testing.assert_allclose(to_px(Grid("loc1024", 1024, 1024).decode([0, 0, 1022, 1022]), *loc["image_wh"]), loc["expected_px"])
    mini = cases["minigpt4-100"]
    np.testing.assert_allclose(to_px(Grid("norm100", 101, 100).decode([4, 50, 30, 65]), *mini["image_wh"]), mini["expected_px"])


def test_florence_floors_and_we_round(cases: dict[str, Any]) -> None:
    """Its bin is ours or the one below; its middle of a bin is at most half a bin from where ours decodes to."""
    for name in ("florence2-0", "florence2-100.5", "florence2--5"):
        case = cases[name]
        ours = K1000.encode(norm(case))
        assert set((ours - case["expected_tokens"]).tolist()) <= {0, 1}
        back = to_norm(case["expected_back_float"], *case["image_wh"])
        assert (np.abs(back - K1000.decode(ours)) <= 0.5 / 1000 + 1e-9).all()
