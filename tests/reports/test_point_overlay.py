"""Points land on the pixels they name, and captions say what the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from coordvlm.contracts import Asked
from coordvlm.reports import point_overlay
from coordvlm.reports.overlay import GREEN, RED
from coordvlm.reports.point_overlay import GREY, YELLOW, draw_count, draw_step

GROUND = (128, 128, 128)
NONE = np.zeros((0, 2))


def ground(width: int = 384, height: int = 384) -> Image.Image:
    return Image.new("RGB", (width, height), GROUND)


def centre(view: Image.Image, colour: tuple[int, int, int], below: int) -> tuple[float, float]:
    """Mean position of a colour's pixels under the title, in continuous px of the picture itself."""
    pixels = np.asarray(view)[below:]
    rows, columns = np.nonzero((pixels == colour).all(2))
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5


def step(target: tuple[float, float] | None, point: tuple[float, float], *, done: float = 0.03, k: int = 2, num: int = 5,
         unmarked: NDArray[np.float64] = NONE) -> Asked:  # fmt: skip
    return Asked(k, num, target, unmarked, point, done)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All text that is drawn."""
    texts: list[str] = []
    real = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], words: str, *args: object, **kwargs: object) -> None:
        texts.append(words)
        real(self, xy, words, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.parametrize(("size", "factor"), [((384, 384), 1.0), ((96, 96), 4.0), ((1280, 960), 0.5)])
def test_truth_and_prediction_are_at_their_scaled_positions(size: tuple[int, int], factor: float) -> None:
    target, point = (0.25 * size[0], 0.25 * size[1]), (0.75 * size[0], 0.75 * size[1])
    view = draw_step(ground(*size), step(target, point), category="dot")
    below = view.height - round(size[1] * factor)
    assert 0 < below < 40
    for colour, place in ((GREEN, target), (RED, point)):
        assert centre(view, colour, below) == pytest.approx((place[0] * factor, place[1] * factor), abs=0.8)


def test_points_refer_to_the_frame_that_is_named() -> None:
    view = draw_step(ground(), step((25.0, 50.0), (25.0, 50.0)), category="dot", size=(100, 100))
    assert centre(view, GREEN, view.height - 384) == pytest.approx((96, 192), abs=0.8)


def test_the_line_is_yellow_and_says_its_length(written: list[str]) -> None:
    view = draw_step(ground(), step((100.0, 200.0), (112.0, 200.0)), category="red dot")
    assert view.getpixel((105, view.height - 384 + 199)) in (YELLOW, GREEN)
    assert written == ["2/5 red dot · pred_done=0.03", "err=12px"]


@pytest.mark.parametrize(("error", "words"), [(0.04, "0.0px"), (4.26, "4.3px"), (12.4, "12px"), (250.0, "250px")])
def test_errors_below_ten_have_a_digit(error: float, words: str) -> None:
    assert point_overlay.pixels(error) == words


def test_a_finished_image_has_no_target_and_its_point_shows_only_if_the_model_goes_on(written: list[str]) -> None:
    stop = draw_step(ground(), step(None, (50.0, 60.0), done=0.98, k=5), category="dot")
    on = draw_step(ground(), step(None, (50.0, 60.0), done=0.3, k=5), category="dot")
    assert written == ["5/5 dot · pred_done=0.98 · all marked", "5/5 dot · pred_done=0.30 · all marked"]
    for view, shown in ((stop, False), (on, True)):
        pixels = np.asarray(view)
        assert (pixels == RED).all(2).any() == shown
        assert not (pixels == GREEN).all(2).any()
        assert not (pixels == YELLOW).all(2).any()


def test_marked_objects_and_those_that_are_left_are_ringed() -> None:
    asked = step((100.0, 100.0), (300.0, 300.0), unmarked=np.array([[100.0, 100.0], [200.0, 100.0]]))
    view = draw_step(ground(), asked, category="dot", marked_px=np.array([[50.0, 300.0]]))
    below = view.height - 384
    assert centre(view, GREY, below) == pytest.approx((50, 300), abs=0.8)
    assert view.getpixel((199 + 4, below + 99)) == GREEN


def test_an_answer_that_is_not_finite_leaves_the_truth() -> None:
    view = draw_step(ground(), step((100.0, 100.0), (math.nan, 1.0)), category="dot")
    pixels = np.asarray(view)
    assert (pixels == GREEN).all(2).any()
    assert not (pixels == RED).all(2).any()


def test_points_far_outside_are_cut_and_labels_stay_inside() -> None:
    draw_step(ground(), step((100.0, 100.0), (1e30, -1e30)), category="dot")
    corner = draw_step(ground(), step((383.0, 1.0), (371.0, 1.0)), category="dot")
    pixels = np.asarray(corner)[corner.height - 384 :].astype(int)
    assert (pixels[..., 0] - pixels[..., 2] > 100).sum() > 60  # the label, not only the line


def test_a_count_numbers_its_points_and_rings_what_does_not_fit(written: list[str]) -> None:
    true = np.array([[50.0, 50.0], [150.0, 50.0], [250.0, 50.0]])
    points = np.array([[51.0, 50.0], [300.0, 300.0], [149.0, 52.0]])
    view = draw_count(ground(), true, points, [(0, 0), (2, 1)], category="dot", ended="finished")
    assert written == ["3 counted, 3 true · dot · 1 missed · 1 extra · finished", "1", "2", "3"]
    below = view.height - 384

    def circled(place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
        """Whether most of the circle of 12 px around a place has the colour."""
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        hits = 0
        for a in angles:
            spots = [(place[0] - 0.5 + r * np.cos(a), below + place[1] - 0.5 + r * np.sin(a)) for r in (11, 12)]
            hits += colour in [view.getpixel((round(x), round(y))) for x, y in spots]
        return hits > 36

    assert circled((250, 50), GREEN)
    assert circled((300, 300), RED)
    for place in ((50, 50), (150, 50)):
        assert not circled(place, GREEN)
        assert not circled(place, RED)


def test_pairs_must_fit_the_points() -> None:
    with pytest.raises(ValueError, match="each point at most once"):
        draw_count(ground(), np.zeros((2, 2)), np.zeros((2, 2)), [(0, 0), (0, 1)], category="dot")
    with pytest.raises(ValueError, match="each truth at most once and below 1"):
        draw_count(ground(), np.zeros((1, 2)), np.zeros((2, 2)), [(0, 1)], category="dot")


def test_nothing_to_count_and_very_many(written: list[str]) -> None:
    draw_count(ground(), NONE, NONE, [], category="dot", ended="finished")
    many = np.random.default_rng(0).uniform(0, 384, (500, 2))
    draw_count(ground(), many, many, [(i, i) for i in range(500)], category="dot")
    assert written == ["0 counted, 0 true · dot · finished", "500 counted, 500 true · dot"]


def test_a_category_cannot_break_the_picture(written: list[str]) -> None:
    draw_step(ground(), step((1.0, 1.0), (1.0, 1.0)), category="dot\nwith \u202e" + "x" * 500)
    assert "\n" not in written[0]
    assert "\u202e" not in written[0]
    assert "pred_done=0.03" in written[0]
