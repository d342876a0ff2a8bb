from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Object, Sample
from coordvlm.data.augment import Augment
from coordvlm.data.augment_points import PointAffine, affine_matrix, moved
from coordvlm.data.transforms import Colour
from coordvlm.utils.errors import ConfigError

OFF = Augment(seed=0, max_source_pixels=10**6, paraphrase=None, flip=None, crop=None, colour=None, jitter=None)
WIDTH, HEIGHT = 120, 90
GREY = 60.0


def affine(**settings: Any) -> PointAffine:
    return PointAffine(**{"share": 1.0, "flip": 0.5, "degrees": 20.0, "scale": (0.8, 1.25), "translate": 0.1, **settings})


def blob(points: list[tuple[float, float]], sigma: float = 2.5) -> Image.Image:
    """A grey image with a smooth white dot at each point."""
    y, x = np.indices((HEIGHT, WIDTH)) + 0.5
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points) + np.zeros((HEIGHT, WIDTH))
    return Image.fromarray(np.repeat((GREY + 180 * np.clip(light, 0, 1) + 0.5).astype(np.uint8)[..., None], 3, 2))


def sample(points: list[tuple[float, float]], **changes: Any) -> Sample:
    objects = tuple(Object("dot", point_px=p, category_id=1, annotation_id=i) for i, p in enumerate(points))
    return replace(Sample(5, blob(points), WIDTH, HEIGHT, objects, category="dot", meta={"split": "train"}), **changes)


def opened(s: Sample) -> Image.Image:
    assert isinstance(s.image, Image.Image)
    return s.image


def centroid(image: Image.Image, near: tuple[float, float], reach: float = 10) -> tuple[float, float]:
    """Of what is brighter than the background within reach of a point."""
    light = np.asarray(image, dtype=float)[..., 0] - GREY
    y, x = np.indices(light.shape) + 0.5
    weight = np.where(np.hypot(x - near[0], y - near[1]) < reach, light, 0)
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 1.0, "degrees": 0.0, "scale": (1, 1), "translate": 0.0}, {"flip": 0.0, "scale": (1, 1), "translate": 0.0},
        {"flip": 0.0, "degrees": 0.0, "translate": 0.0}, {"flip": 0.0, "degrees": 0.0, "scale": (1, 1)}, {"degrees": 180.0}, {},
    ],
    ids=["flip", "rotate", "scale", "translate", "any angle", "all"],
)
def test_a_point_goes_where_the_pixels_around_it_go(settings: dict[str, Any]) -> None:
    checked = 0
    for seed in range(12):
        spot = tuple(np.random.default_rng(seed + 100).uniform((40, 30), (80, 60)).tolist())
        got = affine(**settings)(sample([spot]), np.random.default_rng(seed), opened)
        assert (got.width, got.height) == got.image.size == (WIDTH, HEIGHT)
        for o in got.objects:
            x, y = o.point_px
            if 12 < x < WIDTH - 12 and 12 < y < HEIGHT - 12:
                assert centroid(got.image, (x, y)) == pytest.approx((x, y), abs=0.03)
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize(
    ("settings", "point", "want"),
    [
        ({"flip": True}, (10, 20), (110, 20)),
        ({"degrees": 90.0}, (60, 15), (90, 45)),  # what was above the centre is to its right: clockwise
        ({"scale": 2.0}, (60, 30), (60, 15)),
        ({"shift_px": (7.0, -3.0)}, (60, 30), (67, 27)),
        ({"flip": True, "degrees": 90.0, "scale": 0.5, "shift_px": (1.0, 2.0)}, (80, 35), (66, 37)),
    ],
)
def test_the_matrix_by_hand(settings: dict[str, Any], point: tuple[float, float], want: tuple[float, float]) -> None:
    matrix = affine_matrix((WIDTH, HEIGHT), **{"flip": False, "degrees": 0.0, "scale": 1.0, "shift_px": (0.0, 0.0), **settings})
    assert (matrix @ (*point, 1)).tolist() == pytest.approx([*want, 1])


def test_nothing_to_do_gives_the_sample_itself() -> None:
    s = sample([(30.0, 30.0)])
    still = affine(flip=0.0, degrees=0.0, scale=(1.0, 1.0), translate=0.0)
    assert still(s, np.random.default_rng(0), opened) is s
    assert affine(share=0.0)(s, np.random.default_rng(0), opened) is s
    same = moved(s, opened(s), np.eye(3))
    np.testing.assert_array_equal(np.asarray(same.image), np.asarray(s.image))
    assert same.objects == s.objects


