"""Boxes land on the pixels they name."""

from __future__ import annotations

import pytest
from PIL import Image

from coordvlm.reports.overlay import GREEN, RED, Box, draw_overlay

GREY = (128, 128, 128)


def grey(width: int = 96, height: int = 96, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), GREY).convert(mode)


def test_true_and_predicted_edges_are_at_their_scaled_positions() -> None:
    view = draw_overlay(grey(), [Box((10, 20, 40, 60))], [Box((50, 20, 80, 60))])
    assert view.size == (384, 384)  # 4 times
    for x, y in ((40, 120), (160, 120), (100, 80), (100, 240)):
        assert view.getpixel((x, y)) == GREEN, (x, y)
    for x, y in ((200, 120), (320, 120), (260, 80), (260, 240)):
        assert view.getpixel((x, y)) == RED, (x, y)
    for x, y in ((100, 150), (260, 150), (30, 30), (194, 150), (206, 150)):
        assert view.getpixel((x, y)) == GREY, (x, y)


def test_agreement_is_red_inside_green() -> None:
    view = draw_overlay(grey(), [Box((10, 20, 40, 60))], [Box((10, 20, 40, 60))])
    assert [view.getpixel((x, 160)) for x in range(36, 44)] == [GREY, GREEN, GREEN, RED, RED, GREEN, GREEN, GREY]


def test_small_images_grow_by_whole_factors_without_smoothing() -> None:
    image = grey(2, 1)
    image.putpixel((0, 0), (255, 255, 255))
    view = draw_overlay(image, [], [], side=64)
    assert view.size == (64, 32)
    assert set(view.get_flattened_data() if hasattr(view, "get_flattened_data") else view.getdata()) == {(255, 255, 255), GREY}


def test_large_images_shrink_and_boxes_with_them() -> None:
    view = draw_overlay(grey(1280, 640), [Box((200, 200, 600, 600))], [])
    assert view.size == (640, 320)
    assert view.getpixel((100, 200)) == GREEN


def test_boxes_may_refer_to_another_frame() -> None:
    view = draw_overlay(grey(384, 384), [], [Box((100, 100, 300, 300))], size=(768, 768))
    assert view.getpixel((50, 100)) == RED


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_image_mode_is_drawn_on(mode: str) -> None:
    view = draw_overlay(grey(mode=mode), [Box((10, 20, 40, 60))], [])
    assert view.mode == "RGB"
    assert view.getpixel((40, 120)) == GREEN


def test_crossed_corners_are_ordered_and_non_finite_boxes_left_out() -> None:
    nan = float("nan")
    crossed = draw_overlay(grey(), [Box((40, 60, 10, 20))], [])
    assert crossed.tobytes() == draw_overlay(grey(), [Box((10, 20, 40, 60))], []).tobytes()
    broken = [Box((nan, 0, 1, 1), "a"), Box((0, 0, float("inf"), 1), "b")]
    assert draw_overlay(grey(), broken, broken).tobytes() == draw_overlay(grey(), [], []).tobytes()


def test_boxes_far_outside_do_not_break_the_picture() -> None:
    view = draw_overlay(grey(), [Box((-1e30, 20, 1e30, 60))], [Box((500, 500, 600, 600), "away")])
    assert view.getpixel((200, 80)) == GREEN


def test_labels_are_drawn_above_predictions_and_below_truth() -> None:
    plain = draw_overlay(grey(), [Box((10, 40, 60, 60))], [Box((10, 40, 60, 60))])
    view = draw_overlay(grey(), [Box((10, 40, 60, 60), "cat")], [Box((10, 40, 60, 60), "dog \ud800\u202e漢🙂")])
    colours = [{view.getpixel((x, y)) for x in range(38, 60) for y in rows} for rows in (range(140, 155), range(245, 258))]
    assert RED in colours[0]
    assert GREEN in colours[1]
    assert plain.getpixel((39, 150)) == GREY


def test_labels_avoid_each_other() -> None:
    same = (10, 40, 60, 60)
    none, one, two = (count(draw_overlay(grey(), [], [Box(same, "aaaa" * (i < n)) for i in range(2)]), RED) for n in range(3))
    assert two - none > 1.6 * (one - none) > 100


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(n for n, c in image.getcolors(1 << 20) or [] if c == colour)
