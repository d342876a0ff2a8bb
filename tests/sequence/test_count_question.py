from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from coordvlm.sequence.count_question import CountTexts, Steps, texts_of
from coordvlm.utils.errors import ConfigError

DRAWS = 8000


def shares(num: int, mode: str, done_share: float = 0.5) -> dict[int, float]:
    """k -> share of the questions, over many draws."""
    steps, rng = Steps(mode, done_share, "next"), np.random.default_rng(0)
    found = Counter(len(steps.draw(num, rng).marked) for _ in range(DRAWS))
    return {k: n / DRAWS for k, n in sorted(found.items())}


NEAR = 4 * 0.5 / DRAWS**0.5  # four standard deviations of a share at most


@pytest.mark.parametrize(
    ("num", "mode", "done_share", "want"),
    [
        (5, "regression", 0.5, dict.fromkeys(range(5), 0.2)),
        (5, "classification", 0.5, {**dict.fromkeys(range(4), 0.25 / 4), 4: 0.25, 5: 0.5}),
        (5, "mixed", 0.5, {**dict.fromkeys(range(4), 0.1 + 0.125 / 4), 4: 0.1 + 0.125, 5: 0.25}),
        (5, "mixed", 0.0, dict.fromkeys(range(5), 0.2)),
        (2, "classification", 0.5, {0: 0.25, 1: 0.25, 2: 0.5}),
        (1, "classification", 0.5, {0: 0.5, 1: 0.5}),
        (1, "regression", 0.5, {0: 1.0}),
        (0, "regression", 0.5, {0: 1.0}),
        (0, "classification", 0.5, {0: 1.0}),
        (0, "mixed", 0.5, {0: 1.0}),
    ],
)
def test_the_number_of_marks_is_drawn_as_specified(num: int, mode: str, done_share: float, want: dict[int, float]) -> None:
    found = shares(num, mode, done_share)
    assert set(found) == set(want)
    for k, share in want.items():
        assert found[k] == pytest.approx(share, abs=NEAR if 0 < share < 1 else 0)


def test_next_marks_the_first_ones_and_asks_for_the_one_after_them() -> None:
    step = Steps("mixed", 0.5, "next").at(7, 3, np.random.default_rng(0))
    assert (step.marked.tolist(), step.unmarked.tolist()) == ([0, 1, 2], [3, 4, 5, 6])


def test_nearest_marks_any_subset_in_any_order_and_leaves_the_rest_in_order() -> None:
    steps, rng = Steps("mixed", 0.5, "nearest"), np.random.default_rng(0)
    found = [steps.at(4, 2, rng) for _ in range(3000)]
    for step in found[:50]:
        assert sorted((*step.marked.tolist(), *step.unmarked.tolist())) == [0, 1, 2, 3]
        assert sorted(step.unmarked.tolist()) == step.unmarked.tolist()
    seen = Counter(tuple(s.marked.tolist()) for s in found)
    assert len(seen) == 12
    assert min(seen.values()) > 3000 / 12 * 0.7


@pytest.mark.parametrize("target", ["next", "nearest"])
def test_all_marked_leaves_nothing(target: str) -> None:
    step = Steps("mixed", 0.5, target).at(3, 3, np.random.default_rng(0))
    assert sorted(step.marked.tolist()) == [0, 1, 2]
    assert step.unmarked.tolist() == []
    with pytest.raises(ValueError, match="4 of 3 objects"):
        Steps("mixed", 0.5, target).at(3, 4, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "both"}, "sequence.mode must be one of regression, classification, mixed, got 'both'"),
        ({"target": "any"}, "sequence.target must be one of next, nearest, got 'any'"),
        ({"done_share": 1.2}, r"sequence.done_share must be a number in \[0, 1\], got 1.2"),
        ({"done_share": True}, "sequence.done_share"),
        ({"done_share": float("nan")}, "sequence.done_share"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Steps(**{"mode": "mixed", "done_share": 0.5, "target": "next", **settings})


TEXTS = {"none": "Count {category}.", "one": "Count {category}, 1 is marked.", "many": "Count {category}, {k} are marked."}


@pytest.mark.parametrize(
    ("k", "want"), [(0, "Count a {k} b."), (1, "Count a {k} b, 1 is marked."), (2, "Count a {k} b, 2 are marked.")]
)
def test_the_words_agree_with_the_number_and_leave_the_category_alone(k: int, want: str) -> None:
    before, after = texts_of(TEXTS).parts(k)
    assert before + "a {k} b" + after == want


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({**TEXTS, "none": "Count."}, r"sequence.prompts.none must contain \{category\} once, got 'Count.'"),
        ({**TEXTS, "one": "{category} {category}"}, r"sequence.prompts.one must contain \{category\} once"),
        ({**TEXTS, "many": "{category}"}, r"sequence.prompts.many must contain \{k\} once"),
        ({"none": "{category}"}, "the prompts of counting are none, one and many, got none"),
        ({**TEXTS, "few": "{category}"}, "got none, one, many, few"),
    ],
)
def test_a_prompt_without_its_places_is_refused(texts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        texts_of(texts)


def test_texts_are_a_value() -> None:
    assert texts_of(TEXTS) == CountTexts(**TEXTS)
