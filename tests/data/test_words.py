from __future__ import annotations

import json

import pytest

from coordvlm.data.words import (
    COLOUR,
    count_attributes,
    count_relations,
    count_words,
    mirror_fault,
    mirrored,
    names_colour,
    names_place,
    names_side,
)
from tests.data_root import peer_data

#: Swapped by hand.
SIDES = {
    "man on left": "man on right", "LEFT guy": "RIGHT guy", "Left Hand side": "Right Hand side", "the leftmost cup": "the rightmost cup",
    "lefthand door": "righthand door", "left-hand door": "right-hand door", "to the left of the man": "to the right of the man",
    "right arm of the man on the left": "left arm of the man on the right", "LeftMost": "RightMost", "bottom right": "bottom left",
    "topleft corner": "topright corner", "right-handed batter": "left-handed batter", "who is right of the tree": "who is left of the tree",
    "cup that is left of the plate": "cup that is right of the plate", "man on right behind bar": "man on left behind bar",
    "guy left with a hat": "guy right with a hat", "left, in red": "right, in red", "RIGHT!": "LEFT!",
    "second from right": "second from left",
}
#: Nothing to swap, though letters look like it.
UNCHANGED = ("bright light", "leftover pizza", "a frightened dog", "upright bear", "alright sign", "cleft chin", "the Wright plane", "cat")
FAULTS = {
    "right behind the man": "ambiguous_side", "right next to the bus": "ambiguous_side", "all right": "ambiguous_side",
    "left over pizza": "ambiguous_side", "man who has left": "ambiguous_side", "what is left of the cake": "ambiguous_side",
    "right of way sign": "ambiguous_side", "RIGHT THERE": "ambiguous_side", "food left at the top": "ambiguous_side",
    "slice at 3 o'clock": "unknown_side", "12 oclock": "unknown_side", "lft guy": "unknown_side", "rt girl": "unknown_side",
    "lefty": "unknown_side", "upper leftt chair": "unknown_side", "man on rightmounted": "unknown_side", "the west door": "unknown_side",
    "L shaped couch": "unknown_side", "sign that says stop": "writing", 'shirt with "42"': "writing", "player number 7 on left": "writing",
}


@pytest.mark.parametrize(("phrase", "swapped"), SIDES.items())
def test_left_and_right_change_places_and_keep_their_capitals(phrase: str, swapped: str) -> None:
    assert mirrored(phrase) == swapped
    assert mirrored(swapped) == phrase
    assert names_side(phrase)


@pytest.mark.parametrize("phrase", UNCHANGED)
def test_other_words_with_these_letters_stay(phrase: str) -> None:
    assert mirrored(phrase) == phrase
    assert not names_side(phrase)


@pytest.mark.parametrize(("phrase", "fault"), FAULTS.items())
def test_what_may_be_no_side_is_refused_with_the_reason(phrase: str, fault: str) -> None:
    assert mirror_fault(phrase) == fault
    with pytest.raises(ValueError, match=f"cannot be mirrored: {fault}"):
        mirrored(phrase)


def test_real_phrases_are_swapped_unless_a_reason_is_given() -> None:
    """Of the 1,200 phrases 264 name a side; a plain word-by-word exchange is the reference for those that are swapped."""
    rows = (peer_data() / "refcoco_sample" / "sample_1200.jsonl").read_text(encoding="utf-8").splitlines()
    phrases = [json.loads(row)["phrase"] for row in rows]
    free = [p for p in phrases if mirror_fault(p) is None]
    assert len(free) >= 0.97 * len(phrases)
    other = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
    plain = [p for p in free if all(w in other or ("left" not in w and "right" not in w) for w in p.split())]
    assert sum(mirrored(p) != p for p in plain) > 200
    for phrase in plain:
        assert mirrored(phrase) == " ".join(other.get(w, w) for w in phrase.split(" "))


@pytest.mark.parametrize(
    ("phrase", "place"),
    [("man on left", True), ("TOP pizza", True), ("cup behind the plate", True), ("2nd cow", True), ("red shirt", False),
     ("stopped car", False), ("the laptop", False), ("girl holding a frisbee", False), ("closest zebra", True), ("leftover pizza", False)],
)
def test_places(phrase: str, place: bool) -> None:
    assert names_place(phrase) is place


@pytest.mark.parametrize(
    ("text", "colour"), [("red ellipse", True), ("GREY cat", True), ("bored man", False), ("coloured ball", True), ("tandem", False)]
)
def test_colours(text: str, colour: bool) -> None:
    assert names_colour(text) is colour
    assert bool(COLOUR.search(text)) is colour


def test_counts_by_hand() -> None:
    assert count_words("  small red  triangle ") == 3
    assert [count_attributes(p) for p in ("triangle", "red triangle", "small red striped triangle")] == [0, 1, 3]
    assert [count_relations(p) for p in ("red dog", "dog behind the cat", "dog left of the cat", "second from left")] == [0, 1, 2, 2]
