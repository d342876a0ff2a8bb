from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.sequence.count_marks import Marks
from coordvlm.utils.errors import ConfigError

GREEN = (0, 160, 0)


def marks(**settings: Any) -> Marks:
    return Marks(**{"style": "disc", "radius": 0.05, "colour": GREEN, "jitter": 3.0, "drop": 0.02, **settings})


def frame(width: int = 200, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 100, 150))


def ink(drawn: Image.Image, background: Image.Image) -> np.ndarray:
    """float64[H, W] in [0, 1]: how much of a disc covers each pixel, by the red channel."""
    return 1 - np.asarray(drawn, dtype=float)[..., 0] / np.asarray(background, dtype=float)[..., 0]


def centroid(weight: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(weight.shape) + 0.5
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


@pytest.mark.parametrize("point", [(60.0, 50.0), (60.25, 50.5), (61.9, 49.1)])
@pytest.mark.parametrize("style", ["disc", "dot", "heatmap"])
def test_a_mark_lies_where_it_is_said_to_be(style: str, point: tuple[float, float]) -> None:
    m = marks(style=style)
    got = ink(m.draw(frame(), np.asarray([point])), frame())
    assert centroid(got) == pytest.approx(point, abs=0.06)


@pytest.mark.parametrize(("size", "radius"), [((200, 120), 10.0), ((120, 200), 10.0), ((400, 240), 20.0)])
def test_a_disc_covers_the_area_of_its_radius_whatever_the_image(size: tuple[int, int], radius: float) -> None:
    covered = ink(marks().draw(frame(*size), np.asarray([[size[0] / 2 + 0.3, size[1] / 2]])), frame(*size)).sum()
    assert covered == pytest.approx(np.pi * radius**2, rel=0.01)
    dot = ink(marks(style="dot").draw(frame(*size), np.asarray([[size[0] / 2 + 0.3, size[1] / 2]])), frame(*size)).sum()
    assert dot == pytest.approx(np.pi * (0.4 * radius) ** 2, rel=0.02)


def test_marks_are_of_their_colour_and_the_rest_stays() -> None:
    got = np.asarray(marks().draw(frame(), np.asarray([[60.0, 50.0], [150.0, 80.0]])))
    assert got[50, 60].tolist() == got[80, 150].tolist() == list(GREEN)
    y, x = np.indices(got.shape[:2]) + 0.5
    away = (np.hypot(x - 60, y - 50) > 12) & (np.hypot(x - 150, y - 80) > 12)
    assert (got[away] == (200, 100, 150)).all()


def test_numbers_are_white_count_from_one_and_stay_when_another_mark_is_dropped() -> None:
    m = marks(style="numbered", radius=0.08)
    points = np.asarray([[40.0, 60.0], [100.0, 60.0], [160.0, 60.0]])
    every = np.asarray(m.draw(frame(), points))
    some = np.asarray(m.draw(frame(), points, np.asarray([True, False, True])))
    white = (every > 240).all(-1)
    assert all(white[44:76, x - 16 : x + 16].any() for x in (40, 100, 160))
    np.testing.assert_array_equal(every[:, :70], some[:, :70])
    np.testing.assert_array_equal(every[:, 130:], some[:, 130:])
    assert (some[:, 75:125] == (200, 100, 150)).all()
    first = np.asarray(m.draw(frame(), points[2:]))
    assert (first[:, 130:] != every[:, 130:]).any()  # a 1, not a 3


def test_a_hundred_numbers_stay_inside_their_discs() -> None:
    m = marks(style="numbered", radius=0.04)
    points = np.full((123, 2), 50.0)
    drawn = np.zeros(123, dtype=bool)
    drawn[122] = True
    got = np.asarray(m.draw(frame(), points, drawn))
    y, x = np.indices(got.shape[:2]) + 0.5
    white = (got > 200).all(-1)
    assert white.any()
    assert np.hypot(x - 50, y - 50)[white].max() < 8


def test_the_frame_is_not_changed_and_nothing_to_draw_is_no_copy() -> None:
    image = frame()
    for style in ("numbered", "disc", "dot", "heatmap", "none"):
        assert marks(style=style).draw(image, np.zeros((0, 2))) is image
        marks(style=style).draw(image, np.asarray([[10.0, 10.0]]))
    assert marks(style="none").draw(image, np.asarray([[10.0, 10.0]])) is image
    assert image.tobytes() == frame().tobytes()
    assert marks().draw(image, np.asarray([[10.0, 10.0]]), np.asarray([False])) is image


@pytest.mark.parametrize("style", ["numbered", "disc", "dot", "heatmap"])
def test_marks_beyond_the_border_are_cut_off(style: str) -> None:
    near = [[-3.0, 60.0], [203.0, 60.0], [100.0, -4.0], [100.0, 124.0], [0.0, 0.0], [200.0, 120.0]]
    beyond = np.asarray([*near, [-500.0, 20.0], [900.0, 900.0]])
    got = ink(marks(style=style).draw(frame(), beyond), frame())
    assert got.shape == (120, 200)
    assert got[60, 0] > 0.3 < got[60, 199]
    assert (got[30:90, 40:160] == 0).all()


def test_veils_do_not_add_up() -> None:
    one = ink(marks(style="heatmap").draw(frame(), np.asarray([[60.0, 50.0]])), frame())
    many = ink(marks(style="heatmap").draw(frame(), np.full((9, 2), (60.0, 50.0))), frame())
    np.testing.assert_array_equal(one, many)
    assert one.max() == pytest.approx(0.7, abs=0.02)


def test_training_marks_are_off_by_the_jitter_and_some_are_missing() -> None:
    m = marks(jitter=4.0, drop=0.25)
    points = np.full((20_000, 2), (384.0, 96.0))
    moved, drawn = m.noisy(points, (768, 192), np.random.default_rng(0))
    np.testing.assert_allclose((moved - points).std(0), (8.0, 2.0), rtol=0.03)  # px on a side of 384, each axis
    np.testing.assert_allclose((moved - points).mean(0), 0, atol=0.2)
    assert drawn.mean() == pytest.approx(0.75, abs=0.02)


def test_training_marks_stay_in_the_image_and_can_be_exact() -> None:
    corner = np.zeros((50, 2))
    moved, _ = marks(jitter=30.0).noisy(corner, (100, 50), np.random.default_rng(0))
    assert (moved >= 0).all()
    exact, drawn = marks(jitter=0.0, drop=0.0).noisy(corner + 7, (100, 50), np.random.default_rng(0))
    assert (exact == 7).all()
    assert drawn.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "cross"}, "sequence.marks.style must be one of numbered, disc, dot, heatmap, none, got 'cross'"),
        ({"radius": 0.0}, "sequence.marks.radius must be a number in"),
        ({"radius": 12}, "sequence.marks.radius must be a number in"),
        ({"jitter": -1.0}, "sequence.marks.jitter"),
        ({"jitter": float("nan")}, "sequence.marks.jitter"),
        ({"drop": 1.5}, r"sequence.marks.drop must be a number in \[0, 1\], got 1.5"),
        ({"colour": (0, 300, 0)}, r"sequence.marks.colour must be three integers in \[0, 255\], got \[0, 300, 0\]"),
        ({"colour": (0, 1)}, "sequence.marks.colour"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        marks(**settings)


def test_points_that_are_no_numbers_and_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="marks must be finite points"):
        marks().draw(frame(), np.asarray([[np.nan, 3.0]]))
    with pytest.raises(ValueError, match="drawn on RGB frames, got mode L"):
        marks().draw(frame().convert("L"), np.asarray([[2.0, 3.0]]))


def test_twenty_marks_cost_little() -> None:
    """0.5 ms of this thread's time where it was written; the bound is 3 ms. The fastest of some."""
    image, points = frame(384, 384), np.random.default_rng(0).uniform(0, 384, (20, 2))
    m, times = marks(style="numbered", radius=0.02), []
    for _ in range(20):
        begun = time.thread_time()
        m.draw(image, points)
        times.append(time.thread_time() - begun)
    assert min(times) < 3e-3
