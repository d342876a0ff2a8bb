from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from coordvlm.data.shapes import COLOURS, KINDS, Layout, Shapes, place_boxes, shape_mask
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError

DEFAULT = {
    "image_size": 96, "num_shapes": (1, 3), "side_fraction": (0.2, 0.5), "kinds": KINDS, "colours": tuple(COLOURS), "num_train": 50,
    "num_val": 40, "num_test": 30, "seed": 0, "eval_seed": 0, "class_list": "none", "num_absent": 0,
}
CROWDED = {**DEFAULT, "image_size": 128, "num_shapes": (6, 12), "side_fraction": (0.08, 0.18)}


def shapes(**changes):
    return Shapes(**{**DEFAULT, **changes})


def test_it_is_a_data_source():
    assert isinstance(shapes(), DataSource)
    assert isinstance(shapes().split("val"), Split)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_touches_all_four_sides_of_its_box(kind):
    for width in range(3, 50, 2):
        for height in (3, 4, 9, 20, 48):
            mask = shape_mask(kind, width, height)
            assert mask.shape == (height, width)
            assert mask[0].any()
            assert mask[-1].any()
            assert mask[:, 0].any()
            assert mask[:, -1].any()


@pytest.mark.parametrize("options", [DEFAULT, CROWDED])
def test_the_box_is_the_exact_extent_of_what_was_painted(options):
    source = Shapes(**options)
    for index in range(25):
        layout, _ = source.layout("train", index)
        state = source.layout("train", index)[1]
        blank = np.asarray(source.render(Layout(layout.kind[:0], layout.colour[:0], layout.rgb[:0], layout.box[:0]), state))
        for i, box in enumerate(layout.box):
            one = Layout(layout.kind[i : i + 1], layout.colour[i : i + 1], layout.rgb[i : i + 1], layout.box[i : i + 1])
            painted = (np.asarray(source.render(one, source.layout("train", index)[1])) != blank).any(-1)
            ys, xs = np.nonzero(painted)
            extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(extent - box).max() == 0


@pytest.mark.parametrize("options", [DEFAULT, CROWDED])
def test_boxes_are_disjoint_inside_and_of_the_asked_size_and_number(options):
    source, numbers = Shapes(**options), set()
    low, high = source.side_px
    for index in range(200):
        box = source.layout("train", index)[0].box
        numbers.add(len(box))
        side = box[:, 2:] - box[:, :2]
        assert side.min() >= low
        assert side.max() <= high
        assert box.min() >= 0
        assert box.max() <= source.size
        inter = np.clip(np.minimum(box[:, None, 2:], box[None, :, 2:]) - np.maximum(box[:, None, :2], box[None, :, :2]), 0, None).prod(-1)
        assert inter.sum() == side.prod(-1).sum()  # a box meets only itself
    assert numbers == set(range(options["num_shapes"][0], options["num_shapes"][1] + 1))


def test_a_layout_that_hardly_fits_still_gets_all_its_shapes():
    box = place_boxes(np.random.default_rng(0), 9, 96, 31, 48)
    assert len(np.unique(box, axis=0)) == 9
    assert (box[:, 2:] - box[:, :2]).min() >= 31
    assert (box >= 0).all()
    assert (box <= 96).all()


def test_shapes_that_cannot_fit_are_refused():
    with pytest.raises(ConfigError, match="10 shapes"):
        shapes(num_shapes=(1, 10), side_fraction=(0.3, 0.5))


@pytest.mark.parametrize(("key", "value"), [
    ("kinds", ("hexagon",)), ("colours", ()), ("num_shapes", (3, 1)), ("class_list", "some"), ("num_val", -1),
    ("side_fraction", (0.0, 0.5)),
])
def test_meaningless_options_are_refused(key, value):
    with pytest.raises(ConfigError, match=key if key != "side_fraction" else "sides"):
        shapes(**{key: value})


