from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import PointTruth
from coordvlm.data.dots import KINDS, Dots, coverage, place_dots
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.shapes import COLOURS
from coordvlm.data.source import SPLITS, DataSource, Split
from coordvlm.utils.errors import ConfigError

DEFAULT: dict[str, Any] = {
    "image_size": 384, "num": (0, 20), "distractors": (0, 10), "radius": (6.0, 14.0), "min_gap": 2.0, "kinds": ("dot",),
    "colours": ("red", "blue", "yellow", "purple", "orange"), "num_train": 60, "num_val": 40, "num_test": 30, "seed": 0, "eval_seed": 7,
}


def dots(**changes: Any) -> Dots:
    return Dots(**{**DEFAULT, **changes})


def pixels(image: object) -> np.ndarray:
    assert isinstance(image, Image.Image)
    return np.asarray(image, dtype=np.float64)


def test_it_is_a_source() -> None:
    source = dots()
    assert isinstance(source, DataSource)
    assert isinstance(source.split("val"), Split)
    assert source.class_names == ("red dot", "blue dot", "yellow dot", "purple dot", "orange dot")
    assert source.dropped("train") == {}
    for ask in (source.split, source.truth, source.dropped):
        with pytest.raises(ConfigError, match="no split 'testA'"):
            ask("testA")


