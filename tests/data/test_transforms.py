"""Pixels, boxes and words must go on telling the same story: a mark is painted, and looked for after the change."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import TARGET, Object, Sample
from coordvlm.data.transforms import BoxJitter, Colour, Crop, Flip
from coordvlm.utils.errors import ConfigError

ALWAYS = Flip(share=1.0)
CROP = {"share": 1.0, "min_area": 0.2, "max_aspect": 2.0, "margin": 0.1, "min_visible": 0.5, "position_phrases": "keep"}
MARKS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def opened(sample: Sample) -> Image.Image:
    assert isinstance(sample.image, Image.Image)
    return sample.image


def never(sample: Sample) -> Image.Image:
    raise AssertionError("the image was opened for nothing")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def marked(seed: int, *, num: int = 1, phrase: str | None = "red thing", size: tuple[int, int] = (61, 40)) -> Sample:
    """A grey image with solid rectangles in columns of their own, whose boxes are the objects."""
    generator, (width, height) = np.random.default_rng(seed), size
    pixels = np.full((height, width, 3), 128, np.uint8)
    objects = []
    for i in range(num):
        low, high = i * width // num, (i + 1) * width // num
        x1 = int(generator.integers(low, high - 3))
        y1 = int(generator.integers(0, height - 4))
        x2, y2 = int(generator.integers(x1 + 2, high)), int(generator.integers(y1 + 2, height + 1))
        pixels[y1:y2, x1:x2] = MARKS[i]
        objects.append(Object(TARGET, box_xyxy_px=(x1, y1, x2, y2), category_id=1, annotation_id=i))
    return Sample(seed, Image.fromarray(pixels), width, height, tuple(objects), phrase=phrase)


def found(sample: Sample, mark: int) -> tuple[int, int, int, int]:
    """The box of a mark's pixels."""
    rows, columns = np.nonzero((np.asarray(opened(sample)) == MARKS[mark]).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def fits(sample: Sample) -> None:
    assert opened(sample).size == (sample.width, sample.height)
    for thing in sample.objects:
        assert thing.annotation_id is not None
        assert found(sample, thing.annotation_id) == thing.box_xyxy_px


# --- flip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_box_frames_the_flipped_mark(seed: int) -> None:
    sample = marked(seed, num=3)
    flipped = ALWAYS(sample, rng(), opened)
    fits(flipped)
    assert np.array_equal(np.asarray(opened(flipped)), np.asarray(opened(sample))[:, ::-1])
    back = ALWAYS(flipped, rng(), opened)
    assert back.objects == sample.objects
    assert np.array_equal(np.asarray(opened(back)), np.asarray(opened(sample)))


def test_a_flip_swaps_the_phrase_and_moves_points() -> None:
    sample = replace(marked(0, phrase="the Left one"), objects=(Object("dot", point_px=(10.5, 3.0)),))
    flipped = ALWAYS(sample, rng(), opened)
    assert (flipped.phrase, flipped.objects[0].point_px) == ("the Right one", (50.5, 3.0))
    assert flipped.meta["flipped"] is True
    assert ALWAYS(marked(0, phrase=None), rng(), opened).phrase is None


def test_a_phrase_that_cannot_be_swapped_keeps_its_image() -> None:
    sample = marked(0, phrase="right behind the bus")
    assert ALWAYS(sample, rng(), never) is sample
    assert ALWAYS.fault(sample) == "ambiguous_side"


def test_the_share_of_flips() -> None:
    sample, half = marked(0), Flip(share=0.5)
    generator = rng()
    flipped = sum(half(sample, generator, opened).meta.get("flipped", False) is True for _ in range(2000))
    assert abs(flipped - 1000) < 4 * np.sqrt(500)
    assert Flip(share=0.0)(sample, generator, never) is sample


# --- crop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_crop_holds_the_target_with_its_margin(seed: int) -> None:
    sample = marked(seed)
    cropped = Crop(**CROP)(sample, rng(seed), opened)
    fits(cropped)
    x1, y1, x2, y2 = cropped.meta.get("crop", (0, 0, sample.width, sample.height))  # type: ignore[misc]
    a, b, c, d = sample.objects[0].box_xyxy_px or (0, 0, 0, 0)
    wide, tall = 0.1 * (c - a), 0.1 * (d - b)
    assert x1 <= max(0, a - wide)
    assert y1 <= max(0, b - tall)
    assert x2 >= min(sample.width, c + wide)
    assert y2 >= min(sample.height, d + tall)
    assert np.array_equal(np.asarray(opened(cropped)), np.asarray(opened(sample))[y1:y2, x1:x2])


def test_crops_are_as_large_as_asked_and_reach_every_edge() -> None:
    sample, generator = replace(marked(0), objects=()), rng()
    crop = Crop(**{**CROP, "max_aspect": 1.0})
    windows = [crop(sample, generator, opened).meta.get("crop", (0, 0, 61, 40)) for _ in range(400)]
    areas = np.array([(x2 - x1) * (y2 - y1) / (61 * 40) for x1, y1, x2, y2 in windows])  # type: ignore[misc]
    assert areas.min() > 0.18
    assert abs(areas.mean() - 0.6) < 0.05  # uniform from 0.2 to 1
    edges = np.array(windows)
    assert edges.min(0)[:2].tolist() == [0, 0]
    assert edges.max(0)[2:].tolist() == [61, 40]


def test_other_objects_are_clipped_or_leave_by_what_is_seen_of_them() -> None:
    """By hand: a window from x = 10 leaves half of the first box, and a fifth of the second."""
    boxes = ((0.0, 0.0, 20.0, 10.0), (2.0, 20.0, 12.0, 30.0), (30.0, 10.0, 40.0, 20.0))
    things = [Object("thing", box_xyxy_px=b, annotation_id=i) for i, b in enumerate(boxes)]
    crop, window = Crop(**CROP), (10, 0, 61, 40)
    seen = [crop._seen(thing, window) for thing in things]
    assert [None if s is None else s.box_xyxy_px for s in seen] == [(0.0, 0.0, 10.0, 10.0), None, (20.0, 10.0, 30.0, 20.0)]
    assert crop._seen(Object("dot", point_px=(9.0, 1.0)), window) is None
    assert crop._seen(Object("dot", point_px=(11.0, 1.0)), window) == Object("dot", point_px=(1.0, 1.0))


@pytest.mark.parametrize("seed", range(20))
def test_a_detection_sample_keeps_whole_one_of_its_objects(seed: int) -> None:
    sample = marked(seed, num=3, phrase=None)
    cropped = Crop(**{**CROP, "min_visible": 0.01})(sample, rng(seed), opened)
    fits(cropped)
    sides = [(b[2] - b[0], b[3] - b[1]) for o in sample.objects if (b := o.box_xyxy_px)]
    kept = {o.annotation_id: (b[2] - b[0], b[3] - b[1]) for o in cropped.objects if (b := o.box_xyxy_px)}
    assert any(kept.get(i) == side for i, side in enumerate(sides))
    assert cropped.meta.get("cut_away", 0) == 3 - len(kept)


def test_a_phrase_that_names_a_place_keeps_its_image_unless_told_otherwise() -> None:
    sample = marked(0, phrase="man at the top")
    assert Crop(**CROP)(sample, rng(), never) is sample
    assert Crop(**CROP).fault(sample) == "names_place"
    free = Crop(**{**CROP, "position_phrases": "crop"})
    assert free.fault(sample) is None
    fits(free(sample, rng(), opened))


def test_an_absent_thing_stays_absent() -> None:
    cropped = Crop(**CROP)(replace(marked(0), objects=()), rng(), opened)
    assert cropped.objects == ()
    assert opened(cropped).size == (cropped.width, cropped.height) != (61, 40)


# --- colour -----------------------------------------------------------------------------------------------------------


def uniform(rgb: tuple[int, int, int], phrase: str | None, desc: str = "thing") -> Sample:
    return Sample(0, Image.new("RGB", (4, 4), rgb), 4, 4, (Object(desc, box_xyxy_px=(1, 1, 2, 2)),), phrase=phrase)


def pixel(sample: Sample) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(opened(sample))[0, 0])