def test_a_sample_by_hand():
    sample = shapes().split("train").sample(4, 0)
    assert (sample.id, sample.width, sample.height, sample.image.size) == (4, 96, 96, (96, 96))
    for thing in sample.objects:
        colour, kind = thing.desc.split()
        assert thing.category_id == KINDS.index(kind) * 6 + list(COLOURS).index(colour) + 1
        x1, y1, x2, y2 = map(int, thing.box_xyxy_px)
        middle = np.asarray(sample.image)[(y1 + y2) // 2, (x1 + x2) // 2].astype(float)
        assert np.abs(middle - COLOURS[colour]).max() <= 28  # jitter 12, noise 15, rounding


def test_samples_are_equal_in_another_process():
    code = (
        "import hashlib; from tests.data.test_shapes import shapes; s = shapes().split('test').sample(3, 0);"
        "print(hashlib.sha256(s.image.tobytes() + repr(s.objects).encode()).hexdigest())"
    )
    sample = shapes().split("test").sample(3, 0)
    here = hashlib.sha256(sample.image.tobytes() + repr(sample.objects).encode()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip() == here


def test_no_image_is_in_two_splits_and_seeds_change_training_only():
    a, b = shapes(seed=0), shapes(seed=1)
    pictures = {s: {a.split(s).sample(i, 0).image.tobytes() for i in range(30)} for s in ("train", "val", "test")}
    assert len(pictures["train"] | pictures["val"] | pictures["test"]) == 90
    assert b.split("train").sample(0, 0).image.tobytes() not in pictures["train"]
    assert b.split("test").sample(0, 0).image.tobytes() in pictures["test"]
    assert a.digests()["train"] != b.digests()["train"]
    assert a.digests()["test"] == b.digests()["test"] == shapes().digests()["test"]


def test_the_truth_is_that_of_the_samples():
    source = shapes()
    truth, split = source.truth("val"), source.split("val")
    assert truth.image_ids.tolist() == list(range(40)) == split.ids.tolist()
    assert len(np.unique(truth.ann_ids)) == len(truth.ann_ids)
    names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
    seen = [
        (i, o.annotation_id, o.category_id, o.desc, o.box_xyxy_px) for i in range(40) for o in split.sample(i, 0).objects
    ]
    kept = [
        (int(i), int(a), int(c), names[int(c)], tuple(b))
        for i, a, c, b in zip(truth.ann_image_id, truth.ann_ids, truth.ann_category_id, truth.ann_xyxy_px.tolist(), strict=True)
    ]
    assert seen == kept
    assert truth.ann_area.min() >= 19 * 19


def test_ids_of_classes_do_not_depend_on_the_others():
    few = shapes(kinds=("triangle", "ellipse"), colours=("blue", "red"))
    assert set(few.class_names) < set(shapes().class_names)
    truth, full = few.truth("val"), shapes().truth("val")
    by_name = dict(zip(full.category_names, full.category_ids.tolist(), strict=True))
    assert [by_name[n] for n in truth.category_names] == truth.category_ids.tolist() == sorted(truth.category_ids.tolist())


def test_class_lists():
    split = shapes(class_list="with_absent", num_absent=2).split("train")
    drawn = set()
    for epoch in range(6):
        sample = split.sample(0, epoch)
        present = {o.desc for o in sample.objects}
        assert present <= set(sample.class_list)
        assert len(sample.class_list) == len(present) + 2
        assert sample.class_list == split.sample(0, epoch).class_list
        drawn.add(sample.class_list)
    assert len(drawn) > 1
    assert shapes(class_list="all").split("val").sample(0, 0).class_list == shapes().class_names
    assert shapes().split("val").sample(0, 0).class_list is None


def test_positions_and_names_outside_the_data_are_refused():
    with pytest.raises(IndexError, match="40 samples, asked for 40"):
        shapes().split("val").sample(40, 0)
    with pytest.raises(ConfigError, match="'vall'"):
        shapes().split("vall")