def test_a_sample_is_a_function_of_seed_split_and_index() -> None:
    source, again = dots(), dots(num_train=5)
    first, second = source.split("train").sample(3, 0), again.split("train").sample(3, 8)
    assert first.objects == second.objects
    assert (pixels(first.image) == pixels(second.image)).all()
    for other in (source.split("train").sample(4, 0), source.split("val").sample(3, 0), dots(seed=1).split("train").sample(3, 0)):
        assert (pixels(other.image) != pixels(first.image)).any()
    val = dots(seed=1).split("val").sample(3, 0)  # its seed is another one
    assert (pixels(val.image) == pixels(source.split("val").sample(3, 0).image)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_annotated_point_is_the_centre_of_what_is_painted(kind: str) -> None:
    """The centroid of the pixels that the dot changed, each weighted by how far it moved from the background to the dot's colour."""
    source = dots(kinds=(kind,), num=(1, 1), distractors=(0, 0))
    for index in range(6):
        scene, rng = source.scene("train", index)
        state = rng.bit_generator.state
        image = pixels(source.render(scene, rng))
        rng.bit_generator.state = state
        nothing = replace(scene, look=scene.look[:0], centre=scene.centre[:0], radius=scene.radius[:0], rgb=scene.rgb[:0])
        plain = pixels(source.render(nothing, rng))  # the same background and noise, without the dot
        weight = np.abs(image - plain).sum(-1)
        at = np.arange(384) + 0.5
        found = np.array([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()
        assert found == pytest.approx(scene.centre[0], abs=0.12)  # the background is uneven under the dot


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centre", [(20.0, 20.0), (20.5, 20.5), (19.83, 20.27), (20.13, 19.61)])
def test_coverage_has_the_shapes_centre_and_area(kind: str, centre: tuple[float, float]) -> None:
    at, radius = np.arange(40, dtype=np.float64) + 0.5, 9.3
    share = coverage(kind, at - centre[0], at - centre[1], radius)
    area = {"dot": np.pi, "square": 2.0, "triangle": 3 * np.sqrt(3) / 4, "diamond": 2.0}[kind] * radius**2
    assert share.sum() == pytest.approx(area, rel=0.025)
    assert (share.sum(0) * at).sum() / share.sum() == pytest.approx(centre[0], abs=0.03)
    assert (share.sum(1) * at).sum() / share.sum() == pytest.approx(centre[1], abs=0.03)
    assert share.min() >= 0
    assert share.max() == 1


def test_the_nearest_colour_at_every_point_is_the_category() -> None:
    source = dots()
    for index in range(25):
        sample = source.split("test").sample(index, 0)
        assert sample.category is not None
        image = pixels(sample.image)
        for thing in sample.objects:
            assert thing.desc == sample.category
            assert thing.point_px is not None
            x, y = thing.point_px
            here = image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean((0, 1)) - 7.5  # noise adds 0 to 15
            nearest = min(COLOURS, key=lambda name: float(np.abs(here - COLOURS[name]).sum()))
            assert f"{nearest} dot" == sample.category


def test_distractors_are_never_of_the_category_and_dots_never_touch() -> None:
    source = dots(kinds=("dot", "square"))
    for index in range(60):
        scene, _ = source.scene("train", index)
        assert (scene.look[: scene.num] == scene.category).all()
        assert (scene.look[scene.num :] != scene.category).all()
        for i, j in itertools.combinations(range(len(scene.look)), 2):
            assert np.hypot(*(scene.centre[i] - scene.centre[j])) >= scene.radius[i] + scene.radius[j] + 2.0 - 1e-9
        assert (scene.centre - scene.radius[:, None] >= 0).all()
        assert (scene.centre + scene.radius[:, None] <= 384).all()
        assert ((scene.radius >= 6) & (scene.radius <= 14)).all()


def test_every_category_is_counted_somewhere_and_a_distractor_elsewhere() -> None:
    source = dots(kinds=("dot", "diamond"), colours=("red", "blue"))
    scenes = [source.scene("train", i)[0] for i in range(60)]
    assert {s.category for s in scenes} == set(range(4))
    assert set(np.concatenate([s.look[s.num :] for s in scenes]).tolist()) == set(range(4))


def test_numbers_are_uniform_over_their_ranges() -> None:
    source = dots(num=(2, 5), distractors=(0, 3), num_train=2000)
    drawn = np.array([source.counts("train", i)[:2] for i in range(2000)])
    for column, values in ((0, (2, 3, 4, 5)), (1, (0, 1, 2, 3))):
        found, times = np.unique(drawn[:, column], return_counts=True)
        assert found.tolist() == list(values)
        assert np.abs(times - 500).max() < 110  # 5.7 standard deviations


def test_counted_dots_are_not_placed_first() -> None:
    """Where space is short, radii depend on when a dot is placed: then a size would say what is counted."""
    source = dots(image_size=96, num=(4, 4), distractors=(4, 4), radius=(6.0, 14.0), num_train=400)
    radii = np.array([source.scene("train", i)[0].radius for i in range(400)])
    gap = radii[:, :4].mean() - radii[:, 4:].mean()
    assert abs(gap) < 5 * radii.std() * np.sqrt(2 / 1600)


def test_truth_is_that_of_the_samples() -> None:
    source = dots()
    split, truth = source.split("val"), source.truth("val")
    assert isinstance(truth, PointTruth)
    samples = [split.sample(i, 0) for i in range(len(split))]
    assert truth.image_ids.tolist() == [s.id for s in samples] == split.ids.tolist()
    assert truth.counted == tuple(s.category for s in samples)
    assert split.num_objects().tolist() == [len(s.objects) for s in samples]
    assert max(len(s.objects) for s in samples) <= split.most_objects == 20
    for sample in samples:
        assert isinstance(sample.id, int)
        assert truth.points_of(sample.id).tolist() == [list(o.point_px or ()) for o in sample.objects]
        assert {"file_name", "where", "split"} <= set(sample.meta)
    ids = [o.annotation_id for s in samples for o in s.objects]
    assert len(set(ids)) == len(ids)
    assert (truth.image_wh == 384).all()
    assert any(not s.objects for s in samples)  # counts of zero stay


def test_digests_change_with_what_is_drawn() -> None:
    base = dots().digests()
    assert set(base) == set(SPLITS)
    assert dots(seed=1).digests()["train"] != base["train"]
    assert dots(seed=1).digests()["val"] == base["val"]
    for change in ({"num": (0, 19)}, {"min_gap": 3.0}, {"radius": (6.0, 13.0)}, {"kinds": ("square",)}, {"image_size": 400}):
        assert dots(**change).digests()["val"] != base["val"]


def test_crowded_images_are_laid_out_on_a_grid() -> None:
    centre, radius = place_dots(keyed_generator(0, "test"), 36, 100, 6.0, 14.0, 2.0)
    assert len(centre) == 36
    for i, j in itertools.combinations(range(36), 2):
        assert np.hypot(*(centre[i] - centre[j])) >= radius[i] + radius[j] + 2.0 - 1e-9
    assert ((centre >= radius[:, None]) & (centre <= 100 - radius[:, None])).all()
    assert (radius >= 6).all()


def test_an_index_outside_is_refused() -> None:
    split = dots().split("test")
    for index in (-1, 30):
        with pytest.raises(IndexError, match="test has 30 samples"):
            split.sample(index, 0)


@pytest.mark.parametrize(("change", "message"), [
    ({"num": (5, 2)}, r"data\.source\.num must be \[least, most\]"),
    ({"num": (0,)}, r"data\.source\.num must be \[least, most\]"),
    ({"num": (-1, 2)}, "not negative"),
    ({"num": (0, 2.5)}, "whole numbers"),
    ({"distractors": (0, -1)}, r"data\.source\.distractors"),
    ({"radius": (14.0, 6.0)}, r"data\.source\.radius"),
    ({"radius": (0.5, 6.0)}, "radii must be at least 1 px"),
    ({"radius": (6.0, float("nan"))}, r"data\.source\.radius"),
    ({"min_gap": -1.0}, "min_gap not negative"),
    ({"kinds": ("circle",)}, "kinds must be different names out of dot"),
    ({"colours": ("red", "red")}, "colours must be different names"),
    ({"colours": ()}, "colours must be different names"),
    ({"colours": ("red",)}, "need a second colour or kind"),
    ({"num": (0, 900)}, "do not surely fit into 384 px"),
    ({"radius": (6.0, 200.0)}, "do not surely fit into 384 px"),
    ({"num_val": -1}, "must not be negative"),
])
def test_options_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dots(**change)


def test_one_category_without_distractors_is_allowed() -> None:
    sample = dots(colours=("red",), distractors=(0, 0)).split("train").sample(0, 0)
    assert sample.category == "red dot"
