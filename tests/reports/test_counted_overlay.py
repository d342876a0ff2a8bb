"""A counted image without a truth: what is where."""

from __future__ import annotations

import numpy as np
from PIL import Image

from coordvlm.reports.counted_overlay import MAX_NUMBERS, draw_counted
from coordvlm.reports.overlay import RED
from coordvlm.reports.point_overlay import GREY


def near(picture: Image.Image, colour: tuple[int, int, int], at: tuple[float, float], *, top: int, within: int = 12) -> bool:
    """Whether a colour is found around a place of the image below its title."""
    x, y = round(at[0]), round(at[1]) + top
    part = np.asarray(picture).astype(int)[max(y - within, top) : y + within, max(x - within, 0) : x + within]
    return bool((abs(part - colour) < 40).all(-1).any())


def test_points_are_red_where_they_are_and_repeated_ones_grey() -> None:
    image = Image.new("RGB", (400, 300), "white")
    picture = draw_counted(image, [(100, 50), (300, 200)], [(200, 250)], category="red dot", ended="finished")
    top = picture.height - 300
    assert top > 0  # the title
    assert picture.width == 400
    assert near(picture, RED, (100, 50), top=top)
    assert near(picture, RED, (300, 200), top=top)
    assert near(picture, GREY, (200, 250), top=top)
    assert not near(picture, RED, (200, 250), top=top)
    assert not near(picture, GREY, (100, 50), top=top, within=6)
    assert list(image.getdata()) == [(255, 255, 255)] * (400 * 300)


def test_nothing_many_and_far_away_can_be_drawn() -> None:
    image = Image.new("RGB", (64, 48), "white")
    none = draw_counted(image, [], [], category="a very long category " * 20, ended="finished")
    assert not (abs(np.asarray(none).astype(int) - RED) < 40).all(-1).any()
    rng = np.random.default_rng(0)
    many = [(float(x), float(y)) for x, y in rng.uniform(0, 48, (MAX_NUMBERS + 1, 2))]
    assert draw_counted(image, [*many, (1e9, -1e9)], [], category="dot", ended="x").width >= 64
