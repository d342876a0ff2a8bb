"""Checks of boxes, classes and phrases on views made by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from coordvlm.analysis.checks import percent
from coordvlm.analysis.checks_boxes import check_boxes, pair_iou, pairs_of_one_class, size_histogram
from coordvlm.analysis.checks_classes import alike, check_classes, check_classes_between, class_histogram
from coordvlm.analysis.checks_phrases import check_phrases, length_histogram, odd_characters, special_tokens
from coordvlm.contracts import ResizeRule
from coordvlm.coords import boxes as box_ops
from coordvlm.reports.audit_data import Level
from tests.analysis.views import SETTINGS, Box, found, phrase_view, settings, view

PLAIN = [10.0, 20.0, 110.0, 140.0]


@pytest.mark.parametrize(("share", "text"), [
    (0, "0 %"), (1, "100 %"), (0.0001, "< 0.1 %"), (0.012, "1.2 %"), (0.5, "50 %"), (0.05, "5 %"), (0.9999, "> 99.9 %"), (0.999, "99.9 %"),
])
def test_a_share_never_rounds_to_nothing_or_to_everything(share: float, text: str) -> None:
    assert percent(share) == text


# ------------------------------------------------------------------------------------------------------------------ boxes
def test_broken_boxes_are_counted_and_named() -> None:
    rows: list[Box] = [
        (0, 1, PLAIN), (0, 1, [30, 30, 30, 90]), (0, 2, [50, 50, 20, 90]), (0, 1, [600, 10, 700, 50]), (0, 1, [0, 0, 650, 20]),
        *[(0, 1, [i * 10, 300, i * 10 + 9, 309]) for i in range(40)],
    ]
    findings = check_boxes(view(rows), SETTINGS)
    assert found(findings, "zero_area").examples[0].where == "train box 1"
    assert found(findings, "inverted").examples[0].value == [50, 50, 20, 90]
    outside = found(findings, "out_of_frame")
    assert (outside.value, outside.details["largest_excess_px"]) == (2, 60.0)
    assert [e.where for e in outside.examples] == ["train box 3", "train box 4"]  # the farthest first
    assert "60 px outside; training is refused" in outside.rule
    assert outside.level is Level.FAIL


def test_what_is_left_out_of_training_is_a_warning_only() -> None:
    rows = [(0, 1, [i * 10, 300, i * 10 + 9, 309]) for i in range(40)] + [(0, 1, [30, 30, 30, 90])]
    lenient = found(check_boxes(view(rows, strict=False), SETTINGS), "zero_area")
    assert (lenient.level, lenient.value) == (Level.WARN, 1)
    many = found(check_boxes(view([(0, 1, [30, 30, 30, 90])] * 2 + rows[:9], strict=False), SETTINGS), "zero_area")
    assert many.level is Level.FAIL  # a data set of which a tenth is broken is no data set


def test_a_pixel_beyond_the_edge_is_a_note() -> None:
    clipped = found(check_boxes(view([(0, 1, [10, 20, 640.7, 100]), (0, 1, [10, 20, 640.001, 100])]), SETTINGS), "clipped")
    assert (clipped.value, clipped.level) == (1, Level.NOTE)


def test_pairs_are_all_pairs_of_one_class_in_one_image() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(4)), int(rng.integers(1, 3)), PLAIN) for _ in range(60)]
    rows[5] = (rows[5][0], rows[5][1], [30, 30, 30, 90])  # a broken one has no twin
    made = view(rows, num_images=4, crowd=[7])
    expected = {(a, b) for a, b in combinations(range(60), 2) if rows[a][:2] == rows[b][:2] and not {5, 7} & {a, b}}
    assert set(map(tuple, pairs_of_one_class(made).tolist())) == expected


def test_pair_iou_is_the_iou() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 300, (2, 50, 2))
    a, b = (np.concatenate([c, c + rng.uniform(1, 200, (50, 2))], 1) for c in corners)
    assert pair_iou(a, b) == pytest.approx(box_ops.iou(torch.from_numpy(a), torch.from_numpy(b)).numpy(), abs=1e-6)


def test_an_object_annotated_twice_is_found() -> None:
    near = [10.0, 20.0, 110.0, 130.0]  # 100 x 110 of 100 x 120: IoU 0.917
    rows: list[Box] = [(0, 1, PLAIN), (0, 1, near), (0, 2, PLAIN), (1, 1, PLAIN), (1, 1, PLAIN), (0, 1, [10, 20, 110, 128])]
    findings = check_boxes(view(rows, num_images=2), SETTINGS)
    same, close = found(findings, "identical"), found(findings, "near_duplicate")
    assert [e.where for e in same.examples] == ["train box 4"]
    assert same.level is Level.WARN
    assert [e.where for e in close.examples] == ["train box 5", "train box 1"]  # the closest first
    assert str(close.examples[0].value).startswith("IoU 0.982 with [10.0, 20.0, 110.0, 130.0]")
    assert str(close.examples[1].value).startswith("IoU 0.917 with [10.0, 20.0, 110.0, 140.0]")
    assert found(check_boxes(view(rows, num_images=2), settings(near_duplicate_iou=0.99)), "near_duplicate").value == 0


def test_phrases_for_one_box_are_no_duplicates() -> None:
    findings = check_boxes(phrase_view(("left dog", 0, PLAIN), ("the dog", 0, [10, 20, 110, 139])), SETTINGS)
    assert not {f.check for f in findings} & {"identical", "near_duplicate", "per_image", "crowds"}


def test_sizes_are_cocos() -> None:
    rows: list[Box] = [(0, 1, [0, 0, 31, 33]), (0, 1, [0, 0, 96, 97]), (0, 1, [100, 0, 133, 33]), (0, 1, [1, 1, 2.5, 90])]
    findings = check_boxes(view(rows), SETTINGS)
    assert found(findings, "size").details == {"small": 2, "medium": 1, "large": 1}
    assert found(findings, "tiny").examples[0].where == "train box 3"
    assert found(check_boxes(view([(0, 1, [0, 0, 640, 480])]), SETTINGS), "whole_image").level is Level.WARN


def test_what_the_model_hardly_sees_is_counted() -> None:
    rows = [(0, 1, [0, 0, 50, 200]), (0, 1, [0, 0, 60, 200])]  # 96 px from 640: 7.5 and 9 px; half a token covers 8
    findings = check_boxes(view(rows), SETTINGS)
    assert [e.where for e in found(findings, "below_half_token").examples] == ["train box 0"]
    smart = ResizeRule("smart", 16, 2, min_pixels=1024, max_pixels=10**7)
    assert found(check_boxes(view(rows), settings(resize=smart)), "below_half_token").value == 0
    assert "below_half_token" not in {f.check for f in check_boxes(view(rows), settings(resize=None))}


def grid(shift: float, last: float, count: int = 80) -> list[tuple[int, int, list[float]]]:
    """Boxes of whole pixels from ``shift`` to the size less ``last``; some of them touch both edges."""
    rng = np.random.default_rng(2)
    rows: list[tuple[int, int, list[float]]] = []
    for i in range(count):
        x1, y1 = (shift, shift) if i % 8 == 0 else rng.integers(5, 300, 2).tolist()
        x2, y2 = (640 - last, 480 - last) if i % 8 == 1 else (x1 + int(rng.integers(5, 90)), y1 + int(rng.integers(5, 90)))
        rows.append((i % 4, 1, [x1, y1, x2, y2]))
    return rows


@pytest.mark.parametrize(("shift", "last", "name"), [(1, 0, "one_based"), (0, 1, "last_pixel"), (0, 0, None)])
def test_the_signs_of_another_pixel_convention(shift: float, last: float, name: str | None) -> None:
    findings = check_boxes(view(grid(shift, last), num_images=4), SETTINGS)
    warned = {f.check for f in findings if f.check in ("one_based", "last_pixel", "reach") and f.level is Level.WARN}
    assert warned == ({name} if name else set())


def test_boxes_of_a_smaller_image_do_not_reach_the_edge() -> None:
    rows = [(i, c, [v / 2 for v in box]) for i, c, box in grid(0, 0)]
    short = found(check_boxes(view(rows, num_images=4), SETTINGS), "reach")
    assert (short.level, short.value, short.shown) == (Level.WARN, 0.5, "50 x 50 %")


def test_a_few_boxes_are_no_evidence() -> None:
    assert "reach" not in {f.check for f in check_boxes(view(grid(0, 0, count=40), num_images=4), SETTINGS)}


def test_objects_per_image() -> None:
    rows = [(0, 1, PLAIN)] * 3 + [(2, 1, PLAIN)]
    findings = check_boxes(view(rows, num_images=3, crowd=[0]), settings(max_objects=1))
    assert found(findings, "per_image").shown == "1, most 2"
    assert found(findings, "images_without").examples[0].where == "train image 1"
    assert (found(findings, "many_objects").value, found(findings, "many_objects").examples[0].value) == (1, 2)
    assert found(findings, "crowds").value == 1


def test_an_empty_split_is_checked_like_any_other() -> None:
    empty = view(num_images=2)
    assert {f.level for f in [*check_boxes(empty, SETTINGS), *check_classes(empty, SETTINGS)]} <= {Level.OK, Level.NOTE, Level.WARN}
    assert sum(size_histogram(empty).counts) == 0


# ---------------------------------------------------------------------------------------------------------------- classes
@pytest.mark.parametrize(("a", "b"), [
    ("dog", "Dog"), ("dog", "dogs"), ("traffic_light", "traffic light"), ("tv-set", "TV set"), ("box", "boxes"), ("berry", "berries"),
    ("glass", "glasses"),
])
def test_names_that_are_alike(a: str, b: str) -> None:
    assert alike(a) == alike(b)


@pytest.mark.parametrize(("a", "b"), [("bus", "bu"), ("gas", "ga"), ("car", "cart"), ("glass", "glas"), ("red box", "blue box")])
def test_names_that_are_not(a: str, b: str) -> None:
    assert alike(a) != alike(b)


def test_class_names_are_checked() -> None:
    names = ("dog", "Dogs", "<|coord_5|>", "cat ", "fish\u200b")
    findings = check_classes(view([(0, 1, PLAIN)], names=names), SETTINGS)
    assert found(findings, "alike_names").examples[0].value == ["dog", "Dogs"]
    assert [e.value for e in found(findings, "odd_names").examples] == ["<|coord_5|>", "cat ", "fish\u200b"]
    assert [e.value for e in found(findings, "unused").examples] == ["Dogs", "<|coord_5|>", "cat ", "fish\u200b"]
    assert [e.value for e in found(findings, "rare").examples] == [["dog", 1]]


def test_imbalance_names_both_ends() -> None:
    findings = check_classes(view([(0, 1, PLAIN)] * 300 + [(0, 2, PLAIN)] * 2), SETTINGS)
    assert (found(findings, "imbalance").value, found(findings, "imbalance").level) == (150.0, Level.NOTE)
    assert "dog 300, cat 2" in found(findings, "imbalance").rule
    assert class_histogram(view([(0, 1, PLAIN)] * 3)).counts == (3, 0)


def test_images_that_lack_what_nearly_all_have() -> None:
    rows = [(i, 1, PLAIN) for i in range(38)] + [(i, 2, PLAIN) for i in range(0, 40, 2)]  # 38 and 39 have no dog, 39 has nothing
    findings = check_classes(view(rows, num_images=40), SETTINGS)
    without = found(findings, "without_dog")
    assert [e.where for e in without.examples] == ["train image 38"]
    assert without.details["images"] == [39]
    assert "without_cat" not in {f.check for f in findings}


def test_a_class_that_is_scored_and_never_taught() -> None:
    train, val = view([(0, 1, PLAIN)]), view([(0, 1, PLAIN), (0, 2, PLAIN)], name="val")
    [never] = check_classes_between([train, val])
    assert (never.level, never.split, never.examples[0].where) == (Level.WARN, "val", "val: cat, 1 boxes")
    assert check_classes_between([train, train]) == []


# ---------------------------------------------------------------------------------------------------------------- phrases
def many(*texts: str, negatives: int = 0) -> list[tuple[str, int, list[float] | None]]:
    """Each phrase on an image of its own."""
    return [(t, i, PLAIN if i >= negatives else None) for i, t in enumerate(texts)]


WORDS = [f"{a} {b}" for a in ("left", "right", "blue", "tall", "wet") for b in ("dog", "man", "box on left", "ground beef", "point guard")]


def test_phrases_that_can_teach_pass() -> None:
    findings = check_phrases(phrase_view(*many(*WORDS)), SETTINGS)
    assert {f.level for f in findings} == {Level.OK}
    assert found(findings, "words").details == {}
    assert found(findings, "words").value == pytest.approx(np.mean([len(t.split()) for t in WORDS]))


def test_one_phrase_over_and_over_fails() -> None:
    findings = check_phrases(phrase_view(*many(*WORDS, *["the thing"] * 5)), SETTINGS)
    top = found(findings, "top")
    assert (top.level, top.examples[0].value) == (Level.FAIL, "'the thing', 5 times")
    assert top.value == pytest.approx(5 / 30)
    assert top.examples[0].where == f"row {len(WORDS)}"
    few = check_phrases(phrase_view(*many(*["Dog", "dog ", "cat"] * 10)), SETTINGS)
    assert found(few, "unique").level is Level.FAIL
    assert found(few, "unique").value == pytest.approx(2 / 30)


def test_a_grammar_may_repeat_itself() -> None:
    findings = check_phrases(phrase_view(*many(*["red box"] * 30), generated=True), SETTINGS)
    assert {found(findings, name).level for name in ("top", "unique")} == {Level.NOTE}
    blank = check_phrases(phrase_view(*many(*["phrase"] * 30), generated=True), SETTINGS)
    assert found(blank, "placeholder").level is Level.FAIL


def test_placeholders_fail_above_one_percent() -> None:
    texts = [f"dog number {i}" for i in range(200)]
    findings = check_phrases(phrase_view(*many(*texts, "<phrase>", "describe the image")), SETTINGS)
    assert (found(findings, "placeholder").value, found(findings, "placeholder").level) == (2, Level.NOTE)
    more = check_phrases(phrase_view(*many(*texts, *["<phrase>"] * 3)), SETTINGS)
    assert found(more, "placeholder").level is Level.FAIL
    assert found(check_phrases(phrase_view(*many(*texts, " ")), SETTINGS), "blank").level is Level.FAIL


@pytest.mark.parametrize(("check", "text"), [
    ("prompt", "Locate: the left dog"), ("prompt", "where is the dog"), ("prompt", "which one is the tallest?"),
    ("special_tokens", "dog <|im_end|>"), ("special_tokens", "the <|coord_12|> dog"), ("special_tokens", "</s>dog"),
    ("special_tokens", "<obj_start>dog"), ("odd_characters", "do\u202eg"), ("odd_characters", "dog\x00"), ("odd_characters", "\ud800"),
    ("spacing", " dog"), ("spacing", "left  dog"), ("spacing", "left\tdog"), ("long", "very " * 31 + "long"), ("short", "12"),
])
def test_what_is_typed_into_a_phrase_is_named(check: str, text: str) -> None:
    finding = found(check_phrases(phrase_view(*many(*WORDS, text)), SETTINGS), check)
    assert finding.value == 1
    assert finding.examples[0].where == f"row {len(WORDS)}"
    assert finding.level >= Level.NOTE


@pytest.mark.parametrize("text", [
    "2 < 3 and 5 > 4", "man in [red] shirt", "café 犬", "\U0001f468\u200d\U0001f467 on the left", "finding nemo poster", "locater",
])
def test_ordinary_words_are_not(text: str) -> None:
    findings = check_phrases(phrase_view(*many(*WORDS, text)), SETTINGS)
    assert {f.check for f in findings if f.level > Level.OK} == set()
    assert special_tokens(text) == odd_characters(text) == []


def test_one_phrase_for_several_boxes() -> None:
    other = [200.0, 200.0, 300.0, 300.0]
    rows = [("dog", 0, PLAIN), ("Dog", 0, other), ("dog", 1, PLAIN), ("cat", 0, PLAIN), ("cat", 0, PLAIN), ("none of it", 0, None),
            ("cow", 1, PLAIN), ("cow", 1, None)]
    findings = check_phrases(phrase_view(*rows), SETTINGS)
    assert [e.where for e in found(findings, "several_boxes").examples] == ["row 1", "row 7"]
    assert [e.where for e in found(findings, "repeated").examples] == ["row 4"]
    assert (found(findings, "negatives").value, found(findings, "negatives").shown) == (0.25, "25 %")


def test_words_are_counted_by_length() -> None:
    made = length_histogram(phrase_view(*many("dog", "left dog", "the dog on the far left side", "a " * 40)))
    assert made is not None
    assert dict(zip(made.labels, made.counts, strict=True)) == {
        "1": 1, "2": 1, "3": 0, "4": 0, "5": 0, "6-7": 1, "8-9": 0, "10-14": 0, "15-19": 0, "20-29": 0, "30 or more": 1,
    }
    assert length_histogram(view()) is None


def test_no_phrase_at_all_fails() -> None:
    [finding] = check_phrases(phrase_view(), SETTINGS)
    assert finding.level is Level.FAIL