def test_brightness_scales_every_channel() -> None:
    colour = Colour(share=1.0, brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0)
    values = [pixel(colour(uniform((100, 50, 20), None), rng(seed), opened)) for seed in range(200)]
    factors = np.array([v[0] for v in values]) / 100
    assert factors.min() >= 0.49
    assert factors.max() <= 1.51
    assert abs(factors.mean() - 1) < 0.08
    np.testing.assert_allclose([v[1] for v in values], 50 * factors, atol=1.5)


def test_the_hue_turns_as_colorsys_says() -> None:
    colour = Colour(share=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)
    seen = [pixel(colour(uniform((200, 50, 50), "the dog"), rng(seed), opened)) for seed in range(100)]
    hues = [colorsys.rgb_to_hsv(*(v / 255 for v in rgb))[0] for rgb in seen]
    assert np.histogram(hues, bins=5, range=(0, 1))[0].min() > 5


@pytest.mark.parametrize(("phrase", "desc"), [("red dog", "thing"), (None, "red ellipse")])
def test_the_hue_stays_where_a_colour_is_named(phrase: str | None, desc: str) -> None:
    colour = Colour(share=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)
    sample = uniform((200, 50, 50), phrase, desc)
    assert {pixel(colour(sample, rng(seed), opened)) for seed in range(20)} == {(200, 50, 50)}
    assert Colour.speaks_of_colour(replace(uniform((0, 0, 0), "dog"), class_list=("cat", "blue car")))


