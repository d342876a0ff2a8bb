from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest

from coordvlm.contracts import TARGET, PhraseTruth
from coordvlm.data.phrase_grammar import AREA_RATIO, CENTRE_MARGIN, Beside, Extreme, Plain, Scene
from coordvlm.data.phrases import Phrases
from coordvlm.data.shapes import COLOURS
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError

SIZES = {"small": (0.14, 0.2), "large": (0.3, 0.42)}
DEFAULT = {
    "image_size": 96, "num_shapes": (2, 5), "alone": 0.0, "sizes": SIZES, "kinds": ("ellipse", "rectangle", "triangle"),
    "colours": ("red", "green", "blue", "yellow"), "shared": 0.3, "phrases": {"attribute": 1.0, "relation": 1.0}, "wording": "any",
    "negatives": 0.15, "phrases_per_image": 2, "num_train": 400, "num_val": 60, "num_test": 50, "seed": 0, "eval_seed": 0,
}


def phrases(**changes):
    return Phrases(**{**DEFAULT, **changes})


def fits(text, things):
    """Which things the plain words fit; ``things``: (size, colour, kind, box) each. Written apart from the product code."""
    words = [w for w in text.split() if w not in ("the", "shape")]
    return [i for i, (*said, _) in enumerate(things) if all(w in said for w in words)]


def understand(text, things):
    """What a phrase names, as a reader with a ruler would say it: exact geometry, no margins."""
    centre = [((x1 + x2) / 2, (y1 + y2) / 2) for *_, (x1, y1, x2, y2) in things]
    area = [(x2 - x1) * (y2 - y1) for *_, (x1, y1, x2, y2) in things]
    for word, axis, sign in (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)):
        if f" {word} " in text:
            head, reference = text.split(f" {word} ")
            (ref,) = fits(reference, things)
            return [i for i in fits(head, things) if i != ref and sign * (centre[i][axis] - centre[ref][axis]) > 0]
    keys = {
        "leftmost": lambda i: centre[i][0], "rightmost": lambda i: -centre[i][0], "topmost": lambda i: centre[i][1],
        "lowest": lambda i: -centre[i][1], "smallest": lambda i: area[i], "largest": lambda i: -area[i],
    }
    for word, key in keys.items():
        if word in text.split():
            return [min(fits(text.replace(word, ""), things), key=key)]
    return fits(text, things)


