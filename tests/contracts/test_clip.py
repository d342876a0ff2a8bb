"""The truth of clips."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordvlm.contracts import ClipTruth


def truth(order: tuple[int, ...] = (0, 1, 2)) -> ClipTruth:
    rows = [
        (7, "Where is the ball?", "", "ball", 1, (64, 48), (10.0, 20.0)),
        (3, "Which?", "circle", "qa", 1, (64, 48), None),
        (5, "", "a ball", "caption", 2, (32, 32), None),
    ]
    ids, questions, answers, kinds, sources, sizes, points = zip(*(rows[i] for i in order), strict=True)
    return ClipTruth.of(ids=ids, questions=questions, answers=answers, kinds=kinds, source_clip=sources, sizes=sizes, points=points)


def test_rows_are_ordered_by_id_with_everything_they_hold() -> None:
    found = truth()
    assert found.image_ids.tolist() == [3, 5, 7]
    assert found.answers == ("circle", "a ball", "")
    assert found.kinds == ("qa", "caption", "ball")
    assert found.questions == ("Which?", "", "Where is the ball?")
    assert found.source_image.tolist() == [1, 2, 1]
    assert found.image_wh.tolist() == [[64, 48], [32, 32], [64, 48]]
    assert [found.point_of(i) for i in (3, 5, 7, 99)] == [None, None, (10.0, 20.0), None]


def test_the_order_they_came_in_does_not_matter() -> None:
    assert truth((2, 0, 1)).digest() == truth().digest()


def test_a_subset_keeps_rows_together() -> None:
    part = truth().subset([7, 3])
    assert part.image_ids.tolist() == [3, 7]
    assert part.answers == ("circle", "")
    assert part.source_clip.tolist() == [1, 1]
    assert part.point_of(7) == (10.0, 20.0)
    with pytest.raises(KeyError):
        truth().subset([4])


@pytest.mark.parametrize("field", ["questions", "answers", "kinds"])
def test_the_digest_changes_with_every_word(field: str) -> None:
    found = truth()
    words = getattr(found, field)
    assert replace(found, **{field: (words[0] + "x", *words[1:])}).digest() != found.digest()
    assert replace(found, **{field: (words[1], words[0], *words[2:])}).digest() != found.digest()


def test_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="3 clips need as many questions, answers, kinds and sources"):
        replace(truth(), answers=("circle",))
