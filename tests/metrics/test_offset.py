"""Offsets that are planted are named, through noise and wrong objects; clean predictions raise no alarm."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from coordvlm.coords.resize import smart_resize
from coordvlm.metrics.conventions import CONVENTIONS, Frame
from coordvlm.metrics.offset import LEAST_PHRASES, estimate_offset, offset_to_json
from coordvlm.metrics.phrases import outcomes
from coordvlm.metrics.robust_line import robust_line
from tests.metrics.phrase_cases import answer, phrases

SIZES = ((640, 480), (480, 640), (640, 427), (500, 375), (612, 612))
THIRD = 0.3


def seen(width, height):
    rows, columns = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=200_000)
    return columns, rows


def scene(seed, n):
    """(true xyxy px, sizes, model sizes, source images) of n phrases, three to an image."""
    rng = np.random.default_rng(seed)
    source = np.arange(n) // 3
    size = np.array(SIZES, dtype=float)[source % len(SIZES)]
    wh = rng.uniform(0.08, 0.5, (n, 2)) * size
    corner = rng.uniform(0, 1, (n, 2)) * (size - wh)
    model = np.array([seen(int(w), int(h)) for w, h in size], dtype=float)
    return np.concatenate((corner, corner + wh), 1), size, model, source


def elsewhere(true, size, rng, wild):
    """For a share ``wild`` of the phrases a box of its size anywhere in the image: the answer is about another thing."""
    wh = true[:, 2:] - true[:, :2]
    corner = rng.uniform(0, 1, wh.shape) * (size - wh)
    return np.where(rng.random((len(true), 1)) < wild, np.concatenate((corner, corner + wh), 1), true)


def estimate(true, predicted, size, model, source):
    gt = phrases(*map(tuple, true.tolist()), source=source.tolist())
    object.__setattr__(gt, "image_wh", size)  # the helper gives all images one size
    answers = {i: answer(i, *([tuple(box)] if box[2] > box[0] and box[3] > box[1] else [])) for i, box in enumerate(predicted.tolist(), 1)}
    return estimate_offset(outcomes(gt, answers), model_wh=model)


def planted(read, seed=0, n=240, noise=0.012, wild=THIRD):
    """read: (true px, size, model size) -> the box as a wrong reading gives it, in px."""
    true, size, model, source = scene(seed, n)
    rng = np.random.default_rng(seed + 999)
    sides = np.tile(size, 2)
    wrong = read(elsewhere(true, size, rng, wild), sides, np.tile(model, 2))
    return estimate(true, np.clip(wrong + rng.normal(0, noise, (n, 4)) * sides, 0, sides), size, model, source)


def padded(true, size, model, centred=True):
    """The box in the square that the image was padded to, read as if it were the image."""
    side = size.max(1, keepdims=True)
    before = (side - size) / 2 if centred else 0
    return (true + before) / side * size


READINGS = {
    "x and y are swapped": lambda t, s, m: (t / s)[:, [1, 0, 3, 2]] * s,
    "pixels of the resized image are read as thousandths": lambda t, s, m: t / s * m / 1000 * s,
    "thousandths are read as pixels of the resized image": lambda t, s, m: t / s * 1000 / m * s,
    "pixels of the source image are read as thousandths": lambda t, s, m: t / 1000 * s,
    "pixels of the source image are read as pixels of the resized one": lambda t, s, m: t / m * s,
    "fractions of the image are read as hundredths": lambda t, s, m: t / s / 100 * s,
    "boxes of the image padded to a square, image centred, are read without the padding": padded,
    "boxes of the image padded to a square, image top left, are read without the padding": lambda t, s, m: padded(t, s, m, False),
    "x, y, width, height is read as two corners": lambda t, s, m: np.concatenate((t[:, :2], t[:, 2:] - t[:, :2]), 1),
}


@pytest.mark.parametrize("words", READINGS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_convention_is_named(words, seed):
    noise = 0.0002 if "hundredths" in words else 0.012
    found = planted(READINGS[words], seed, noise=noise, n=600 if "height" in words else 240)  # most such boxes have no area
    assert found.verdict == "named"
    assert found.convention == words or words in found.alternatives
    assert found.ratio > 1.5
    assert words in found.sentence
    assert f"{found.phrases} boxes" in found.sentence


def test_conventions_are_told_apart_by_images_of_several_sizes():
    for words, read in READINGS.items():
        found = planted(read, 5, n=600, noise=0.0002 if "hundredths" in words else 0.006)
        assert (found.convention, found.alternatives) == (words, ()), words


@pytest.mark.parametrize(("words", "scale"), [("bins of a grid of 1000", 1000 / 999), ("bins of a grid of 999", 999 / 1000)])
@pytest.mark.parametrize("seed", range(4))
def test_a_grid_of_1000_instead_of_999_is_named(words, scale, seed):
    """Less than a pixel: it takes precise boxes and some 1500 phrases. Three in ten lie anywhere."""
    found = planted(lambda t, s, m: t * scale, seed, n=1500, noise=0.002)
    assert found.verdict == "named"
    assert found.convention.startswith(words)
    assert found.grid_scale == pytest.approx(scale, abs=4 * found.grid_scale_se)


def test_whole_bins_of_the_wrong_grid_are_named():
    """Written by one rounding rule, read by the other, nothing else: what a format error looks like on oracle boxes."""
    found = planted(lambda t, s, m: np.floor(1000 * t / s + 0.5) / 999 * s, 0, n=300, noise=0.0, wild=0.0)
    assert found.convention.startswith("bins of a grid of 1000")


@pytest.mark.parametrize(("noise", "wild"), [(0.002, 0.0), (0.01, 0.1), (0.03, THIRD), (0.1, THIRD), (0.0, 0.0)])
def test_clean_predictions_raise_no_alarm(noise, wild):
    for seed in range(12):
        found = planted(lambda t, s, m: t, seed, noise=noise, wild=wild)
        assert found.verdict == "none", (seed, found.sentence)
        assert found.sentence.startswith("No offset")


@pytest.mark.parametrize("shrink", [0.5, 0.7, 0.9])
def test_a_model_that_shrinks_boxes_to_the_middle_is_no_convention(shrink):
    """What a model that is unsure does. Its scale is stated; no convention is blamed."""
    for seed in range(5):
        found = planted(lambda t, s, m: (0.5 + shrink * (t / s - 0.5)) * s, seed, noise=0.03, wild=0.1)
        assert found.verdict == "unnamed", found.sentence
        assert found.lines["x"].scale == pytest.approx(shrink, abs=0.05)


def test_boxes_that_ignore_the_truth_are_no_convention():
    for seed in range(10):
        assert planted(lambda t, s, m: t, seed, wild=1.0).convention == ""
        assert planted(lambda t, s, m: s * np.array([0.3, 0.3, 0.7, 0.7]), seed, noise=0.02, wild=0.0).convention == ""


def test_boxes_that_are_a_little_too_tight_are_no_grid():
    """Half a thousandth on every side tilts a line through both corners by about as much as a grid of 999 does."""
    inward = np.array([1, 1, -1, -1]) * 0.0006
    for seed in range(3):
        assert planted(lambda t, s, m: t + inward * s, seed, n=1500, noise=0.001, wild=0.1).verdict == "none"


def test_a_shift_alone_is_stated():
    found = planted(lambda t, s, m: t + 0.05 * s)
    assert found.verdict == "unnamed"
    assert found.lines["x"].shift == pytest.approx(0.05, abs=0.01)
    assert found.lines["y"].scale == pytest.approx(1.0, abs=0.02)


def test_square_images_cannot_show_a_missing_letterbox():
    true, size, model, source = scene(0, 200)
    square = np.full_like(size, 500.0)
    box = true / np.tile(size, 2) * 500
    found = estimate(box, padded(box, np.tile(square, 2), None), square, model, source)
    assert found.verdict == "none"


def test_too_few_boxes_say_so():
    found = planted(lambda t, s, m: t / 2, n=LEAST_PHRASES - 1)
    assert (found.verdict, found.convention) == ("too_few", "")
    assert "too few" in found.sentence


def test_equal_boxes_determine_no_line():
    true, size, model, source = scene(0, 60)
    one = np.tile(true[:1], (60, 1))
    assert estimate(one, one, np.tile(size[:1], (60, 1)), model, source).verdict == "too_few"


def test_sizes_must_fit():
    gt = phrases((0.0, 0.0, 9.0, 9.0))
    with pytest.raises(ValueError, match="1 phrases need as many model sizes"):
        estimate_offset(outcomes(gt, {}), model_wh=np.zeros((2, 2)))


def test_the_entry_of_metrics_is_strict_json():
    for found in (planted(READINGS["x and y are swapped"]), planted(lambda t, s, m: t, n=5)):
        content = json.loads(json.dumps(offset_to_json(found), allow_nan=False))
        assert content["sentence"] == found.sentence
    assert content["ratio"] is None


def test_every_convention_keeps_shapes_and_names_itself_once():
    true, size, model, _ = scene(3, 30)
    for words, convention in CONVENTIONS.items():
        assert convention(true / np.tile(size, 2), Frame(size, model)).shape == (30, 4), words


# ------------------------------------------------------------------------ line
def test_the_line_ignores_forty_percent_of_outliers():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 400)
    y = 0.8 * x + 0.05 + rng.normal(0, 0.01, 400)
    y[:160] = rng.uniform(-3, 3, 160)
    found = robust_line(x, y, np.arange(400), floor=1e-6)
    assert (found.scale, found.shift) == pytest.approx((0.8, 0.05), abs=0.01)
    assert found.inliers == pytest.approx(0.6, abs=0.05)


def test_standard_errors_cover_the_truth():
    """Independent points and points that err together by cluster: two standard errors hold 95 %."""
    for size in (1, 5):
        hits = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            cluster = np.arange(300) // size
            x = rng.uniform(0, 1, 300)
            y = x + rng.normal(0, 0.05, 300) + rng.normal(0, 0.05, 300)[cluster]
            found = robust_line(x, y, cluster, floor=1e-6)
            hits += abs(found.scale - 1) < 1.96 * found.scale_se
        assert 0.83 <= hits / 60 <= 1.0, size  # three standard deviations of 60 draws around 0.95


def test_a_line_needs_points():
    with pytest.raises(ValueError, match="three points"):
        robust_line(np.zeros(2), np.zeros(2), np.arange(2), floor=1.0)
    with pytest.raises(ValueError, match="different places"):
        robust_line(np.ones(9), np.arange(9.0), np.arange(9), floor=1.0)
    single = robust_line(np.arange(9.0), np.arange(9.0), np.zeros(9, dtype=np.int64), floor=0.1)
    assert math.isnan(single.scale_se)