def things_of(source, split, index):
    scene = source.scene(split, index // source._per_image)[0]
    return [(*words, tuple(box)) for words, box in zip(scene.words, scene.box.tolist(), strict=True)]


@pytest.mark.parametrize("wording", ["any", "shortest"])
def test_a_phrase_names_exactly_its_target_and_a_negative_nothing(wording):
    source = phrases(wording=wording)
    split = source.split("train")
    negatives, kinds = 0, Counter()
    for index in range(400):
        sample, things = split.sample(index, 0), things_of(source, "train", index)
        boxes = [tuple(map(float, things[i][3])) for i in understand(sample.phrase, things)]
        assert [o.box_xyxy_px for o in sample.objects] == boxes, (sample.phrase, things)
        assert all((o.desc, o.category_id, o.annotation_id) == (TARGET, 1, index) for o in sample.objects)
        assert sample.meta["words"] == tuple(sample.phrase.split())
        assert sample.meta["num_shapes"] == len(things)
        assert (sample.meta["relation"] is None) == (sample.meta["kind"] == "attribute")
        negatives += not sample.objects
        kinds[sample.meta["kind"], sample.meta["relation"]] += 1
    assert 35 <= negatives <= 85  # 15 % of 400: four standard deviations
    assert {r for _, r in kinds} == {
        None, "left of", "right of", "above", "below", "leftmost", "rightmost", "topmost", "lowest", "smallest", "largest",
    }
    assert 140 <= kinds["attribute", None] <= 260


def test_no_relation_is_close():
    source = phrases(negatives=0.0, phrases={"relation": 1.0})
    for index in range(200):
        sample, things = source.split("train").sample(index, 0), things_of(source, "train", index)
        relation, box = sample.meta["relation"], np.asarray(sample.objects[0].box_xyxy_px)
        others = np.asarray([t[3] for t in things if tuple(map(float, t[3])) != tuple(box)], dtype=float)
        if relation in ("left of", "right of", "above", "below"):
            reference = fits(sample.phrase.split(f" {relation} ")[1], things)
            others = np.asarray([things[i][3] for i in reference], dtype=float)
            axis = int(relation in ("above", "below"))
            gap = (others[:, axis] + others[:, axis + 2] - box[axis] - box[axis + 2]) / 2
            assert np.abs(gap).min() >= CENTRE_MARGIN * 96 - 1e-9
        elif relation in ("smallest", "largest") and sample.phrase.split()[-2] == relation and sample.phrase.endswith("shape"):
            ratio = (others[:, 2:] - others[:, :2]).prod(1) / (box[2:] - box[:2]).prod()
            assert np.maximum(ratio, 1 / ratio).min() >= AREA_RATIO - 1e-9


def test_what_is_too_close_to_call_is_not_said():
    box = np.array([[0, 0, 20, 20], [4, 50, 24, 70], [60, 0, 80, 20]])
    scene = Scene((("small", "red", "ellipse"), ("small", "blue", "ellipse"), ("small", "red", "triangle")), box, 96)
    red, shape = Plain((None, "red", None)), Plain((None, None, None))
    blue, ellipse = Plain((None, "blue", None)), Plain((None, None, "ellipse"))
    assert Extreme("leftmost", shape).named(scene) is None  # 10 and 14 px
    assert Extreme("rightmost", shape).named(scene) == {2}
    assert Extreme("leftmost", red).named(scene) == {0}
    assert Extreme("largest", red).named(scene) is None
    assert Extreme("leftmost", blue).named(scene) == set()  # nothing to compare with
    assert Beside("left of", shape, blue).named(scene) is None
    assert Beside("above", shape, blue).named(scene) == {0, 2}
    assert Beside("left of", red, Plain((None, None, "triangle"))).named(scene) == {0}
    assert Beside("left of", shape, red).named(scene) is None  # two red things
    assert Beside("below", ellipse, blue).named(scene) == set()
    assert Beside("right of", red, Plain((None, "red", "ellipse"))).text == "red shape right of the red ellipse"


def test_shortest_phrases_have_no_word_to_spare():
    options = {"negatives": 0.0, "phrases": {"attribute": 1.0}, "phrases_per_image": 1}
    source, longer = phrases(wording="shortest", **options), phrases(**options)
    total = Counter()
    for index in range(150):
        things, sample = things_of(source, "train", index), source.split("train").sample(index, 0)
        box = tuple(map(int, sample.objects[0].box_xyxy_px))
        (words,) = [t[:3] for t in things if t[3] == box]
        length = len(sample.phrase.removeprefix("the ").split())
        for said in product(*((w, None) for w in words)):
            text = " ".join(w for w in (*said[:2], said[2] or "shape") if w)
            assert len(text.split()) >= length or len(fits(text, things)) > 1
        total["shortest"] += length
        total["any"] += len(longer.split("train").sample(index, 0).phrase.removeprefix("the ").split())
    assert total["shortest"] < 0.9 * total["any"]


def test_every_word_of_an_attribute_negative_is_in_the_image():
    source = phrases(negatives=0.9, phrases={"attribute": 1.0}, num_shapes=(3, 5))
    seen = 0
    for index in range(100):
        sample, things = source.split("train").sample(index, 0), things_of(source, "train", index)
        if not sample.objects:
            words = [w for w in sample.phrase.split() if w not in ("the", "shape")]
            seen += all(fits(w, things) for w in words)
    assert seen > 70  # else two shapes differ in one attribute only, and a word is taken that fits nothing


def test_what_is_painted_is_what_is_said():
    source = phrases(negatives=0.0)
    for index in range(0, 100, 2):
        scene = source.scene("train", index // 2)[0]
        picture = np.asarray(source.split("train").sample(index, 0).image).astype(float)
        for (size, colour, _), (x1, y1, x2, y2) in zip(scene.words, scene.box.tolist(), strict=True):
            assert np.abs(picture[(y1 + y2) // 2, (x1 + x2) // 2] - COLOURS[colour]).max() <= 28  # jitter 12, noise 15, rounding
            assert all(round(SIZES[size][0] * 96) <= side <= round(SIZES[size][1] * 96) for side in (x2 - x1, y2 - y1))
        assert scene.box.min() >= 0
        assert scene.box.max() <= 96
        assert len(set(scene.words)) == len(scene.words)


def test_phrases_of_an_image_name_different_shapes():
    source = phrases(negatives=0.0, phrases={"attribute": 1.0}, phrases_per_image=3, num_shapes=(3, 5))
    split, truth = source.split("train"), source.truth("train")
    for first in range(0, 120, 3):
        samples = [split.sample(first + i, 0) for i in range(3)]
        assert len({s.image.tobytes() for s in samples}) == 1
        assert len({s.objects[0].box_xyxy_px for s in samples}) == 3
    assert truth.source_image[:7].tolist() == [0, 0, 0, 1, 1, 1, 2]
    other = split.sample(3, 0).image.tobytes()
    assert other != split.sample(0, 0).image.tobytes()


def test_distractors_share_attributes_on_request():
    def alike(shared):
        source = phrases(shared=shared, num_shapes=(2, 2))
        pairs = [source.scene("train", i)[0].words for i in range(200)]
        return np.mean([sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs])

    assert alike(0.0) < alike(0.5) < alike(0.9)
    assert alike(0.9) > 1.5


def test_a_share_of_training_images_holds_one_shape_and_no_other_image_does():
    source, plain = phrases(alone=0.4, phrases_per_image=1), phrases(phrases_per_image=1)
    numbers = [source.split("train").sample(i, 0).meta["num_shapes"] for i in range(200)]
    assert 50 <= numbers.count(1) <= 110
    assert set(numbers) == {1, 2, 3, 4, 5}
    for split in ("val", "test"):
        assert source.digests()[split] == plain.digests()[split]
        assert source.truth(split).digest() == plain.truth(split).digest()
    assert source.digests()["train"] != plain.digests()["train"]


def test_it_is_a_data_source_and_its_truth_is_that_of_the_samples():
    source = phrases()
    split, truth = source.split("val"), source.truth("val")
    assert isinstance(source, DataSource)
    assert isinstance(split, Split)
    assert isinstance(truth, PhraseTruth)
    assert source.class_names == truth.category_names == (TARGET,)
    samples = [split.sample(i, 0) for i in range(60)]
    assert truth.image_ids.tolist() == [s.id for s in samples] == list(range(60)) == split.ids.tolist()
    assert list(truth.phrases) == [s.phrase for s in samples]
    assert truth.source_image.tolist() == [i // 2 for i in range(60)]
    found = {int(i): tuple(b) for i, b in zip(truth.ann_image_id, truth.ann_xyxy_px.tolist(), strict=True)}
    assert found == {s.id: s.objects[0].box_xyxy_px for s in samples if s.objects}
    assert split.num_objects().tolist() == [len(s.objects) for s in samples]
    assert split.most_objects == 1
    assert (truth.image_wh == 96).all()


def test_samples_are_equal_in_another_process():
    code = (
        "import hashlib; from tests.data.test_phrases import phrases; s = phrases().split('test').sample(7, 0);"
        "print(hashlib.sha256(s.image.tobytes() + repr((s.objects, s.phrase)).encode()).hexdigest())"
    )
    sample = phrases().split("test").sample(7, 0)
    here = hashlib.sha256(sample.image.tobytes() + repr((sample.objects, sample.phrase)).encode()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip() == here


def test_splits_share_no_image_and_the_seed_changes_training_only():
    a, b = phrases(phrases_per_image=1), phrases(phrases_per_image=1, seed=1)
    pictures = {s: {a.split(s).sample(i, 0).image.tobytes() for i in range(25)} for s in ("train", "val", "test")}
    assert len(pictures["train"] | pictures["val"] | pictures["test"]) == 75
    assert b.split("train").sample(0, 0).image.tobytes() not in pictures["train"]
    assert b.split("test").sample(0, 0).image.tobytes() in pictures["test"]
    assert a.digests()["train"] != b.digests()["train"]
    assert a.digests()["test"] == b.digests()["test"] == phrases(phrases_per_image=1).digests()["test"]
    assert a.digests()["test"] != phrases(phrases_per_image=1, wording="shortest").digests()["test"]


@pytest.mark.parametrize(("key", "value"), [
    ("kinds", ("hexagon",)), ("colours", ()), ("num_shapes", (3, 1)), ("num_shapes", (0, 2)), ("num_val", -1), ("wording", "long"),
    ("shared", 1.0), ("alone", -0.5), ("negatives", -0.1), ("phrases_per_image", 0), ("phrases", {"attributes": 1.0}),
    ("phrases", {"attribute": 0.0}),
    ("sizes", {"small": (0.1, 0.3), "large": (0.3, 0.4)}), ("sizes", {}), ("sizes", {"small": (0.01, 0.2)}),
])
def test_meaningless_options_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        phrases(**{key: value})


def test_shapes_that_cannot_fit_or_differ_are_refused():
    with pytest.raises(ConfigError, match="do not surely fit"):
        phrases(num_shapes=(2, 10))
    few = {"kinds": ("ellipse",), "colours": ("red", "blue"), "sizes": {"middle": (0.2, 0.3)}, "num_shapes": (2, 2)}
    with pytest.raises(ConfigError, match=r"2 combinations .* and one that is absent"):
        phrases(**few)
    found = {w for i in range(20) for w in phrases(**few, negatives=0.0).split("train").sample(i, 0).phrase.split()}
    assert found <= {
        "the", "middle", "red", "blue", "ellipse", "shape", "leftmost", "rightmost", "topmost", "lowest", "smallest", "largest", "left",
        "right", "of", "above", "below",
    }


def test_positions_and_names_outside_the_data_are_refused():
    with pytest.raises(IndexError, match="60 samples, asked for 60"):
        phrases().split("val").sample(60, 0)
    with pytest.raises(ConfigError, match="'vall'"):
        phrases().split("vall")
