"""Permuted phrases and blank images: nobody keeps a phrase, sizes and ids stay, the figure is paired."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Object, Sample
from coordvlm.contracts.sample import TARGET
from coordvlm.data.controls import BlankImages, SelectedSplit, ShuffledPhrases, choose, derangement
from coordvlm.data.overfit import FewSamples
from coordvlm.metrics.phrase_controls import control, controls_to_json
from coordvlm.metrics.phrases import outcomes
from coordvlm.utils.errors import DataError
from tests.metrics.phrase_cases import answer, phrases

BOX = (2.0, 2.0, 8.0, 8.0)


def split(*names):
    rng = np.random.default_rng(0)
    samples = [
        Sample(10 * i, Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)), 30, 20 + i,
               (Object(TARGET, BOX, category_id=1, annotation_id=10 * i),), phrase=name)
        for i, name in enumerate(names, 1)
    ]
    return FewSamples("val", samples)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("names", ["ab", "aabb", "abcdefgh", "aaabcdef", "aaabbbcc", "aaaabbbb"])
def test_nobody_keeps_a_phrase(names, seed):
    given = derangement(list(names), seed)
    assert sorted(given.tolist()) == list(range(len(names)))
    assert all(names[i] != names[j] for i, j in enumerate(given.tolist()))


def test_case_and_spacing_make_no_other_phrase():
    names = ["Red cup", "red  cup", "blue cup", "BLUE CUP"]
    assert [i // 2 != j // 2 for i, j in enumerate(derangement(names, 0).tolist())] == [True] * 4


def test_phrases_that_differ_in_a_nul_are_told_apart():
    assert sorted(derangement(["cup", "cup\0", "cup\0\0"], 0).tolist()) == [0, 1, 2]


def test_more_than_half_equal_phrases_leave_some_in_place():
    given = derangement(list("aaab"), 0)
    assert sorted(given.tolist()) == [0, 1, 2, 3]
    assert sum("aaab"[i] == "aaab"[j] for i, j in enumerate(given.tolist())) == 2


def test_the_permutation_depends_on_the_seed_alone():
    names = [f"phrase {i}" for i in range(40)]
    assert derangement(names, 1).tolist() == derangement(names, 1).tolist() != derangement(names, 2).tolist()
    assert derangement([], 0).tolist() == []


def test_chosen_ids_are_spread_evenly():
    assert choose(np.array([9, 1, 5, 3, 7]), 3).tolist() == [1, 5, 9]
    assert choose(np.array([3, 1]), 10).tolist() == [1, 3]
    assert choose(np.array([], dtype=np.int64), 4).tolist() == []


def test_shuffled_samples_keep_all_but_their_phrase():
    plain = split("a", "b", "c", "d")
    shuffled = ShuffledPhrases(plain, np.array([40, 10, 20]), ["d", "a", "b"], seed=3)
    assert (len(shuffled), shuffled.name, shuffled.ids.tolist()) == (3, "val", [40, 10, 20])
    got = [shuffled.sample(i, 0) for i in range(3)]
    assert [s.id for s in got] == [40, 10, 20]
    assert sorted(s.phrase for s in got) == ["a", "b", "d"]
    assert all(s.phrase != own for s, own in zip(got, "dab", strict=True))
    assert tuple(s.phrase for s in got) == shuffled.phrases
    assert got[0].image is plain.sample(3, 0).image
    assert got[0].objects == plain.sample(3, 0).objects


def test_a_blank_image_has_size_and_mean_colour():
    plain = split("a", "b")
    blank = BlankImages(plain, np.array([20]), max_pixels=10_000)
    got, before = blank.sample(0, 0), plain.sample(1, 0)
    assert (got.id, got.phrase, got.objects, got.width, got.height) == (20, "b", before.objects, 30, 22)
    pixels = np.asarray(got.image)
    assert pixels.shape == (22, 30, 3)
    assert np.ptp(pixels.reshape(-1, 3), axis=0).tolist() == [0, 0, 0]
    assert pixels[0, 0] == pytest.approx(np.asarray(before.image).reshape(-1, 3).mean(0), abs=0.51)


def test_refusals():
    plain = split("a", "b")
    with pytest.raises(DataError, match="in the split"):
        SelectedSplit(plain, np.array([10, 99]))
    with pytest.raises(IndexError):
        SelectedSplit(plain, np.array([10])).sample(1, 0)
    with pytest.raises(ValueError, match="as many phrases"):
        ShuffledPhrases(plain, np.array([10, 20]), ["a"], seed=0)
    with pytest.raises(DataError, match="pixels"):
        BlankImages(plain, np.array([10]), max_pixels=100).sample(0, 0)


# --------------------------------------------------------------------- figures
def found(gt, right):
    return outcomes(gt, {i: answer(i, (0.0, 0.0, 10.0, 10.0) if ok else (90.0, 0.0, 99.0, 9.0)) for i, ok in enumerate(right, 1)})


def measured(plain, controlled, name="shuffled", **options):
    gt = phrases(*[(0.0, 0.0, 10.0, 10.0)] * len(plain))
    return control(name, gt, found(gt, plain), found(gt, controlled), num_replicates=options.pop("num_replicates", 200), seed=0, **options)


def test_the_drop_is_the_difference_of_accuracies():
    got = measured([True] * 40 + [False] * 10, [True] * 10 + [False] * 40)
    assert (got.phrases, got.plain, got.controlled.value) == (50, 0.8, 0.2)
    assert got.drop.value == pytest.approx(0.6)
    assert got.drop.low == pytest.approx(0.6 - 1.96 * math.sqrt(0.6 * 0.4 / 50), abs=0.05)
    assert not got.ignored
    assert "drop of 0.600" in got.sentence
    assert got.sentence.endswith("the model reads the phrase.")


def test_the_interval_is_paired():
    """Equal answers but for three phrases: the two intervals overlap widely, the drop's does not hold much."""
    right = [True, False] * 30
    fewer = right.copy()
    fewer[0] = fewer[2] = fewer[4] = False
    got = measured(right, fewer)
    assert got.drop.high - got.drop.low < 0.15 < got.controlled.high - got.controlled.low


@pytest.mark.parametrize(("name", "word"), [("shuffled", "phrase"), ("blank", "image")])
def test_a_model_that_does_not_look_is_named(name, word):
    got = measured([True] * 50, [True] * 48 + [False] * 2, name)
    assert got.ignored
    assert f"does not read the {word}" in got.sentence
    assert controls_to_json({name: got})["ignored"] == [word]


def test_nothing_to_lose_says_nothing():
    got = measured([False] * 50, [False] * 50)
    assert not got.ignored
    assert "nothing to lose" in got.sentence


def test_few_phrases_are_said_to_be_few():
    got = measured([True, True, False], [True, False, False])
    assert "too few phrases to be sure" in got.sentence
    assert "too few" in measured([True] * 5, [False] * 5, num_replicates=0).sentence


def test_no_target_at_all():
    gt = phrases(None, None)
    got = control("blank", gt, outcomes(gt, {}), outcomes(gt, {}), num_replicates=10, seed=0)
    assert "no phrase has a target" in got.sentence
    assert controls_to_json({"blank": got})["acc_50"] is None
    assert controls_to_json({}) == {}


def test_other_phrases_are_refused():
    gt = phrases((0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 9.0, 9.0))
    with pytest.raises(ValueError, match="its own 1 phrases"):
        control("blank", gt.subset([1]), found(gt, [True, True]), found(gt, [True, True]), num_replicates=0, seed=0)