def test_a_flip_alone_is_pils_own() -> None:
    s = sample([(30.0, 30.0)])
    got = affine(flip=1.0, degrees=0.0, scale=(1.0, 1.0), translate=0.0)(s, np.random.default_rng(0), opened)
    np.testing.assert_array_equal(np.asarray(got.image), np.asarray(s.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert got.objects[0].point_px == pytest.approx((90, 30))


def test_points_that_leave_the_image_leave_the_count() -> None:
    s = sample([(5.0, 45.0), (60.0, 45.0), (115.0, 45.0), (0.0, 0.0)])
    matrix = affine_matrix((WIDTH, HEIGHT), flip=False, degrees=0.0, scale=1.0, shift_px=(20.0, 0.0))
    got = moved(s, opened(s), matrix)
    assert [o.annotation_id for o in got.objects] == [0, 1, 3]
    assert [o.point_px for o in got.objects] == [(25.0, 45.0), (80.0, 45.0), (20.0, 0.0)]
    assert got.meta["cut_away"] == 1
    assert got.meta["split"] == "train"
    gone = moved(s, opened(s), affine_matrix((WIDTH, HEIGHT), flip=False, degrees=0.0, scale=1.0, shift_px=(-500.0, 0.0)))
    assert gone.objects == ()
    assert gone.meta["cut_away"] == 4


def test_what_comes_from_outside_has_the_images_mean_colour() -> None:
    s = sample([(60.0, 45.0)])
    got = moved(s, opened(s), affine_matrix((WIDTH, HEIGHT), flip=False, degrees=0.0, scale=1.0, shift_px=(40.0, 0.0)))
    mean = np.asarray(s.image).mean((0, 1)).round()
    assert (np.asarray(got.image)[:, :39] == mean).all()


def test_a_category_that_names_a_side_is_not_mirrored() -> None:
    flip = affine(flip=1.0, degrees=0.0, scale=(1.0, 1.0), translate=0.0)
    s = sample([(30.0, 30.0)], category="left shoe")
    assert flip(s, np.random.default_rng(0), opened) is s


def test_settings_stay_in_their_ranges() -> None:
    """The corners of the frame tell what was done; over many draws the extremes come near and are never passed."""
    rng, turns, scales, shifts, flips = np.random.default_rng(0), [], [], [], []
    for _ in range(300):
        got = affine()(sample([]), rng, opened)
        m = np.asarray(got.meta["affine"])
        scales.append(np.sqrt(abs(np.linalg.det(m[:, :2]))))
        flips.append(np.linalg.det(m[:, :2]) < 0)
        turns.append(np.degrees(np.arctan2(-m[0, 1], m[1, 1])))
        shifts.append(m @ (60, 45, 1) - (60, 45))
    assert 0.8 <= min(scales) < 0.81
    assert 1.23 < max(scales) <= 1.25
    assert np.median(scales) == pytest.approx(1.0, abs=0.04)
    assert 19 < np.abs(turns).max() <= 20
    assert (np.abs(shifts).max(0) <= (12, 9)).all()
    assert (np.abs(shifts).max(0) > (11.5, 8.5)).all()
    assert np.mean(flips) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2}, r"augment.affine.share must be a number in \[0, 1\], got 2"),
        ({"degrees": -1.0}, "augment.affine.degrees"),
        ({"scale": (1.2, 0.8)}, r"augment.affine.scale must be \(low, high\), got \[1.2, 0.8\]"),
        ({"scale": (1.0,)}, "augment.affine.scale must be two factors"),
        ({"scale": (0.0, 1.0)}, "augment.affine.scale must be a number in"),
        ({"translate": float("nan")}, "augment.affine.translate"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        affine(**settings)


@pytest.mark.parametrize("changes", [{"phrase": "the dot"}, {"objects": (Object("dot", box_xyxy_px=(1.0, 1.0, 5.0, 5.0)),)}])
def test_boxes_and_phrases_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"augment\.affine moves points only"):
        affine(share=0.0)(sample([], **changes), np.random.default_rng(0), opened)


def test_as_part_of_augment_a_sample_is_the_same_in_the_same_epoch() -> None:
    augment = replace(OFF, affine=affine())
    assert list(augment.transforms) == ["affine"]
    s = sample([(30.0, 30.0), (70.0, 50.0)])
    first, again, other = augment(s, 0), augment(s, 0), augment(s, 1)
    assert [o.point_px for o in first.objects] == [o.point_px for o in again.objects]
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert first.category == "dot"


def test_the_hue_stays_where_the_category_is_a_colour_though_nothing_of_it_is_there() -> None:
    assert Colour.speaks_of_colour(sample([], category="red dot"))
    assert not Colour.speaks_of_colour(sample([]))