def test_colour_changes_neither_boxes_nor_words() -> None:
    sample = marked(3)
    changed = Colour(share=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)(sample, rng(), opened)
    assert replace(changed, image=sample.image) == sample
    assert Colour(share=0.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)(sample, rng(), never) is sample


# --- jitter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "sigma", "expected"), [("px", 3.0, (3.0, 3.0)), ("side", 0.1, (10.0, 5.0))])
def test_edges_move_by_the_given_error(unit: str, sigma: float, expected: tuple[float, float]) -> None:
    """A box of 100 x 50 px far from every edge: 4,000 draws, standard deviations within 5 %, means within 4 standard errors."""
    box, jitter, generator = (300.0, 300.0, 400.0, 350.0), BoxJitter(sigma=sigma, unit=unit, min_side_px=2.0), rng()
    moved = np.array([jitter.noisy(box, (800, 800), generator) for _ in range(4000)]) - np.array(box)
    np.testing.assert_allclose(moved.std(0), [*expected, *expected], rtol=0.05)
    assert (np.abs(moved.mean(0)) < 4 * np.array([*expected, *expected]) / np.sqrt(4000)).all()
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.08


def test_noisy_boxes_stay_in_the_image_and_keep_a_side() -> None:
    jitter, generator = BoxJitter(sigma=20.0, unit="px", min_side_px=4.0), rng()
    boxes = np.array([jitter.noisy((0.0, 30.0, 10.0, 40.0), (61, 40), generator) for _ in range(500)])
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 61
    assert boxes[:, 3].max() <= 40
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 4.0
    thin = jitter.noisy((5.0, 5.0, 6.0, 6.0), (61, 40), generator)  # its sides are below the least already
    assert min(thin[2] - thin[0], thin[3] - thin[1]) >= 1.0


def test_jitter_leaves_the_image_and_what_is_no_box() -> None:
    sample = replace(marked(0), objects=(*marked(0).objects, Object("dot", point_px=(1.0, 1.0))))
    noisy = BoxJitter(sigma=2.0, unit="px", min_side_px=1.0)(sample, rng(), never)
    assert noisy.image is sample.image
    assert noisy.objects[1] == sample.objects[1]
    assert noisy.objects[0].box_xyxy_px != sample.objects[0].box_xyxy_px
    assert replace(noisy.objects[0], box_xyxy_px=None) == replace(sample.objects[0], box_xyxy_px=None)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flip(share=1.5), r"augment\.flip\.share must be a number in \[0, 1\], got 1\.5"),
        (lambda: Flip(share=float("nan")), r"flip\.share .* got nan"),
        (lambda: Flip(share=True), r"flip\.share .* got True"),
        (lambda: Crop(**{**CROP, "min_area": 0.0}), r"crop\.min_area must be a number in \[0\.01, 1\], got 0\.0"),
        (lambda: Crop(**{**CROP, "max_aspect": 0.5}), r"crop\.max_aspect must be a number in \[1, 10\]"),
        (lambda: Crop(**{**CROP, "position_phrases": "drop"}), r"position_phrases must be one of keep, crop, got 'drop'"),
        (lambda: Colour(share=1.0, brightness=-0.1, contrast=0, saturation=0, hue=0), r"colour\.brightness .* got -0\.1"),
        (lambda: Colour(share=1.0, brightness=0, contrast=0, saturation=0, hue=0.6), r"colour\.hue must be a number in \[0, 0\.5\]"),
        (lambda: BoxJitter(sigma=1.0, unit="cm", min_side_px=1.0), r"jitter\.unit must be one of px, side, got 'cm'"),
        (lambda: BoxJitter(sigma=1.0, unit="px", min_side_px=0.0), r"jitter\.min_side_px .* got 0\.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
